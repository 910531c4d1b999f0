"""The recipe of a run: every option, which of them change results, and how two recipes differ.

Field names are search-and-learn's where it has one, vLLM's for sampling. Knows nothing of models or engines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wcse.names import suggest
from wcse.search import ALIASES, STRATEGIES, SearchConfig
from wcse.types import Quantization, WcseError

Effect = Literal["results", "runtime"]

SHARED = "shared"
"""``prm`` value: a head on the policy's own hidden states instead of a second model."""


def _changes_results(default: Any, doc: str, **bounds: Any) -> Any:
    return Field(default, description=doc, json_schema_extra={"effect": "results"}, **bounds)


def _runtime_only(default: Any, doc: str, **bounds: Any) -> Any:
    return Field(default, description=doc, json_schema_extra={"effect": "runtime"}, **bounds)


class Recipe(BaseModel):
    """All options of a run. Unknown names and bad values are refused; build it with ``Recipe.parse``.

    Every field says whether it changes results or only how they are computed. A run may be resumed with other
    runtime fields, never with other results fields.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    policy: str = _changes_results(
        ..., "policy model: a folder, a .gguf file, an embedded name or a hub id", min_length=1
    )
    prm: str | None = _changes_results(None, "verifier: a model, 'shared' for a head on the policy, or none")
    prm_family: str | None = _changes_results(None, "how the verifier reads steps; none asks the model")
    quantization: Quantization | None = _changes_results(
        None, "the policy's weights in memory: int8, int4, or gguf (as the file has them); none is float32"
    )
    prm_quantization: Quantization | None = _changes_results(None, "the same for the verifier's weights")
    problems: str = _changes_results(..., "the problems' specification", min_length=1)
    limit: int | None = _changes_results(None, "keep only the first problems", ge=1)
    strategies: tuple[str, ...] = _changes_results(("majority",), "search strategies", min_length=1)
    n: int = _changes_results(4, "budget: solutions per problem", ge=1)
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

    batch_size: int | None = _runtime_only(None, "most rows in a batch; none lets the engine choose", ge=1)
    kv_memory_gb: float | None = _runtime_only(
        None, "memory for keys and values; none lets the engine choose", gt=0
    )
    threads: int | None = _runtime_only(None, "CPU threads; none takes torch's", ge=1)
    out: str | None = _runtime_only(None, "directory of the journal and the outputs")

    @field_validator("strategies")
    @classmethod
    def _known_strategies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(ALIASES.get(name, name) for name in value)
        for name in names:
            if name not in STRATEGIES:
                raise ValueError(
                    f"unknown strategy {name!r}{suggest(name, STRATEGIES)}; use {_join(STRATEGIES)}"
                )
        if len(set(names)) < len(names):
            raise ValueError("a strategy is given twice")
        return names

    @model_validator(mode="after")
    def _strategies_can_run(self) -> Recipe:
        if self.prm_quantization is not None and self.prm in (None, SHARED):
            raise ValueError(
                f"prm_quantization={self.prm_quantization} needs a verifier of its own; prm is {self.prm or 'none'}"
            )
        for name in self.strategies:
            if STRATEGIES[name].needs_prm and self.prm is None:
                raise ValueError(f"strategy {name} needs a verifier; set prm, or use greedy or majority")
            STRATEGIES[name].check(self.search_config)
        return self

    @property
    def search_config(self) -> SearchConfig:
        """What the strategies may know."""
        return SearchConfig(
            n=self.n,
            beam_width=self.beam_width,
            num_iterations=self.num_iterations,
            agg_strategy=self.agg_strategy,
        )

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Recipe:
        """A checked recipe.

        Raises:
            WcseError: one line that names each bad field, its value and the fix.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            raise WcseError("; ".join(_explain(dict(detail)) for detail in error.errors())) from error

    @classmethod
    def effect(cls, name: str) -> Effect:
        """Whether a field changes results or is runtime only."""
        extra = cls.model_fields[name].json_schema_extra
        assert isinstance(extra, dict)  # every field above is declared through one of the two helpers
        return "results" if extra["effect"] == "results" else "runtime"

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

    def diff(self, other: Recipe) -> list[str]:
        """Names of the results fields in which the two recipes differ."""
        return list(changed(self.results(), other.results()))


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two mappings: name -> (old value, new value), ``None`` for an absent name."""
    names = dict.fromkeys([*new, *old])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)


def _explain(detail: dict[str, Any]) -> str:
    field = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"unknown option {field!r}{suggest(field, Recipe.model_fields)}"
    if detail["type"] == "missing":
        return f"{field} is missing: {Recipe.model_fields[field].description}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{field}={detail['input']!r}: {message}" if field else message
