"""Run a script written for vLLM on our engine: ``python -m wcse.adapters.vllm_shim script.py ARGS``.

For the time of that process ``import vllm`` gives this module's names. Nothing is installed under that name.
Engine options without a meaning here are accepted by name and ignored; unknown ones are refused.
"""

from __future__ import annotations

import runpy
import sys
from dataclasses import fields, replace
from types import ModuleType
from typing import Any

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


class SamplingParams(params.SamplingParams):
    """``vllm.SamplingParams``: its fields may be set after it was made, and are checked then."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __setattr__(self, name: str, value: Any) -> None:
        checked = replace(self, **{name: value})
        for field in fields(checked):
            object.__setattr__(self, field.name, getattr(checked, field.name))


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
    sampling.SamplingParams = SamplingParams  # type: ignore[attr-defined]
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
