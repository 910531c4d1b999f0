"""What a strategy may be told: the budget and the shape of the tree. Knows nothing of models or sampling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from wcse.types import WcseError
from wcse.votes import AGGREGATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Settings of a strategy, with search-and-learn's names.

    Attributes:
        n: budget in solutions, exact: a strategy returns at most ``n``. Greedy decoding, which has one
            answer, does not read it.
        beam_width: children of each kept node (M); beam search and DVTS keep ``n / beam_width`` nodes.
        num_iterations: the largest number of rounds; the last one writes every solution to its end.
        agg_strategy: how a partial solution's step scores become one number: last, min, prod or mean.
            None stands for the verifier's own default; see :meth:`with_default`.
    """

    n: int = 1
    beam_width: int = 4
    num_iterations: int = 40
    agg_strategy: str | None = None

    def __post_init__(self) -> None:
        for name in ("n", "beam_width", "num_iterations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise WcseError(f"{name}={value!r} must be a whole number of at least 1")
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
