"""Run a script written for vLLM on our engine: ``python -m wcse.adapters.vllm_shim script.py ARGS``.

For the time of that process ``import vllm`` gives this module's names. Nothing is installed under that name.
Engine options without a meaning here are accepted by name and ignored; unknown ones are refused.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from enum import Enum
from types import ModuleType
from typing import Any, Self

from wcse.engine import llm as ours
from wcse.engine import outputs, params
from wcse.types import WcseError

IGNORED = frozenset(
    {
        "gpu_memory_utilization",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "enable_prefix_caching",
        "enforce_eager",
        "swap_space",
        "revision",
        "tokenizer_revision",
        "disable_log_stats",
        "max_num_batched_tokens",
        "enable_chunked_prefill",
        "task",
        "runner",
    }
)
"""Options of ``vllm.LLM`` that have no effect here."""


NO_EFFECT = frozenset(
    {
        "output_kind",
        "skip_clone",
        "skip_reading_prefix_cache",
        "spaces_between_special_tokens",
        "stream_interval",
    }
)
"""Fields of ``vllm.SamplingParams`` that change nothing in what ``LLM.generate`` returns."""


class SamplingParams(params.SamplingParams):
    """``vllm.SamplingParams``: 16 tokens where nothing is said; a field that we do not have may be there with no value;
    fields may be set after it was made, and are checked then."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __new__(cls, **options: Any) -> Self:
        return super().__new__(cls, **_taken(options))

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"max_tokens": 16} | _taken(options)))

    def __setattr__(self, name: str, value: Any) -> None:
        checked = replace(self, **{name: value})
        for field in fields(checked):
            object.__setattr__(self, field.name, getattr(checked, field.name))


def _taken(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with a meaning; those that are refused only if they ask for something."""
    empty = (None, False, 0)
    return {
        name: value
        for name, value in options.items()
        if name not in NO_EFFECT and not (name in params.REFUSED and value in empty)
    }


def structured_outputs(**kinds: Any) -> dict[str, Any]:
    """``vllm.sampling_params.StructuredOutputsParams`` as our field of the same name."""
    given = {kind: rule for kind, rule in kinds.items() if rule not in (None, False)}
    if given.pop("json_object", False):
        given["json"] = {"type": "object"}
    return given


class LLM(ours.LLM):
    """``vllm.LLM`` on our engine."""

    def __init__(self, model: str, **options: Any) -> None:
        if options.pop("trust_remote_code", False):
            raise WcseError(
                "trust_remote_code=True: code from a model folder is never run; remove the option"
            )
        tokenizer = options.pop("tokenizer", None)
        if tokenizer not in (None, model):
            raise WcseError(f"tokenizer={tokenizer!r}: the model's own tokenizer is used; remove the option")
        super().__init__(model, **{name: v for name, v in options.items() if name not in IGNORED})


def make_module() -> ModuleType:
    """A module that looks like vLLM's top level."""
    module = ModuleType("vllm")
    module.LLM = LLM  # type: ignore[attr-defined]
    module.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    module.__version__ = "0.0+wcse"  # type: ignore[attr-defined]
    for name in ("RequestOutput", "CompletionOutput", "PoolingRequestOutput"):
        setattr(module, name, getattr(outputs, name))
    module.__path__ = []
    submodule = ModuleType("vllm.outputs")
    submodule.__dict__.update({k: v for k, v in vars(outputs).items() if k[0].isupper()})
    module.outputs = submodule  # type: ignore[attr-defined]
    sampling = ModuleType("vllm.sampling_params")
    sampling.__dict__.update(
        SamplingParams=SamplingParams,
        StructuredOutputsParams=structured_outputs,
        RequestOutputKind=Enum("RequestOutputKind", ["CUMULATIVE", "DELTA", "FINAL_ONLY"], start=0),
    )
    module.sampling_params = sampling  # type: ignore[attr-defined]
    return module


def main(argv: list[str]) -> None:
    """Run a script with its arguments.

    Raises:
        WcseError: no script is named.
    """
    if not argv:
        raise WcseError("script: give the script to run, and its arguments")
    module = make_module()
    sys.modules["vllm"] = module
    sys.modules["vllm.outputs"] = module.outputs
    sys.modules["vllm.sampling_params"] = module.sampling_params
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
