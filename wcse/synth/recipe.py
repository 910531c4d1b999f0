"""The recipe of a data set: problems, samplers, the match between them, filters and exports.

Knows neither models nor files besides its own YAML. Field names are those of ``wcse.recipe`` where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from wcse.names import suggest
from wcse.recipe import OWN, SHARED, Options, Recipe, runtime_only
from wcse.search import STRATEGIES
from wcse.types import Quantization, WcseError

MATCHES = {
    "flops": "2 x parameters x tokens, measured: each side's own lengths, the prompt once a call, verifiers too",
    "params": "samples in the inverse ratio of the parameter counts: floor(P_SE / P_WC x S_SE)",
    "money": "the prices of what was read and written",
    "seconds": "time on this machine",
    "samples": "the same number of samples",
}
EXPORTS = ("sft", "prompt_completion", "dpo", "kto", "prm", "grpo", "rationale")

_DERIVED = ("grid", "tolerance", "filters", "export", "rows_per_shard")
"""Fields that change what is derived from the samples, not the samples."""


class SamplerSpec(Options):
    """One source of samples."""

    model: str = Field(description="a model: folder, .gguf file, embedded name or hub id", min_length=1)
    prm: str | None = Field(None, description="verifier, as in wcse solve; none leaves steps without scores")
    prm_family: str | None = Field(None, description="how the verifier reads steps; none asks the model")
    strategy: str = Field("majority", description="majority is plain sampling; any search strategy")
    beam_width: int = Field(4, description="children of a kept step (beam search, DVTS)", ge=1)
    temperature: float = Field(0.8, description="sampling temperature; 0 is greedy", ge=0, le=2)
    top_p: float = Field(1.0, description="nucleus probability", gt=0, le=1)
    max_tokens: int = Field(1024, description="most tokens of one solution", ge=1)
    delimiter: str = Field("\n\n", description="text that ends a step", min_length=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(
        None, description="weights and arithmetic; auto is float32 on a CPU, bfloat16 on a GPU"
    )
    kv_cache_dtype: Literal["auto", "float16", "fp8"] | None = Field(
        None, description="keys and values, as in wcse solve"
    )
    quantization: Quantization | None = Field(
        None, description="the model's weights in memory, as in wcse solve"
    )
    system_prompt: str | None = Field(None, description="system turn before each problem")
    few_shot: str | None = Field(None, description="solved examples before it: a set's name or a JSONL file")
    few_shot_k: int | None = Field(None, description="use the first k examples only", ge=1)
    price: tuple[float, float] | None = Field(
        None, description="money for a million tokens read and written, for the match 'money'"
    )
    prm_price: float | None = Field(
        None, description="money for a million tokens that the verifier reads", ge=0
    )
    parameters: int | None = Field(None, description="parameter count; none counts the model's own", ge=1)
    license: str | None = Field(None, description="the model's licence, for the data set's card")

    @field_validator("strategy")
    @classmethod
    def _known(cls, value: str) -> str:
        name = {"sample": "majority", "beam": "beam_search"}.get(value, value)
        if name not in STRATEGIES:
            raise ValueError(
                f"unknown strategy {value!r}{suggest(value, STRATEGIES)}; use {', '.join(STRATEGIES)}"
            )
        return name

    @field_validator("price")
    @classmethod
    def _priced(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and (min(value) < 0 or max(value) == 0):
            raise ValueError("give two prices of at least 0, read and written, not both 0")
        return value

    @property
    def quantum(self) -> int:
        """Sample counts must be multiples of this."""
        return self.beam_width if self.strategy in ("beam_search", "dvts") else 1

    @property
    def verifier(self) -> str | None:
        """The verifier, where it is a model of its own: not a head on the policy, nor the policy's certainty."""
        own = self.prm is not None and self.prm != SHARED and not self.prm.startswith(OWN)
        return self.prm if own else None

    @property
    def reads_verifier(self) -> bool:
        """A verifier of its own reads every token; a shared head reads none."""
        return STRATEGIES[self.strategy].needs_prm and self.verifier is not None


class FilterSpec(Options):
    """Which samples become training data. Every filter that is set must pass, in this order."""

    answer: Literal["gold", "none"] = Field("gold", description="gold keeps right answers; none asks nothing")
    agreement: float | None = Field(
        None, description="keep answers of at least this share of the problem's votes", gt=0, le=1
    )
    min_score: float | None = Field(None, description="keep solutions that the verifier scores at least so")
    dedupe: Literal["text", "steps", "none"] = Field(
        "text", description="drop repeats within a problem: by normalised text, by the set of steps, or not"
    )
    contamination: tuple[str, ...] = Field((), description="evaluation sets whose n-grams must not occur")
    ngram: int = Field(13, description="words of an n-gram that counts as contamination", ge=2)
    max_per_problem: int | None = Field(None, description="most kept solutions of a problem", ge=1)


class SynthRecipe(Options):
    """All options of ``wcse synth``; build it with ``SynthRecipe.parse`` or ``load_recipe``."""

    problems: str = Field(description="the problems' specification", min_length=1)
    limit: int | None = Field(None, description="keep only the first problems", ge=1)
    samplers: dict[str, SamplerSpec] = Field(description="the samplers by name, such as wc and se")
    reference: str | None = Field(
        None, description="the sampler that sets the budget; default se, or the last"
    )
    n: int = Field(4, description="samples per problem of the reference", ge=1)
    grid: tuple[int, ...] = Field(
        (), description="sample counts of the reference to measure at; default 1, 3, 9, ..."
    )
    match: str = Field("flops", description=f"what is equal: {', '.join(MATCHES)}")
    tolerance: float = Field(0.01, description="largest relative difference of the costs", gt=0, le=1)
    filters: FilterSpec = Field(FilterSpec.parse({}), description="which samples become training data")
    export: tuple[str, ...] = Field(("sft",), description=f"formats: {', '.join(EXPORTS)}")
    rows_per_shard: int = Field(100_000, description="rows of one exported file", ge=1)
    seed: int = Field(42, description="seed of all random numbers", ge=0, lt=2**63)

    out: str | None = runtime_only(None, "directory of the journal and the outputs")
    workers: int = runtime_only(0, "worker processes; 0 works in this one", ge=0, le=256)
    ray: str | None = runtime_only(
        None,
        "work on a Ray cluster: its address, or local to start one here; workers is then the number of actors",
    )
    unit_seconds: float = runtime_only(600.0, "a worker that is silent for longer is killed", gt=0)
    batch_size: int | None = runtime_only(None, "most rows in a batch", ge=1)
    kv_memory_gb: float | None = runtime_only(None, "memory for keys and values", gt=0)
    device: str | None = runtime_only(None, "cpu or cuda; none is the CPU")
    threads: int | None = runtime_only(None, "CPU threads", ge=1)

    @field_validator("match")
    @classmethod
    def _known_match(cls, value: str) -> str:
        if value not in MATCHES:
            raise ValueError(f"unknown match {value!r}{suggest(value, MATCHES)}; use {', '.join(MATCHES)}")
        return value

    @field_validator("export")
    @classmethod
    def _known_exports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in EXPORTS:
                raise ValueError(f"unknown format {name!r}{suggest(name, EXPORTS)}; use {', '.join(EXPORTS)}")
        return tuple(dict.fromkeys(value))

    @field_validator("samplers")
    @classmethod
    def _named(cls, value: dict[str, SamplerSpec]) -> dict[str, SamplerSpec]:
        if not value:
            raise ValueError("no samplers; give at least one, such as wc: {model: tiny-wc}")
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"sampler name {name!r}: use letters, digits and _")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SynthRecipe:
        if self.reference is not None and self.reference not in self.samplers:
            raise ValueError(
                f"reference {self.reference!r} is no sampler; there are {', '.join(self.samplers)}"
            )
        if any(k < 1 or k > self.n for k in self.grid):
            raise ValueError(f"grid={list(self.grid)} must lie in 1..n={self.n}")
        for name, spec in self.samplers.items():
            self._check_sampler(name, spec)
        return self

    def _check_sampler(self, name: str, spec: SamplerSpec) -> None:
        self.unit_recipe(name, 0, spec.quantum)  # what wcse solve would refuse is refused now
        if name == self.reference_name and self.n % spec.quantum:
            raise ValueError(f"n={self.n} is not a multiple of beam_width={spec.quantum} of sampler {name}")
        deterministic = spec.strategy == "greedy" or spec.temperature == 0
        if deterministic and not (self.n == 1 and (name == self.reference_name or self.match == "samples")):
            raise ValueError(
                f"sampler {name} is deterministic and would repeat itself; raise its temperature"
            )
        if self.match == "money" and len(self.samplers) > 1:
            if spec.price is None:
                raise ValueError(f"match=money: sampler {name} has no price; set price: [read, written]")
            if spec.reads_verifier and spec.prm_price is None:
                raise ValueError(f"match=money: sampler {name} has a verifier without prm_price; set it")

    @property
    def reference_name(self) -> str:
        """The sampler that sets the budget."""
        if self.reference is not None:
            return self.reference
        return "se" if "se" in self.samplers else list(self.samplers)[-1]

    @property
    def order(self) -> tuple[str, ...]:
        """Samplers in the order in which they run: the reference first, for its cost is the others' budget."""
        first = self.reference_name
        return (first, *(name for name in self.samplers if name != first))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sample counts of the reference to measure at: the grid, or 1, 3, 9, ... and ``n``."""
        if self.grid:
            return tuple(sorted(set(self.grid)))
        powers = [3**i for i in range(20) if 3**i < self.n]
        return (*powers, self.n)

    def generation(self) -> dict[str, Any]:
        """The fields that change the samples, flat: ``samplers.wc.temperature`` and so on.

        A run may be resumed, and its outputs written again, with other filters, grids and formats.
        """
        values = {name: value for name, value in self.results().items() if name not in _DERIVED}
        for name, spec in values.pop("samplers").items():
            values |= {f"samplers.{name}.{field}": value for field, value in spec.items()}
        return values

    def unit_recipe(self, name: str, block: int, n: int) -> Recipe:
        """What ``wcse.solve`` is told for one block of ``n`` samples of a sampler.

        Each block has a seed of its own, so the samples of a block depend on nothing but the recipe, the
        problem and the block.

        Raises:
            WcseError: a combination that no run can have.
        """
        spec = self.samplers[name]
        digest = blake2b(f"{self.seed}|{name}|{block}".encode(), digest_size=8).digest()
        given = spec.model_dump(
            include={
                *("prm", "prm_family", "beam_width", "temperature", "top_p", "max_tokens"),
                *("delimiter", "system_prompt", "few_shot", "few_shot_k"),
                *("dtype", "kv_cache_dtype", "quantization"),
            }
        )
        return Recipe.parse(
            given
            | {
                "policy": spec.model,
                "problems": self.problems,
                "strategies": (spec.strategy,),
                "n": n,
                "seed": int.from_bytes(digest, "little") >> 1,
                "batch_size": self.batch_size,
                "kv_memory_gb": self.kv_memory_gb,
                "threads": self.threads,
                "device": self.device,
            }
        )


def load_recipe(path: str | Path) -> dict[str, Any]:
    """The options in a YAML file, to be checked by ``SynthRecipe.parse``.

    Raises:
        WcseError: it cannot be read, or is no mapping.
    """
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise WcseError(f"recipe {str(path)!r}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise WcseError(f"recipe {str(path)!r}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise WcseError(f"recipe {str(path)!r}: must hold options as 'name: value' lines")
    return dict(data)
