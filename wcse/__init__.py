"""wcse: the Weak-Cheap Search Engine.

``from wcse import LLM, SamplingParams`` for generation; ``wcse.solve`` for search. Nothing heavy is imported
until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wcse.engine.llm import LLM, CompletionOutput, RequestOutput
    from wcse.engine.params import SamplingParams
    from wcse.problems import load_problems
    from wcse.recipe import Recipe
    from wcse.solve import solve_all
    from wcse.types import Problem, WcseError

_HOMES = {
    "LLM": "wcse.engine.llm",
    "CompletionOutput": "wcse.engine.llm",
    "RequestOutput": "wcse.engine.llm",
    "SamplingParams": "wcse.engine.params",
    "Recipe": "wcse.recipe",
    "load_problems": "wcse.problems",
    "solve_all": "wcse.solve",
    "Problem": "wcse.types",
    "WcseError": "wcse.types",
}

__all__ = [
    "LLM",
    "CompletionOutput",
    "Problem",
    "Recipe",
    "RequestOutput",
    "SamplingParams",
    "WcseError",
    "load_problems",
    "solve_all",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wcse' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
