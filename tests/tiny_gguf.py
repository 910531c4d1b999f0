"""Writes a small Hugging Face folder as a GGUF file, the way llama.cpp's conversion script does.

Tensor names come from the ``gguf`` package's own map, not from ours.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file
from transformers import AutoTokenizer

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
F32 = gguf.GGMLQuantizationType.F32


def write(folder: Path, path: Path, kind: gguf.GGMLQuantizationType = F32) -> dict[str, np.ndarray]:
    """Write ``path``, matrices as ``kind``.

    Returns:
        The tensors by their Hugging Face names with the values that the file holds, float32.
    """
    config = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[config["model_type"]]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _add_sizes(writer, config)
    _add_rope(writer, config)
    _add_tokenizer(writer, AutoTokenizer.from_pretrained(folder), config["vocab_size"])
    held = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored_kind = kind if tensor.ndim == 2 else F32
        data = gguf.quantize(_stored(name, tensor, config), stored_kind)
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight", ".bias")), data, raw_dtype=stored_kind
        )
        held[name] = _restored(name, gguf.dequantize(data, stored_kind), config)
    _finish(writer)
    return held


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _heads(name: str, config: dict[str, Any]) -> int:
    """Heads whose rows are permuted; 0: the tensor is stored as it is."""
    if config["model_type"] not in ("llama", "mistral", "smollm3"):
        return 0
    if ".q_proj." in name:
        return config["num_attention_heads"]
    return config["num_key_value_heads"] if ".k_proj." in name else 0


def _is_gemma_norm(name: str, config: dict[str, Any]) -> bool:
    return config["model_type"].startswith("gemma") and name.endswith("norm.weight")


def _stored(name: str, tensor: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    if _is_gemma_norm(name, config):
        return tensor + np.float32(1)
    if heads := _heads(name, config):
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    return tensor


def _restored(name: str, tensor: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    if _is_gemma_norm(name, config):
        return tensor - np.float32(1)
    if heads := _heads(name, config):
        pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(tensor.shape))
    return tensor


def _add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config["model_type"].startswith("gemma"):
        writer.add_sliding_window(config["sliding_window"])
        if config["attn_logit_softcapping"]:
            writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        if config["final_logit_softcapping"]:
            writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _add_rope(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(rope, config["head_dim"]))


def _llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    factors = []
    low, high, old = (
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )
    for pair in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (pair / head_dim)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(rope["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    sentencepiece = model["byte_fallback"]
    ranks = {left + right: i for i, (left, right) in enumerate(merges)}
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types, scores = [], [], []
    for i in range(size):
        token = by_id.get(i, f"[PAD{i}]")
        if i not in by_id:
            kind = gguf.TokenType.UNUSED
        elif i in added:
            kind = gguf.TokenType.CONTROL if added[i].special else gguf.TokenType.USER_DEFINED
        elif sentencepiece and token.startswith("<0x"):
            kind = gguf.TokenType.BYTE
        else:
            kind = gguf.TokenType.NORMAL
        tokens.append(token)
        types.append(kind)
        scores.append(-float(ranks.get(token, 1000 + i)))
    writer.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if sentencepiece:
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(False)
        writer.add_unk_token_id(tokenizer.convert_tokens_to_ids("<unk>"))
        writer.add_add_bos_token(False)
    else:
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
