"""Models in GGUF files: metadata to ``ModelSpec``, llama.cpp's tensor names and layouts to ours.

What llama.cpp changes when it converts is undone here: it permutes the rows of Llama's query and key matrices
(its rope works on neighbouring pairs), adds 1 to Gemma's norm weights, and stores llama3 rope scaling as a
tensor of factors. The container's bytes are ``gguf_file``'s business, tokenizers ``gguf_tokenizer``'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from wcse.kernels.packed import QuantizedWeight
from wcse.models.gguf_file import GgufFile
from wcse.models.spec import ModelSpec, spec_from_hf
from wcse.models.weights import Weights
from wcse.types import WcseError

_ARCHITECTURES = {
    "llama": "llama",  # and Mistral, SmolLM
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
_PERMUTED = ("llama", "smollm3")
_FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}
_TENSORS = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",  # Gemma's sandwich norms
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """The spec that a GGUF file's metadata describes.

    Raises:
        WcseError: unknown architecture, a required key is missing, mixture of experts, or unsupported rope.
    """
    name = file.metadata.get("general.architecture")
    if name not in _ARCHITECTURES:
        raise WcseError(
            f"{file.path}: architecture {name!r} is not supported; known: {', '.join(sorted(_ARCHITECTURES))}"
        )
    keys = {
        key.removeprefix(f"{name}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{name}.")
    }
    if keys.get("expert_count"):
        raise WcseError(f"{file.path}: mixture-of-experts models are not supported; take a dense one")
    if "token_embd.weight" not in file.tensors:
        raise WcseError(f"{file.path}: tensor token_embd.weight is missing; the file is not a language model")
    try:
        spec = spec_from_hf(_config(name, keys, file))
    except WcseError as error:  # the reader thinks in config.json fields; say which file it was
        raise WcseError(f"{file.path}: metadata as {error}") from None
    if keys.get("rope.dimension_count", spec.head_dim) != spec.head_dim:
        raise WcseError(
            f"{file.path}: rope.dimension_count: rotating only a part of each head is not supported"
        )
    return replace(spec, norm_offset=0.0)  # the stored norm weights include Gemma's 1


def _config(name: str, keys: dict[str, Any], file: GgufFile) -> dict[str, Any]:
    """The ``config.json`` that the metadata corresponds to."""
    config: dict[str, Any] = {
        "model_type": _ARCHITECTURES[name],
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "num_key_value_heads": keys.get("attention.head_count"),
        "rope_theta": 10_000.0,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": name != "qwen2" and "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }
    config |= {field: keys[key] for key, field in _FIELDS.items() if key in keys}
    if isinstance(slides := config.get("sliding_window_pattern"), list):  # one flag for each layer
        del config["sliding_window_pattern"]
        config["layer_types"] = ["sliding_attention" if flag else "full_attention" for flag in slides]
    kind = keys.get("rope.scaling.type", "none")
    if kind != "none":
        config["rope_scaling"] = {"rope_type": kind, "factor": keys.get("rope.scaling.factor", 1.0)}
    if name.startswith("gemma"):
        config["query_pre_attn_scalar"] = _gemma_query_scalar(config)
    return config


def _gemma_query_scalar(config: dict[str, Any]) -> int | None:
    """Not in the file. As in llama.cpp: the 27B models take the mean head width, the others head_dim."""
    if (config["model_type"], config.get("num_hidden_layers")) in (("gemma2", 46), ("gemma3_text", 62)):
        return config["hidden_size"] // config["num_attention_heads"]
    return config.get("head_dim")


def open_gguf(file: GgufFile, spec: ModelSpec) -> Weights:
    """The tensors of a GGUF file under canonical names, in the layout of the Hugging Face checkpoint."""
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    quantized: dict[str, Callable[[], QuantizedWeight | None]] = {}
    for name in file.tensors:
        canonical = _canonical(name, spec)
        readers[canonical] = partial(file.tensor, name)
        quantized[canonical] = partial(file.quantized, name)
        if spec.arch in _PERMUTED and canonical.rpartition(".")[0].endswith(("q_proj", "k_proj")):
            heads = spec.n_heads if ".q_proj." in canonical else spec.n_kv_heads
            readers[canonical] = partial(_unpermuted, file, name, heads)
            quantized[canonical] = partial(_unpermuted_codes, file, name, heads)
    return Weights(str(file.path), readers, quantized)


def _canonical(name: str, spec: ModelSpec) -> str:
    """Our name of a tensor; names outside the table (``rope_freqs.weight``) stay."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    if match["part"] == "ffn_norm":
        part = "pre_feedforward_layernorm" if spec.sandwich else "post_attention_layernorm"
    else:
        part = _TENSORS.get(match["part"], match["part"])
    layer = f"layers.{match['layer']}." if match["layer"] else ""
    return f"{layer}{part}.{match['kind']}"


def _unpermuted(file: GgufFile, name: str, heads: int) -> torch.Tensor:
    return file.tensor(name)[_row_order(file, name, heads)]


def _unpermuted_codes(file: GgufFile, name: str, heads: int) -> QuantizedWeight | None:
    weight = file.quantized(name)
    return None if weight is None else weight.select(_row_order(file, name, heads))


def _row_order(file: GgufFile, name: str, heads: int) -> torch.Tensor:
    """Rows [N] from (pair, half) order back to (half, pair) order within each head."""
    rows = file.tensors[name].shape[0]
    if rows % (2 * heads):
        raise WcseError(f"{file.path}: tensor {name} has {rows} rows, not a multiple of {2 * heads}")
    return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)
