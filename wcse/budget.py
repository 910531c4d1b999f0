"""A budget per problem: a hard limit in tokens, FLOPs, money or seconds, and the account that keeps it.

What is charged is logical: every token of the tree once, whatever was evicted and computed again, so a budget
cuts at the same token in every batch. All of it counts: the prompt, pruned branches, lookahead, probes of a
problem's difficulty, and the verifier's reading. Seconds are the machine's and cut where they are over.

Before a request runs, what is left is shared out evenly among its rows; a row that reaches its share ends with
``Finish.BUDGET``. Shares that were not used return to the account. Knows no engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Self

from wcse.flops import ModelCost
from wcse.names import suggest
from wcse.types import WcseError


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits per problem; None sets none. Money is reckoned from prices per million tokens.

    Attributes:
        solutions: as the strategy's ``n``.
        tokens: of policy and verifier together.
        flops, seconds, money: as they say.
        price_in, price_out, price_prm: of tokens read and written by the policy and read by the verifier.
    """

    solutions: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    money: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    price_prm: float = 0.0

    def __post_init__(self) -> None:
        for name in ("solutions", "tokens", "flops", "seconds", "money"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise WcseError(f"budget: {name}={value:g} must be above 0")
        prices = {name: getattr(self, name) for name in ("price_in", "price_out", "price_prm")}
        for name, price in prices.items():
            if not (price >= 0 and math.isfinite(price)):
                raise WcseError(f"budget: {name}={price:g} must be at least 0")
        if self.money is not None and not any(prices.values()):
            raise WcseError(
                "budget: money needs prices per million tokens; add price_in, price_out or price_prm"
            )
        if self.money is None and any(prices.values()):
            raise WcseError("budget: prices are given, but no money; add money=...")

    @property
    def by_token(self) -> bool:
        """Whether a limit is kept token by token, so that costs must be known before."""
        return any(limit is not None for limit in (self.tokens, self.flops, self.money))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``tokens=20000`` or ``money=0.01,price_in=0.1,price_out=0.4``.

        Raises:
            WcseError: an unknown unit, or a value that is no number or no possible limit.
        """
        known = [f.name for f in fields(cls)]
        values: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, number = (piece.strip() for piece in part.partition("="))
            if name not in known or not equals:
                raise WcseError(
                    f"budget={text!r}: unknown unit {name!r}{suggest(name, known)}; use {', '.join(known)}"
                )
            if name in values:
                raise WcseError(f"budget={text!r}: {name} is given twice")
            try:
                values[name] = float(number)
            except ValueError as error:
                raise WcseError(f"budget={text!r}: {name}={number!r} is not a number") from error
            if name in ("solutions", "tokens"):
                if not values[name].is_integer():
                    raise WcseError(f"budget={text!r}: {name}={number} must be a whole number")
                values[name] = int(values[name])
        if not {"solutions", "tokens", "flops", "seconds", "money"} & values.keys():
            raise WcseError(f"budget={text!r} sets no limit; give tokens, flops, seconds, money or solutions")
        return cls(**values)  # type: ignore[arg-type]


@dataclass(slots=True)
class Account:
    """One problem's charges.

    Args:
        budget: None: nothing is limited, all is counted.
        policy, verifier: what a token costs; ``verifier`` None: a head on the policy's own states.
        scored: whether a verifier reads what the policy writes.
    """

    budget: Budget | None
    policy: ModelCost
    verifier: ModelCost | None = None
    scored: bool = False
    prompt: int = 0
    written: int = 0
    read: int = 0
    policy_flops: float = 0.0
    prm_flops: float = 0.0
    seconds: float = 0.0
    over: bool = field(default=False)

    def open(self, prompt: int, name: str) -> None:
        """Charge the prompt.

        Raises:
            WcseError: it alone costs more than the budget.
        """
        self.prompt = prompt
        self.policy_flops += self.policy.flops(prompt, 0)
        if self._reads:
            assert self.verifier is not None
            self.read += prompt * self.verifier.models
            self.prm_flops += self.verifier.flops(prompt, 0)
        for unit, left in self._left().items():
            if left <= 0:
                limit = getattr(self.budget, unit)
                raise WcseError(
                    f"budget: {unit}={limit:g} is impossible for problem {name!r}: reading its prompt of {prompt} "
                    f"tokens alone costs {limit - left:g}; give more"
                )

    def charge(self, tokens: int, context: int) -> None:
        """Charge a step of ``tokens`` tokens after ``context`` others, prompt included."""
        self.written += tokens
        self.policy_flops += self.policy.flops(tokens, context)
        if self._reads:
            assert self.verifier is not None
            self.read += tokens * self.verifier.models
            self.prm_flops += self.verifier.flops(tokens, context)

    def shares(self, contexts: Sequence[int]) -> list[int] | None:
        """The most tokens of each row of a request, rows that start after ``contexts`` tokens; None: no limit.

        However long the rows become within their shares, the budget is kept.
        """
        left = self._left()
        if self.over:
            return [0] * len(contexts)
        if not left or not contexts:
            return None
        return [
            min(self._row(unit, rest / len(contexts), context) for unit, rest in left.items())
            for context in contexts
        ]

    @property
    def _reads(self) -> bool:
        return self.scored and self.verifier is not None

    @property
    def _readers(self) -> int:
        """How often the verifier reads each token: once for each of its models."""
        return self.verifier.models if self._reads and self.verifier is not None else 0

    def _row(self, unit: str, share: float, context: int) -> int:
        assert self.budget is not None
        if unit == "tokens":
            return int(share // (1 + self._readers))
        if unit == "flops":
            both = self.policy + self.verifier if self._reads and self.verifier is not None else self.policy
            return both.tokens(share, context)
        price = self.budget.price_out + self.budget.price_prm * self._readers
        # A share that pays for 7 tokens may come out as 6.999..; a billionth of a token is nobody's money.
        return int(share * 1e6 / price + 1e-9) if price > 0 else 1 << 40

    def _left(self) -> dict[str, float]:
        """What is left of each limit that is kept token by token."""
        budget = self.budget
        if budget is None:
            return {}
        left: dict[str, float] = {}
        if budget.tokens is not None:
            left["tokens"] = budget.tokens - self.prompt - self.written - self.read
        if budget.flops is not None:
            left["flops"] = budget.flops - self.policy_flops - self.prm_flops
        if budget.money is not None:
            left["money"] = budget.money - self.money
        return left

    @property
    def money(self) -> float:
        """Charged so far at the budget's prices."""
        if self.budget is None:
            return 0.0
        paid = self.prompt * self.budget.price_in + self.written * self.budget.price_out
        return (paid + self.read * self.budget.price_prm) / 1e6

    def spend(self, seconds: float) -> bool:
        """Charge time; whether the time is over now."""
        self.seconds += seconds
        limit = self.budget.seconds if self.budget else None
        self.over = self.over or (limit is not None and self.seconds >= limit)
        return self.over
