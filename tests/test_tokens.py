"""The byte table: lossless on any text, whatever the style of the tokenizer."""

from __future__ import annotations

import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from wcse.tokens import decode, token_bytes
from wcse.types import WcseError

STYLES = {"byte-level": tiny_models.byte_level, "sentencepiece": tiny_models.sentencepiece_style}
# The sentencepiece mark itself is a space by definition, and special tokens have no text.
TEXT = st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])).filter(
    lambda text: not any(token in text for token in (*tiny_models.SPECIAL, "<unk>"))
)


def metaspace() -> Tokenizer:
    """Llama-2 as transformers 5 builds it: "▁" before the first word, stripped by the decoder."""
    tokenizer = Tokenizer(models.BPE(vocab={"▁": 0, "a": 1, "▁a": 2, "<0x0A>": 3}, merges=[("▁", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    return tokenizer


@pytest.mark.parametrize("style", STYLES)
@given(text=TEXT)
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(style: str, text: str) -> None:
    tokenizer = STYLES[style]()
    table = token_bytes(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(table[i] for i in ids) == text.encode()
    assert decode(table, ids) == text


@pytest.mark.parametrize("style", STYLES)
def test_added_tokens_are_their_text_and_special_ones_nothing(style: str) -> None:
    tokenizer = tiny_models.wrap(STYLES[style]())
    table = token_bytes(tokenizer)
    assert table[tokenizer.convert_tokens_to_ids("<step>")] == b"<step>"
    assert table[tokenizer.convert_tokens_to_ids("é à")] == "é à".encode()
    assert {table[i] for i in tokenizer.all_special_ids} == {b""}
    assert table[tokenizer.convert_tokens_to_ids("<|im_end|>")] == b""
    ids = tokenizer.encode("a<step>é à b<|im_end|>", add_special_tokens=False)
    assert decode(table, ids) == "a<step>é à b"


@pytest.mark.parametrize("style", STYLES)
def test_every_byte_has_a_token_and_cut_characters_are_marked(style: str) -> None:
    table = token_bytes(STYLES[style]())
    assert {bytes([b]) for b in range(256)} <= set(table)
    half = [table.index(bytes([b])) for b in "é".encode()]
    assert decode(table, half) == "é"
    assert decode(table, half[:1]) == "�"


def test_size_pads() -> None:
    tokenizer = tiny_models.byte_level()
    table = token_bytes(tokenizer, size=1000)
    assert len(table) == 1000
    assert table[:340] == token_bytes(tokenizer)[:340]
    assert table[-1] == b""
    assert token_bytes(tokenizer, size=100) == token_bytes(tokenizer)


def test_a_leading_space_that_the_tokenizer_adds_is_shown() -> None:
    tokenizer = metaspace()
    table = token_bytes(tokenizer)
    assert table == [b" ", b"a", b" a", b"<0x0A>"]  # no byte fallback in its decoder
    assert decode(table, tokenizer.encode("a a").ids) == " a a"


def test_text_outside_the_byte_alphabet_is_taken_as_it_is() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"Ġa": 0, "two words": 1}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    assert token_bytes(tokenizer) == [b" a", b"two words"]


def test_other_tokenizers_are_refused_by_name() -> None:
    words = Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="a"))
    with pytest.raises(WcseError, match="decoder none is neither byte-level nor"):
        token_bytes(words)
    words.decoder = decoders.WordPiece()
    with pytest.raises(WcseError, match="decoder WordPiece is neither"):
        token_bytes(words)
    with pytest.raises(WcseError, match="str is not a fast tokenizer"):
        token_bytes("gpt2")
