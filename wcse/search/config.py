"""What a strategy may be told: the budget and the shape of the tree. Knows nothing of models or sampling."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

from wcse.search.auto import Choices
from wcse.types import WcseError
from wcse.votes import AGGREGATIONS

SEARCH_AND_LEARN = "search-and-learn"

WORDS: dict[str, tuple[str, ...]] = {
    "rounding": ("remainder", "ceil"),
    "potential": ("ratio", "product", "odds"),
    "resampling": ("systematic", "multinomial"),
    "stop_rule": ("beta", "certain"),
    "compat": (SEARCH_AND_LEARN,),
}
LEAST = {"n": 1, "beam_width": 1, "num_iterations": 1, "lookahead": 0, "checkpoint_tokens": 1, "chunk": 1}
_FLAGS = ("filter_duplicates", "sort_completed")
RANGES: dict[str, tuple[float, float]] = {
    "softmax_temperature": (1e-6, 1e6),
    "ess_threshold": (0.0, 1.0),
    "rejection_rate": (0.0, 0.999),
    "confidence": (0.5, 1.0),
    "exploration": (0.0, 1e6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Settings of a strategy, with search-and-learn's names where it has one.

    Attributes:
        n: budget in solutions, exact: a strategy returns at most ``n``. Greedy decoding, which has one
            answer, does not read it.
        beam_width: children of each kept node (M); beam search and DVTS keep ``n / beam_width`` nodes.
        num_iterations: the largest number of rounds; the last one writes every solution to its end.
        agg_strategy: how a partial solution's step scores become one number: last, min, prod or mean.
            None stands for the verifier's own default; see :meth:`with_default`.
        lookahead: greedy steps below a candidate that are scored before it is ranked (beam search, DVTS).
        softmax_temperature: REBASE: the smaller, the more of the budget goes to the best steps.
        rounding: REBASE: ``remainder`` gives what is left over to the largest fractions; ``ceil`` rounds up
            from the best down, as the authors' code does, and favours the head.
        potential: particle filter: what multiplies a weight: ``ratio`` r_t / r_(t-1), ``product`` r_t or
            ``odds`` r_t / (1 - r_t).
        ess_threshold: particle filter: resample when the effective sample size falls below this share of n.
        resampling: particle filter: ``systematic`` draws with equal spaces, so that copies are within one of their
            share; ``multinomial`` draws each particle by itself, as the authors' code does.
        rejection_rate: speculative rejection: share of the pool that goes at each checkpoint.
        checkpoint_tokens: speculative rejection: tokens of a solution between two checkpoints.
        chunk: adaptive vote: solutions drawn at a time.
        stop_rule: adaptive vote: ``beta`` stops when the leader stays ahead with ``confidence``;
            ``certain`` only when the remaining votes cannot change the answer.
        confidence: see ``stop_rule``.
        exploration: MCTS: weight of the exploration term.
        compat: ``search-and-learn`` follows that project's rules (beam search, DVTS).
        choices: ``auto``: what to do with which problems; from a policy file of ``wcse optimal``.
        filter_duplicates, sort_completed: of that project's beam search; read under ``compat`` only.
    """

    n: int = 1
    beam_width: int = 4
    num_iterations: int = 40
    agg_strategy: str | None = None
    lookahead: int = 0
    softmax_temperature: float = 0.2
    rounding: str = "remainder"
    potential: str = "ratio"
    ess_threshold: float = 0.5
    resampling: str = "systematic"
    rejection_rate: float = 0.5
    checkpoint_tokens: int = 64
    chunk: int = 4
    stop_rule: str = "beta"
    confidence: float = 0.95
    exploration: float = 1.0
    compat: str | None = None
    filter_duplicates: bool = False
    sort_completed: bool = False
    choices: Choices | None = None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise WcseError(f"{name}={value!r} must be a whole number of at least {least}")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise WcseError(f"{name}={value!r} must be a number from {low:g} to {high:g}")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise WcseError(f"{name}={getattr(self, name)!r} must be true or false")
        for name, words in WORDS.items():
            value = getattr(self, name)
            if value not in words and not (name == "compat" and value is None):
                raise WcseError(f"{name}={value!r} is unknown; use one of {', '.join(words)}")
        if self.agg_strategy is not None and self.agg_strategy not in AGGREGATIONS:
            known = ", ".join(AGGREGATIONS)
            raise WcseError(f"agg_strategy={self.agg_strategy!r} is unknown; use one of {known}")

    def with_default(self, agg_strategy: str) -> Self:
        """This config, with the verifier's own aggregation where the user named none."""
        return self if self.agg_strategy else replace(self, agg_strategy=agg_strategy)

    @property
    def aggregation(self) -> str:
        """The aggregation in force.

        Raises:
            WcseError: nobody has chosen one.
        """
        if self.agg_strategy is None:
            raise WcseError("agg_strategy=None and no verifier gave a default; set agg_strategy")
        return self.agg_strategy


def read_option(name: str, text: str) -> Any:
    """The value of a field from its text, as it stands in ``beam_search(lookahead=2)``.

    Raises:
        WcseError: the text is no value of the field's type.
    """
    kind = str(next(field.type for field in fields(SearchConfig) if field.name == name))
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise WcseError(f"{name}={text!r} must be true or false")
        return text.lower() == "true"
    if kind not in ("int", "float"):
        return text
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError as error:
        wanted = "a whole number" if kind == "int" else "a number"
        raise WcseError(f"{name}={text!r} must be {wanted}") from error
