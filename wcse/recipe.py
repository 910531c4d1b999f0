"""The recipe of a run: every option, which of them change results, and how two recipes differ.

Field names are search-and-learn's where it has one, vLLM's for sampling. Knows nothing of models or engines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wcse.budget import Budget
from wcse.names import suggest
from wcse.search import STRATEGIES, SearchConfig, get_strategy, parse_strategy
from wcse.shots import Shot, load_shots, shot_sets
from wcse.types import Quantization, WcseError

Effect = Literal["results", "runtime"]

SHARED = "shared"
"""``prm`` value: a head on the policy's own hidden states instead of a second model."""


def _changes_results(default: Any, doc: str, **bounds: Any) -> Any:
    return Field(default, description=doc, json_schema_extra={"effect": "results"}, **bounds)


def runtime_only(default: Any, doc: str, **bounds: Any) -> Any:
    """A field that changes how results are computed, not the results."""
    return Field(default, description=doc, json_schema_extra={"effect": "runtime"}, **bounds)


OWN = "policy:"
"""``prm`` values that begin so are measures of the policy's own certainty: ``policy:mean_logprob``."""


class Options(BaseModel):
    """Checked options. Unknown names and bad values are refused; build it with ``parse``.

    A field changes results unless it says that it is runtime only. A run may be resumed with other runtime
    fields, never with other results fields.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        """Checked options.

        Raises:
            WcseError: one line that names each bad field, its value and the fix.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            raise WcseError("; ".join(_explain(dict(detail), cls) for detail in error.errors())) from error

    @classmethod
    def effect(cls, name: str) -> Effect:
        """Whether a field changes results or is runtime only."""
        extra = cls.model_fields[name].json_schema_extra
        return "runtime" if isinstance(extra, dict) and extra.get("effect") == "runtime" else "results"

    def results(self) -> dict[str, Any]:
        """The fields that change results, as JSON values."""
        return {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if self.effect(name) == "results"
        }

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the fields that change results: equal digests, equal results."""
        canonical = json.dumps(self.results(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def diff(self, other: Self) -> list[str]:
        """Names of the results fields in which the two recipes differ."""
        return list(changed(self.results(), other.results()))


class Recipe(Options):
    """All options of a run. Every field says whether it changes results or only how they are computed."""

    policy: str = _changes_results(
        ..., "policy model: a folder, a .gguf file, an embedded name or a hub id", min_length=1
    )
    prm: str | None = _changes_results(
        None, "verifier: a model, 'shared' (a head on the policy), 'policy:MEASURE', or none"
    )
    prm_family: str | None = _changes_results(None, "how the verifier reads steps; none asks the model")
    quantization: Quantization | None = _changes_results(
        None,
        "the policy's weights in memory: int8, int4, or gguf (as the file has them); w8a8, w4a8, gguf_a8 round the "
        "inputs of every matrix to 8 bits too; fp8 on a GPU; none is those of dtype",
    )
    kv_cache_dtype: Literal["auto", "float16", "fp8"] | None = _changes_results(
        None, "keys and values: auto is as dtype, float16 takes half of float32's memory, fp8 is for a GPU"
    )
    prm_quantization: Quantization | None = _changes_results(None, "the same for the verifier's weights")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = _changes_results(
        None, "weights and arithmetic; auto is float32 on a CPU, bfloat16 on a GPU"
    )
    problems: str = _changes_results(..., "the problems' specification", min_length=1)
    limit: int | None = _changes_results(None, "keep only the first problems", ge=1)
    strategies: tuple[str, ...] = _changes_results(
        ("majority",), "search strategies, each with options of its own: name(option=value,...)", min_length=1
    )
    n: int = _changes_results(4, "budget: solutions per problem", ge=1)
    budget: str | None = _changes_results(
        None, "hard limit per problem: tokens, flops, seconds or money, as in tokens=20000"
    )
    strategy_policy: str | None = _changes_results(None, "policy file of wcse optimal, for the strategy auto")
    beam_width: int = _changes_results(4, "children of a kept step (beam search, DVTS)", ge=1)
    num_iterations: int = _changes_results(40, "most steps of a solution (beam search, DVTS)", ge=1)
    temperature: float = _changes_results(0.8, "sampling temperature; 0 is greedy", ge=0, le=2)
    top_p: float = _changes_results(1.0, "nucleus: smallest set of tokens with this probability", gt=0, le=1)
    top_k: int = _changes_results(0, "keep the k most likely tokens; 0 keeps all", ge=-1)
    min_p: float = _changes_results(0.0, "drop tokens below this share of the most likely one", ge=0, le=1)
    max_tokens: int = _changes_results(2048, "most tokens of one solution", ge=1)
    max_step_tokens: int = _changes_results(0, "most tokens of one step; 0 sets no limit", ge=0)
    delimiter: str = _changes_results("\n\n", "text that ends a step", min_length=1)
    agg_strategy: str | None = _changes_results(
        None, "from step scores to one score; none takes the verifier's own"
    )
    seed: int = _changes_results(42, "seed of all random numbers", ge=0, lt=2**63)
    system_prompt: str | None = _changes_results(None, "system turn before each problem")
    few_shot: str | None = _changes_results(
        None, f"solved examples before each problem: {', '.join(shot_sets())}, or a JSONL file"
    )
    few_shot_k: int | None = _changes_results(None, "use the first k examples only", ge=1)

    batch_size: int | None = runtime_only(None, "most rows in a batch; none lets the engine choose", ge=1)
    kv_memory_gb: float | None = runtime_only(
        None, "memory for keys and values of policy and verifier; none lets the engine choose", gt=0
    )
    device: str | None = runtime_only(None, "cpu or cuda; none is the CPU")
    threads: int | None = runtime_only(None, "CPU threads; none takes torch's", ge=1)
    out: str | None = runtime_only(None, "directory of the journal and the outputs")

    @field_validator("strategies")
    @classmethod
    def _known_strategies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(get_strategy(text)[0] for text in value)
        if len(set(names)) < len(names):
            raise ValueError("a strategy is given twice")
        return names

    @field_validator("budget")
    @classmethod
    def _possible_budget(cls, value: str | None) -> str | None:
        if value is not None:
            Budget.parse(value)
        return value

    @model_validator(mode="after")
    def _strategies_can_run(self) -> Recipe:
        if self.prm_quantization is not None and (self.prm in (None, SHARED) or self.prm.startswith(OWN)):
            raise ValueError(
                f"prm_quantization={self.prm_quantization} needs a verifier of its own; prm is {self.prm or 'none'}"
            )
        if self.few_shot_k is not None and self.few_shot is None:
            raise ValueError(f"few_shot_k={self.few_shot_k} without few_shot; give a set of examples")
        names = [parse_strategy(name).name for name in self.strategies]
        if ("auto" in names) != (self.strategy_policy is not None):
            raise ValueError(
                "strategy auto needs strategy_policy, a file that wcse optimal makes"
                if "auto" in names
                else "strategy_policy is for the strategy auto only; add auto to the strategies"
            )
        limit = Budget.parse(self.budget).solutions if self.budget else None
        for name in self.strategies:
            spec = parse_strategy(name)
            if limit is not None and spec.options.get("n", 0) > limit:
                raise ValueError(
                    f"strategy {name}: n={spec.options['n']} is above the budget of solutions={limit}; lower n"
                )
            if STRATEGIES[spec.name].needs_prm and self.prm is None:
                raise ValueError(f"strategy {name} needs a verifier; set prm, or use greedy or majority")
            STRATEGIES[spec.name].check(spec.config(self.search_config))
        return self

    @property
    def shots(self) -> tuple[Shot, ...]:
        """The few-shot examples.

        Raises:
            WcseError: they cannot be read.
        """
        return load_shots(self.few_shot, self.few_shot_k) if self.few_shot else ()

    @property
    def search_config(self) -> SearchConfig:
        """What the strategies may know."""
        limit = Budget.parse(self.budget).solutions if self.budget else None
        return SearchConfig(
            n=self.n if limit is None else min(self.n, limit),
            beam_width=self.beam_width,
            num_iterations=self.num_iterations,
            agg_strategy=self.agg_strategy,
        )


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two mappings: name -> (old value, new value), ``None`` for an absent name."""
    names = dict.fromkeys([*new, *old])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)


def _explain(detail: dict[str, Any], options: type[Options]) -> str:
    field = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"unknown option {field!r}{suggest(field, options.model_fields)}"
    if detail["type"] == "missing":
        known = options.model_fields.get(field)
        return f"{field} is missing{f': {known.description}' if known else ''}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{field}={detail['input']!r}: {message}" if field else message
