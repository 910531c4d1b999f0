"""The fields of ``SamplingParams``: bounds, names, and what of vLLM's is taken or refused."""

from __future__ import annotations

import copy
import math
import pickle
import re
from dataclasses import fields, replace
from typing import Any

import pytest
from doc_examples import DOCS

from wcse.adapters.vllm_shim import NO_EFFECT, make_module
from wcse.engine.params import REFUSED, FieldError, SamplingParams

NUMBERS = (
    "n",
    "best_of",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "min_tokens",
    "seed",
    "logprobs",
    "prompt_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
GOOD = {
    "temperature": {0},
    "top_k": {0, -1},
    "min_p": {0},
    "min_tokens": {0},
    "seed": {0, -1, 2**62},
    "logprobs": {0, -1, 2**62, 2**80},
    "prompt_logprobs": {0, -1, 2**62, 2**80},
    "presence_penalty": {0, -1},
    "frequency_penalty": {0, -1},
    "max_tokens": {2**62},
}


@pytest.mark.parametrize("value", [0, -1, 2**62, 2**80, 1e300, math.nan, math.inf, -math.inf, "7", [1], True])
@pytest.mark.parametrize("name", NUMBERS)
def test_every_numeric_field_is_bounded(name: str, value: Any) -> None:
    if type(value) is int and value in GOOD.get(name, set()):
        SamplingParams(**{name: value})
        return
    with pytest.raises(FieldError, match=f"{name}=") as caught:
        SamplingParams(**{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", [""]),
        ("stop", 7),
        ("stop", ["\ud800"]),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", [-1]),
        ("bad_words", [3]),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [1.5]),
        ("logit_bias", [1]),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1": math.nan}),
        ("logit_bias", {1: 101}),
        ("ignore_eos", 1),
        ("structured_outputs", {"json": {}, "regex": "a"}),
        ("structured_outputs", {"xml": "a"}),
        ("structured_outputs.choice", {"choice": []}),
    ],
)
def test_other_bad_fields_are_named(name: str, value: Any) -> None:
    with pytest.raises(FieldError) as caught:
        SamplingParams(**{name.partition(".")[0]: value})
    assert caught.value.field == name


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(FieldError, match="did you mean 'temperature'") as caught:
        SamplingParams(temprature=1)  # type: ignore[call-arg]
    assert isinstance(caught.value, TypeError), "as of any unknown keyword argument"
    with pytest.raises(FieldError) as caught:
        SamplingParams(top_p=2)
    assert isinstance(caught.value, ValueError) and not isinstance(caught.value, TypeError)
    with pytest.raises(FieldError, match="made_up=1: there is no such"):
        replace(SamplingParams(), made_up=1)  # type: ignore[call-arg]


VLLM_FIELDS = """
    n presence_penalty frequency_penalty repetition_penalty temperature watermarking top_p top_k min_p seed stop
    stop_token_ids ignore_eos max_tokens min_tokens logprobs prompt_logprobs prompt_logprob_token_ids
    prompt_logprob_start logprob_token_ids flat_logprobs detokenize skip_special_tokens spaces_between_special_tokens
    include_stop_str_in_output output_kind stream_interval skip_clone structured_outputs logit_bias allowed_token_ids
    extra_args bad_words skip_reading_prefix_cache thinking_token_budget repetition_detection
    routed_experts_prompt_start trace_decode_token_ids
"""
"""The public fields of ``vllm.SamplingParams`` 0.32."""


def test_each_field_of_vllm_is_taken_or_refused() -> None:
    """The page about vLLM's scripts lists every one of them, and says of each what the code does."""
    table = re.findall(
        r"^\| (`.*?) \| (yes|no)\b", (DOCS / "vllm.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    said = {name: verdict == "yes" for names, verdict in table for name in re.findall(r"`(\w+)`", names)}
    ours = {field.name for field in fields(SamplingParams)}
    assert set(said) == {*VLLM_FIELDS.split(), *REFUSED, *ours}
    for name, taken in said.items():
        assert taken == (name in ours) != (name in REFUSED), name


@pytest.mark.parametrize("name", REFUSED)
def test_what_vllm_has_and_we_do_not_says_what_to_do(name: str) -> None:
    for kind in (SamplingParams, make_module().SamplingParams):
        if kind is SamplingParams or name not in NO_EFFECT:
            with pytest.raises(FieldError, match=f"{name}=7: .*[a-z]") as caught:
                kind(**{name: 7})
            assert caught.value.field == name and "no such" not in str(caught.value)


def test_a_script_of_vllm_may_name_what_it_does_not_use() -> None:
    """Fields without an effect on the outputs, and those that are refused, with the value that means nothing."""
    vllm = make_module()
    rules = vllm.sampling_params.StructuredOutputsParams(choice=["a", "b"], regex=None, json_object=None)
    kind = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
    given = vllm.SamplingParams(
        n=2, output_kind=kind, skip_clone=True, flat_logprobs=False, extra_args=None, structured_outputs=rules
    )
    assert given == vllm.SamplingParams(n=2, max_tokens=16, structured_outputs={"choice": ["a", "b"]})
    objects = vllm.sampling_params.StructuredOutputsParams(json_object=True)
    assert vllm.SamplingParams(structured_outputs=objects).structured_outputs == {"json": {"type": "object"}}
    with pytest.raises(FieldError, match="structured_outputs"):
        vllm.SamplingParams(
            structured_outputs=vllm.sampling_params.StructuredOutputsParams(structural_tag="x")
        )


def test_parameters_survive_copies() -> None:
    params = SamplingParams(n=3, stop="x", logit_bias={"4": 1})
    assert pickle.loads(pickle.dumps(params)) == copy.deepcopy(params) == params


def test_a_tiny_temperature_is_raised() -> None:
    with pytest.warns(UserWarning, match="raised to 0.01"):
        assert SamplingParams(temperature=1e-9).temperature == 0.01
