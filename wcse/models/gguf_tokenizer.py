"""The tokenizer in a GGUF file's metadata, rebuilt with the ``tokenizers`` library.

A GGUF names its pre-tokenizer (``tokenizer.ggml.pre``) and does not carry it; the table here holds those of
the supported models. Built directly because transformers' own route takes ten seconds for a vocabulary of
150,000 and ignores some of the names. Knows nothing of tensors.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from wcse.types import WcseError

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # token types
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
_GPT2_NAMES = ("default", "gpt-2", "gpt2")
_DIGITS_NAMES = ("smollm", "starcoder", "refact")  # GPT-2's, with every digit on its own
# Ends of a turn by name, for files that state only one end token (as llama.cpp does).
_END_NAMES = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "</s>",
    "<|eom_id|>",
)


def gguf_tokenizer(metadata: dict[str, Any], source: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer that the metadata describes, with special tokens and chat template.

    Raises:
        WcseError: there is no vocabulary, or its model or pre-tokenizer is not known.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise WcseError(f"{source}: holds no tokenizer (tokenizer.ggml.tokens); take a file that does")
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise WcseError(f"{source}: tokenizer model {kind!r} is not supported; known: gpt2, llama")
    pre = _pre_tokenizer(metadata, source) if kind == "gpt2" else None
    try:
        return _build(metadata, tokens, pre)
    except Exception as error:  # the Rust side raises plain Exception for merges outside the vocabulary
        raise WcseError(f"{source}: its tokenizer is corrupt ({error}); download the file again") from None


def _build(
    metadata: dict[str, Any], tokens: list[str], pre: pre_tokenizers.PreTokenizer | None
) -> PreTrainedTokenizerFast:
    backend = _byte_level(metadata, tokens, pre) if pre else _sentencepiece(metadata, tokens)
    named = _named_tokens(metadata, tokens)
    if named.get("bos_token") and _adds_bos(metadata):
        bos = named["bos_token"]
        pair = (bos, metadata["tokenizer.ggml.bos_token_id"])
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[pair]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        chat_template=metadata.get("tokenizer.chat_template"),
        **named,
    )


def gguf_eos_ids(metadata: dict[str, Any]) -> frozenset[int]:
    """Ids that end a generation: the stated ones, and control tokens that are known as ends of a turn."""
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    stated = {int(metadata[key]) for key in keys if key in metadata}
    types = metadata.get("tokenizer.ggml.token_type") or []
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    by_name = {
        i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind == _CONTROL and token in _END_NAMES
    }
    return frozenset(stated | by_name)


def _pre_tokenizer(metadata: dict[str, Any], source: str) -> pre_tokenizers.PreTokenizer:
    """What cuts text into words before the merges, by its name in the file."""
    name = metadata.get("tokenizer.ggml.pre", "default")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[name]), behavior="isolated")
        raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, raw])
    if name in _DIGITS_NAMES:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    if name in _GPT2_NAMES:
        return plain
    known = ", ".join(sorted((*_SPLITS, *_DIGITS_NAMES, *_GPT2_NAMES)))
    raise WcseError(
        f"{source}: pre-tokenizer {name!r} is not known (known: {known}); load the Hugging Face folder"
    )


def _byte_level(metadata: dict[str, Any], tokens: list[str], pre: pre_tokenizers.PreTokenizer) -> Tokenizer:
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", [])]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre
    if _SPLITS.get(metadata.get("tokenizer.ggml.pre", "")) is _QWEN2:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, metadata, tokens)
    return backend


def _sentencepiece(metadata: dict[str, Any], tokens: list[str]) -> Tokenizer:
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    # User-defined pieces (Gemma's runs of spaces) are matched in the raw text, so they are spelled as text.
    tokens = [t.replace("▁", " ") if k == _USER_DEFINED else t for t, k in zip(tokens, types, strict=True)]
    vocab = {token: i for i, token in enumerate(tokens)}
    scores = metadata.get("tokenizer.ggml.scores") or [-float(i) for i in range(len(tokens))]
    merges = _merges(vocab, {t: s for t, s, k in zip(tokens, scores, types, strict=True) if k == _NORMAL})
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    model = models.BPE(
        vocab,
        merges,
        byte_fallback=True,
        fuse_unk=True,
        unk_token=tokens[unknown] if unknown is not None else None,
    )
    backend = Tokenizer(model)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", not _is_gemma(metadata))
    parts = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*parts, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_tokens(backend, metadata, tokens)
    return backend


def _merges(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Merges that a sentencepiece vocabulary implies: all ways to cut a piece in two, best piece first."""
    ranked = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                ranked.append((-score, vocab[left], vocab[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _add_tokens(backend: Tokenizer, metadata: dict[str, Any], tokens: list[str]) -> None:
    """Mark control tokens as special and user-defined ones as whole; both are in the vocabulary already."""
    types = metadata.get("tokenizer.ggml.token_type") or []
    marked = [
        AddedToken(token, normalized=False, special=kind == _CONTROL)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (_CONTROL, _USER_DEFINED) and token
    ]
    backend.add_special_tokens([token for token in marked if token.special])
    backend.add_tokens([token for token in marked if not token.special])


def _named_tokens(metadata: dict[str, Any], tokens: list[str]) -> dict[str, str]:
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {name: tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}


def _adds_bos(metadata: dict[str, Any]) -> bool:
    """Older files leave the flag out: sentencepiece and Llama-3 vocabularies then start with a BOS."""
    llama3 = _SPLITS.get(metadata.get("tokenizer.ggml.pre", "")) is _LLAMA3
    sentencepiece = metadata["tokenizer.ggml.model"] == "llama"
    return bool(metadata.get("tokenizer.ggml.add_bos_token", llama3 or sentencepiece))


def _is_gemma(metadata: dict[str, Any]) -> bool:
    return str(metadata.get("general.architecture", "")).startswith("gemma")
