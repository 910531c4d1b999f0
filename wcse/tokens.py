"""The bytes behind every token id, for byte-level BPE and sentencepiece-style tokenizers.

Concatenating the bytes of a sequence gives exactly the text that it encodes, also where a character is spread
over several tokens; that is what delimiter and stop matching and streaming need, and what ``tokenizer.decode``
cannot give token by token. Knows nothing of models or of how text is split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer

from wcse.types import WcseError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any, *, size: int = 0) -> list[bytes]:
    """The bytes of each token id; special tokens and ids without a token are ``b""``.

    Added tokens stand for their own text. Tokenizers that put a space before the first word (Llama-2) show that
    space: a table cannot know what is first.

    Args:
        tokenizer: a fast transformers tokenizer or a ``tokenizers.Tokenizer``.
        size: least length of the table; models often have more rows than the tokenizer has tokens.

    Raises:
        WcseError: the tokenizer is neither byte-level nor sentencepiece-style.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise WcseError(
            f"tokenizer {type(tokenizer).__name__} is not a fast tokenizer; save it as tokenizer.json first"
        )
    to_bytes = _token_to_bytes(backend)
    vocab = backend.get_vocab(with_added_tokens=True)
    needed = max(vocab.values(), default=-1) + 1
    table = [b""] * max(needed, size)
    for token, token_id in vocab.items():
        table[token_id] = to_bytes(token)
    for token_id, added in backend.get_added_tokens_decoder().items():
        table[token_id] = b"" if added.special else added.content.encode()
    for token_id in getattr(tokenizer, "all_special_ids", []):
        table[token_id] = b""
    return table


def decode(table: Sequence[bytes], ids: Iterable[int]) -> str:
    """The text of ``ids`` under a table of ``token_bytes``; bytes that are not UTF-8 become U+FFFD."""
    return b"".join(table[i] for i in ids).decode("utf-8", errors="replace")


def _token_to_bytes(backend: Tokenizer) -> Callable[[str], bytes]:
    """How this tokenizer spells bytes in its vocabulary, as its decoder tells."""
    parts = _decoder_parts(backend)
    kinds = [part["type"] for part in parts]
    if "ByteLevel" in kinds:
        alphabet = _byte_alphabet()
        return lambda token: _spelled_bytes(token, alphabet)
    space = next((_space_mark(part) for part in parts if _space_mark(part)), None)
    if space is None:
        raise WcseError(
            f"tokenizer: decoder {' + '.join(kinds) or 'none'} is neither byte-level nor sentencepiece-style"
        )
    fallback = "ByteFallback" in kinds
    return lambda token: _piece_bytes(token, space, fallback)


def _decoder_parts(backend: Tokenizer) -> list[dict[str, Any]]:
    """The decoder's description as a flat list."""
    if backend.decoder is None:
        return []
    described = json.loads(backend.decoder.__getstate__())
    return described["decoders"] if described["type"] == "Sequence" else [described]


def _space_mark(part: dict[str, Any]) -> str | None:
    """The character that stands for a space, if this part of the decoder turns one into a space."""
    if part["type"] == "Metaspace":
        return part["replacement"]
    if part["type"] == "Replace" and part["content"] == " ":
        return part["pattern"].get("String")
    return None


def _spelled_bytes(token: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes(alphabet[char] for char in token)
    except KeyError:  # not written in the byte alphabet: plain text that was put into the vocabulary
        return token.encode()


def _piece_bytes(token: str, space: str, fallback: bool) -> bytes:
    if fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
        return bytes([int(byte[1], 16)])
    return token.replace(space, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: itself where it is printable, else the next one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
