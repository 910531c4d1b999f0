"""Small random models of every architecture, written as Hugging Face folders by transformers itself.

Each is a few hundred kilobytes, has grouped heads, heads wider than ``dim / n_heads``, odd-sized windows
that a short prompt overflows, and weights large enough that every part moves the logits. Norm weights are
random: a test must see whether a norm's weight or offset was applied.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

CORPUS = [
    "Anna has 12 apples and buys 7 more. How many apples does she have now?",
    "First add 12 and 7.\n\n12 + 7 = 19\n\nThe answer is \\boxed{19}.",
    "Wie heißt das? Ça va, naïve café — 日本語のテキスト 🙂 and\ttabs  and   spaces.",
    "def f(x):\n    return x * x  # squares\n",
]
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_BASE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "llama-biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama3-rope": {"model_type": "llama", "rope_parameters": _LLAMA3_ROPE},
    "linear-rope": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    },
    "mistral": {"model_type": "mistral", "sliding_window": 37, "num_key_value_heads": 1},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 37,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "num_attention_heads": 6, "head_dim": 48},
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2},
    "gemma2": {
        "model_type": "gemma2",
        "sliding_window": 37,
        "query_pre_attn_scalar": 48,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.5,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "sliding_window": 37,
        "query_pre_attn_scalar": 48,
        "sliding_window_pattern": 3,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
}
"""Name -> config fields over the base; every architecture and every option that changes the arithmetic."""


def build(
    variant: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **fields: Any
) -> Path:
    """Write config, random weights, generation config and tokenizer of ``VARIANTS[variant]`` to ``folder``.

    ``fields`` override config fields. Gemma and Mistral get a sentencepiece-style tokenizer, the rest a
    byte-level one. Returns ``folder``.
    """
    values = _BASE | VARIANTS[variant] | fields
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModelForCausalLM.from_config(config)
    randomise(model, seed)
    model.to(dtype).save_pretrained(folder)
    style = sentencepiece_style if variant in ("mistral", "gemma2", "gemma3") else byte_level
    wrap(style()).save_pretrained(folder)
    return folder


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Gaussian weights: matrices keep the scale of their input; norms, biases are visibly off their defaults.

    Embeddings are near 0.4 after Gemma's scaling by ``sqrt(dim)``; larger, and a tied model repeats its input.
    """
    generator = torch.Generator().manual_seed(seed)
    embedding = 0.4 / getattr(model.get_input_embeddings(), "scalar_embed_scale", 1.0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 2:
                weight.copy_(noise * (embedding if "embed" in name else 1.5 * weight.shape[1] ** -0.5))
            else:
                weight.copy_(weight + 0.3 * noise)


@cache
def byte_level() -> Tokenizer:
    """A byte-level BPE tokenizer (GPT-2, Llama-3, Qwen style) with one plain added token, "<step>"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<step>", "é à"])
    return tokenizer


@cache
def sentencepiece_style() -> Tokenizer:
    """A BPE tokenizer with byte fallback and "▁" for spaces (Gemma style, so without a dummy prefix)."""
    vocab = {token: i for i, token in enumerate([*SPECIAL, "<unk>", *(f"<0x{b:02X}>" for b in range(256))])}
    pieces = sorted({char for text in CORPUS for char in text.replace(" ", "▁") if ord(char) < 0x3000})
    words = ["an", "▁a", "▁an", "le", "th", "▁th", "▁▁", "▁▁▁▁"]  # best first
    for piece in [*pieces, *words]:
        vocab.setdefault(piece, len(vocab))
    cuts = [(word[:i], word[i:]) for word in words for i in range(1, len(word))]
    merges = [(left, right) for left, right in cuts if left in vocab and right in vocab]
    model = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([*SPECIAL, "<unk>"])
    tokenizer.add_tokens(["<step>", "é à"])
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The transformers tokenizer around a ``tokenizers`` one, with "<|end|>" as end and a chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", chat_template=CHAT_TEMPLATE
    )
