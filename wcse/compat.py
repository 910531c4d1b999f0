"""search-and-learn's YAML recipes as options of ``wcse solve``. Knows names and rules, runs nothing.

Its keys are translated where a run of ours has the same thing, passed over where they only say how it is
computed or where it is stored, and refused where they are unknown or cannot be honoured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wcse.names import suggest
from wcse.search.config import SEARCH_AND_LEARN
from wcse.types import WcseError

_SAME = ("n", "temperature", "top_p", "max_tokens", "seed", "agg_strategy", "beam_width", "num_iterations")
_DEFAULTS: dict[str, Any] = {
    "approach": "best_of_n",
    "model_path": "meta-llama/Llama-3.2-1B-Instruct",
    "prm_path": "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data",
    "dataset_name": "HuggingFaceH4/MATH-500",
    "dataset_split": "test",
    "dataset_start": None,
    "dataset_end": None,
    "num_samples": None,
    "system_prompt": None,
    "custom_chat_template": None,
    "output_dir": None,
    "n": 4,
    "temperature": 0.8,
    "top_p": 1.0,
    "max_tokens": 2048,
    "seed": 42,
    "agg_strategy": "last",
    "beam_width": 4,
    "num_iterations": 40,
    "lookahead": 0,
    "filter_duplicates": False,
    "sort_completed": False,
}
"""Its defaults at commit 6f81cac."""

_PASSED_OVER = frozenset(
    {
        "gpu_memory_utilization",
        "prm_batch_size",
        "search_batch_size",
        "apply_voting",
        "dataset_config",
        "num_proc",
        "push_to_hub",
        "hub_dataset_id",
        "hub_dataset_private",
        "overwrite_hub_revision",
    }
)
_APPROACHES = {"best_of_n": "weighted_best_of_n", "beam_search": "beam_search", "dvts": "dvts"}


def read_recipe(path: str, *, exact: bool = False) -> dict[str, Any]:
    """The options of ``wcse solve`` that a search-and-learn recipe asks for.

    Args:
        path: the YAML file.
        exact: follow that project's rules of search, too (``compat=search-and-learn``), instead of ours.

    Raises:
        WcseError: no such file, no YAML, a key that neither side knows, or one that cannot be honoured.
    """
    given = _load(path)
    known = {*_DEFAULTS, *_PASSED_OVER}
    for key in given:
        if key not in known:
            raise WcseError(
                f"{path}: unknown key {key!r}{suggest(key, known)}; it is none of search-and-learn's"
            )
    values = {**_DEFAULTS, **given}
    if values["dataset_start"] not in (None, 0):
        raise WcseError(
            f"{path}: dataset_start={values['dataset_start']}: only a start at 0 can be read; cut the data"
        )
    if values["custom_chat_template"] is not None:
        raise WcseError(
            f"{path}: custom_chat_template: prompts are rendered by the model's own template; leave it out or set it "
            "to null, and put another template into the model's tokenizer_config.json"
        )
    limits = [values[key] for key in ("dataset_end", "num_samples") if values[key] is not None]
    options = {key: values[key] for key in _SAME}
    options |= {
        "policy": values["model_path"],
        "prm": values["prm_path"],
        "problems": f"{values['dataset_name']}:split={values['dataset_split']}",
        "strategies": (_strategy(path, values, exact=exact),),
    }
    optional = {"limit": min(limits) if limits else None, "system_prompt": values["system_prompt"]}
    optional |= {"out": values["output_dir"]}
    return options | {key: value for key, value in optional.items() if value is not None}


def _strategy(path: str, values: Mapping[str, Any], *, exact: bool) -> str:
    approach = values["approach"]
    if approach not in _APPROACHES:
        raise WcseError(
            f"{path}: approach={approach!r} is unknown{suggest(str(approach), _APPROACHES)}; "
            f"use one of {', '.join(_APPROACHES)}"
        )
    own: list[str] = []
    if values["lookahead"] and approach != "best_of_n":
        own.append(f"lookahead={values['lookahead']}")
    if exact and approach != "best_of_n":
        own.append(f"compat={SEARCH_AND_LEARN}")
        if approach == "beam_search":
            own += [f"{key}={str(values[key]).lower()}" for key in ("filter_duplicates", "sort_completed")]
    return f"{_APPROACHES[approach]}({','.join(own)})" if own else _APPROACHES[approach]


def _load(path: str) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise WcseError(f"{path}: {error.strerror}; give a search-and-learn recipe") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WcseError(f"{path}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise WcseError(f"{path}: not a recipe; it must hold keys and values")
    return {str(key): value for key, value in data.items()}
