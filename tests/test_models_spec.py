"""Config to spec: defaults and spellings against transformers' config classes, and every refusal."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from wcse.models.spec import Rope, known_architectures, spec_from_hf
from wcse.types import WcseError

SIZES = {
    "vocab_size": 100,
    "hidden_size": 512,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
}


def config(arch: str, **fields: Any) -> dict[str, Any]:
    return {"model_type": arch} | SIZES | fields


@pytest.mark.parametrize("arch", known_architectures())
def test_silent_fields_mean_what_transformers_assumes(arch: str) -> None:
    complete = AutoConfig.for_model(**config(arch)).to_dict()
    assert spec_from_hf(config(arch)) == spec_from_hf(complete)


def test_old_and_new_rope_spelling_agree() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    window = {"original_max_position_embeddings": 128}
    old = config("llama", rope_theta=5e5, rope_scaling={"rope_type": "llama3"} | scaling | window)
    oldest = config("llama", rope_theta=5e5, rope_scaling={"type": "llama3"} | scaling | window)
    new = config("llama", rope_parameters={"rope_type": "llama3", "rope_theta": 5e5} | scaling | window)
    specs = {spec_from_hf(c) for c in (old, oldest, new)}
    assert specs == {spec_from_hf(AutoConfig.for_model(**old).to_dict())}
    assert specs.pop().layers[0].rope == Rope(5e5, "llama3", 8.0, 1.0, 4.0, 128)


def test_gemma3_ropes_and_windows_in_both_spellings() -> None:
    old = config(
        "gemma3_text",
        num_hidden_layers=7,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window=512,
    )
    new = AutoConfig.for_model(**old).to_dict()
    assert "rope_theta" not in new
    assert spec_from_hf(old) == spec_from_hf(new)
    layers = spec_from_hf(old).layers
    assert [layer.window for layer in layers] == [512] * 5 + [0, 512]
    assert layers[0].rope == Rope(1e4)
    assert layers[5].rope == Rope(1e6, "linear", 8.0)


def test_multimodal_gemma3_is_read_as_its_text_part() -> None:
    inner = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
    }
    spec = spec_from_hf({"model_type": "gemma3", "text_config": inner, "vision_config": {}})
    assert (spec.arch, spec.n_heads, spec.head_dim, spec.vocab_size) == ("gemma3_text", 8, 256, 262_208)
    assert spec.tied


def test_windows_of_mistral_and_qwen() -> None:
    assert {layer.window for layer in spec_from_hf(config("mistral", sliding_window=32)).layers} == {32}
    assert {layer.window for layer in spec_from_hf(config("mistral", sliding_window=None)).layers} == {0}
    off = config("qwen2", use_sliding_window=False, sliding_window=32, max_window_layers=3)
    assert {layer.window for layer in spec_from_hf(off).layers} == {0}
    on = off | {"use_sliding_window": True}
    assert [layer.window for layer in spec_from_hf(on).layers] == [0, 0, 0, 32, 32, 32, 32, 32]


def test_smollm3_leaves_rope_out_of_some_layers() -> None:
    by_interval = spec_from_hf(config("smollm3", no_rope_layer_interval=4))
    assert [layer.rope.kind for layer in by_interval.layers] == ["default"] * 3 + ["none"] + [
        "default"
    ] * 3 + ["none"]
    flags = [1, 0, 1, 1, 1, 1, 1, 0]
    by_flags = spec_from_hf(config("smollm3", no_rope_layers=flags))
    assert [int(layer.rope.kind != "none") for layer in by_flags.layers] == flags


def test_null_softcaps_are_off() -> None:
    spec = spec_from_hf(config("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None))
    assert (spec.attn_softcap, spec.final_softcap) == (0.0, 0.0)
    assert spec_from_hf(config("gemma2")).attn_softcap == 50.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"model_type": "mamba"},
            "model_type 'mamba' is not supported; known: gemma2, gemma3_text, llama, mistral",
        ),
        ({"model_type": None}, "model_type None is not supported"),
        ({"hidden_size": None}, "hidden_size must be a positive integer, not None"),
        ({"vocab_size": "100"}, "vocab_size must be a positive integer, not '100'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, not 0"),
        ({"num_key_value_heads": 5}, "multiple of the key-value heads"),
        ({"head_dim": 33}, "head_dim must be even"),
        (
            {"hidden_act": "relu"},
            "hidden_act 'relu' is not supported; known: gelu_new, gelu_pytorch_tanh, silu",
        ),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a positive number, not 'small'"),
        ({"rope_theta": -1}, "rope_theta must be a positive number, not -1"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope scaling 'yarn' is not supported (known: d",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor must be a positive number, not None"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
            "low_freq_factor must be a positive number",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object, not 'linear'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised safetensors cannot be read"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use a causal model"),
        (
            {"model_type": "gemma2", "sliding_window_pattern": 0},
            "sliding_window_pattern must be a positive int",
        ),
        ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "layer_types must hold 8 times"),
        (
            {"model_type": "qwen3", "layer_types": ["linear_attention"] * 8},
            "'full_attention' or 'sliding_attent",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(WcseError) as caught:
        spec_from_hf(config("llama") | changed)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
