"""What a model is, as data: ``ModelSpec`` and how to read one from a Hugging Face ``config.json``.

An architecture is one row of ``_ARCHITECTURES``: how it differs from the plain Llama block. Both spellings of
the rope fields are read (``rope_theta``/``rope_scaling`` and the newer ``rope_parameters``). A feature that
would change the arithmetic and is not supported is refused, never ignored. Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wcse.types import WcseError

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: the frequency of pair j is ``theta^(-2j/head_dim)``, then scaled as ``kind`` says.

    ``kind`` is "default", "linear" (divide by ``factor``), "llama3" (divide the frequencies of the long
    wavelengths by ``factor``, blend in between) or "none" (positions are not encoded).
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """``window`` > 0: a row sees the last ``window`` positions, itself included; 0: all of them."""

    window: int
    rope: Rope


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything the decoder needs to know about a model except its weights."""

    arch: str
    vocab_size: int
    dim: int
    ffn_dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    context: int  # positions the model was made for
    layers: tuple[LayerSpec, ...]
    eps: float
    act: str  # "silu" or "gelu_tanh"
    tied: bool  # the output matrix is the embedding
    attn_scale: float
    attn_softcap: float = 0.0  # 0: none
    final_softcap: float = 0.0
    embed_scale: float = 1.0
    norm_offset: float = 0.0  # a norm multiplies by (weight + offset)
    sandwich: bool = False  # attention and MLP outputs are normed too, before they are added
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True, slots=True)
class _Arch:
    """How an architecture differs from Llama; ``defaults`` are what its config class assumes when silent."""

    gemma: bool = False  # (1 + w) norms, scaled embedding, gelu, sandwich norms, query_pre_attn_scalar
    qk_norm: bool = False
    qkv_bias: bool = False  # always, without asking the config
    config_bias: bool = False  # attention_bias / mlp_bias of the config count
    softcaps: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)


_GEMMA: dict[str, Any] = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_QWEN: dict[str, Any] = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
_ARCHITECTURES: dict[str, _Arch] = {
    "llama": _Arch(config_bias=True, defaults={"max_position_embeddings": 2048}),
    "mistral": _Arch(
        defaults={"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131_072}
    ),
    "qwen2": _Arch(qkv_bias=True, defaults=_QWEN),
    "qwen3": _Arch(qk_norm=True, config_bias=True, defaults=_QWEN | {"head_dim": 128}),
    "smollm3": _Arch(
        config_bias=True,
        defaults={
            "num_key_value_heads": 4,
            "rope_theta": 2_000_000.0,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
        },
    ),
    "gemma2": _Arch(
        gemma=True,
        config_bias=True,
        softcaps=("attn_logit_softcapping", "final_logit_softcapping"),
        defaults=_GEMMA
        | {
            "num_key_value_heads": 4,
            "max_position_embeddings": 8192,
            "sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3_text": _Arch(
        gemma=True,
        qk_norm=True,
        config_bias=True,
        softcaps=("final_logit_softcapping",),
        defaults=_GEMMA
        | {
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
            "sliding_window_pattern": 6,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
    ),
}
_ALL_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
_ACTS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_REFUSED = {
    "use_bidirectional_attention": "bidirectional attention has no KV cache; use a causal model",
    "quantization_config": "quantised safetensors cannot be read; use the original checkpoint or a GGUF",
}


def known_architectures() -> list[str]:
    """The ``model_type`` names that ``spec_from_hf`` understands."""
    return sorted(_ARCHITECTURES)


def spec_from_hf(config: Config) -> ModelSpec:
    """Read a model's spec from the content of its ``config.json``.

    Raises:
        WcseError: unknown architecture, a required field is missing or has a wrong value, or a field asks for
            something that the decoder does not do (an unsupported rope scaling, say).
    """
    config = _text_config(config)
    name = config.get("model_type")
    if name not in _ARCHITECTURES:
        raise WcseError(
            f"config.json: model_type {name!r} is not supported; known: {', '.join(known_architectures())}"
        )
    for key, advice in _REFUSED.items():
        if config.get(key):
            raise WcseError(f"config.json: {key} is set: {advice}")
    arch = _ARCHITECTURES[name]
    known = {key: value for key, value in config.items() if value is not None}
    # An explicit null is an answer for these ("no sliding window", "as many as heads"), silence elsewhere.
    nullable = ("sliding_window", "num_key_value_heads", *arch.softcaps)
    nulls = {key: None for key in nullable if key in config and config[key] is None}
    values = _ALL_DEFAULTS | arch.defaults | known | nulls

    dim, heads = _positive(values, "hidden_size"), _positive(values, "num_attention_heads")
    kv_heads = _positive(values, "num_key_value_heads") if values.get("num_key_value_heads") else heads
    head_dim = _positive(values, "head_dim") if "head_dim" in values else dim // heads
    if heads % kv_heads or head_dim % 2:
        raise WcseError(
            f"config.json: num_attention_heads {heads}, num_key_value_heads {kv_heads}, head_dim {head_dim}: "
            "the heads must be a multiple of the key-value heads, and head_dim must be even"
        )
    biased = arch.config_bias and bool(values.get("attention_bias"))
    caps = {key: _number(values, key) if values.get(key) else 0.0 for key in arch.softcaps}
    return ModelSpec(
        arch=name,
        vocab_size=_positive(values, "vocab_size"),
        dim=dim,
        ffn_dim=_positive(values, "intermediate_size"),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        context=_positive(values, "max_position_embeddings"),
        layers=_layers(values, _positive(values, "num_hidden_layers")),
        eps=_number(values, "rms_norm_eps"),
        act=_act(values, arch),
        tied=bool(values["tie_word_embeddings"]),
        attn_scale=(_number(values, "query_pre_attn_scalar") if arch.gemma else head_dim) ** -0.5,
        attn_softcap=caps.get("attn_logit_softcapping", 0.0),
        final_softcap=caps.get("final_logit_softcapping", 0.0),
        embed_scale=dim**0.5 if arch.gemma else 1.0,
        norm_offset=1.0 if arch.gemma else 0.0,
        sandwich=arch.gemma,
        qk_norm=arch.qk_norm,
        qkv_bias=arch.qkv_bias or biased,
        o_bias=biased,
        mlp_bias=arch.config_bias and bool(values.get("mlp_bias")),
    )


def _text_config(config: Config) -> Config:
    """The language part of a multimodal Gemma-3 config; any other config unchanged."""
    inner = config.get("text_config")
    if config.get("model_type") != "gemma3" or not isinstance(inner, Mapping):
        return config
    return {"model_type": "gemma3_text", **inner}


def _positive(values: Config, key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise WcseError(f"config.json: {key} must be a positive integer, not {value!r}")
    return value


def _number(values: Config, key: str) -> float:
    value = values.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise WcseError(f"config.json: {key} must be a positive number, not {value!r}")
    return float(value)


def _act(values: Config, arch: _Arch) -> str:
    key = "hidden_activation" if arch.gemma else "hidden_act"
    act = values[key]
    if act not in _ACTS:
        raise WcseError(f"config.json: {key} {act!r} is not supported; known: {', '.join(sorted(_ACTS))}")
    return _ACTS[act]


def _layers(values: Config, count: int) -> tuple[LayerSpec, ...]:
    """Window and rope of every layer."""
    kinds = _layer_kinds(values, count)
    ropes = {kind: _rope(values, kind) for kind in set(kinds)}
    window = _positive(values, "sliding_window") if values.get("sliding_window") else 0
    if values["model_type"] in ("qwen2", "qwen3", "smollm3") and not values.get("use_sliding_window"):
        window = 0  # these configs carry a window that is switched off
    no_rope = Rope(kind="none")
    return tuple(
        LayerSpec(
            window=window if kind == "sliding_attention" else 0,
            rope=ropes[kind] if _has_rope(values, layer) else no_rope,
        )
        for layer, kind in enumerate(kinds)
    )


def _layer_kinds(values: Config, count: int) -> list[str]:
    """The kind of every layer: "full_attention" or "sliding_attention"."""
    arch = values["model_type"]
    kinds = values.get("layer_types")
    if arch in ("llama", "mistral"):  # they have no mixed layers: transformers ignores layer_types here too
        sliding = arch == "mistral" and values.get("sliding_window")
        kinds = ["sliding_attention" if sliding else "full_attention"] * count
    elif kinds is None:
        kinds = ["sliding_attention" if _slides(values, i) else "full_attention" for i in range(count)]
    known = {"full_attention", "sliding_attention"}
    if not isinstance(kinds, list) or len(kinds) < count or set(kinds) - known:
        raise WcseError(
            f"config.json: layer_types must hold {count} times 'full_attention' or 'sliding_attention', "
            f"not {kinds!r}"
        )
    return list(kinds[:count])


def _slides(values: Config, layer: int) -> bool:
    """Whether a layer has a sliding window in configs that do not list ``layer_types``."""
    if "sliding_window_pattern" in values:  # Gemma: every pattern-th layer is global
        return bool((layer + 1) % _positive(values, "sliding_window_pattern"))
    if not values.get("use_sliding_window"):
        return False
    if values["model_type"] == "smollm3":
        return not _has_rope(values, layer)
    return layer >= values["max_window_layers"]


def _has_rope(values: Config, layer: int) -> bool:
    """SmolLM3 leaves rope out of every fourth layer; the flags list is spelled the other way round."""
    if values["model_type"] != "smollm3":
        return True
    flags = values.get("no_rope_layers")
    if flags is not None and layer < len(flags):
        return bool(flags[layer])
    return bool((layer + 1) % _positive(values, "no_rope_layer_interval"))


def _rope(values: Config, kind: str) -> Rope:
    """The rope of the layers of one kind, from either spelling."""
    local = kind == "sliding_attention" and "rope_local_base_freq" in values
    scaling = _mapping(values, "rope_parameters")
    if {"full_attention", "sliding_attention"} & scaling.keys():
        scaling = _mapping(scaling, kind)
    if not local:  # the old spelling scales only Gemma-3's global layers
        scaling |= _mapping(values, "rope_scaling")
    if "partial_rotary_factor" in values:
        scaling.setdefault("partial_rotary_factor", values["partial_rotary_factor"])
    scaling.setdefault("rope_theta", values["rope_local_base_freq" if local else "rope_theta"])
    scaling.setdefault("original_max_position_embeddings", values["max_position_embeddings"])
    return _scaled_rope(scaling)


def _mapping(values: Config, key: str) -> dict[str, Any]:
    """A nested object without its nulls; {} if there is none."""
    nested = values.get(key) or {}
    if not isinstance(nested, Mapping):
        raise WcseError(f"config.json: {key} must be an object, not {nested!r}")
    return {name: value for name, value in nested.items() if value is not None}


def _scaled_rope(scaling: Config) -> Rope:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if scaling.get("partial_rotary_factor", 1.0) != 1.0 or scaling.get("mrope_section"):
        raise WcseError("config.json: partial_rotary_factor and mrope_section are not supported")
    theta = _number(scaling, "rope_theta")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, _number(scaling, "factor"))
    if kind == "llama3":
        return Rope(
            theta,
            kind,
            _number(scaling, "factor"),
            _number(scaling, "low_freq_factor"),
            _number(scaling, "high_freq_factor"),
            _positive(scaling, "original_max_position_embeddings"),
        )
    raise WcseError(
        f"config.json: rope scaling {kind!r} is not supported (known: default, linear, llama3); "
        "remove rope_scaling to use the model within its original context"
    )
