"""How many samples each sampler draws so that the costs are equal: rounds planned from what earlier rounds cost.

Pure: charges in, units out, so a resumed run plans what the first one planned. The reference draws ``n``
samples of every problem. Every other sampler draws one sample of a few problems, then as many of every problem
as surely fit its budget, then single ones until less than half a sample's cost is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from wcse.synth.cost import Charge, Size, price_of
from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import Unit

_PILOT = 8
"""Problems of the first round, which draws one sample each to learn how long this sampler's solutions are; at
least, and at least a twentieth of all."""

_SHARES = (0.5, 0.98)
"""Least and largest share of what is left that one round may plan to use; between them, two standard errors of
the mean length keep a round from overdrawing."""

_LEAST_DEVIATION = 0.4
"""Relative standard deviation that is assumed of lengths at least: a few calls may look alike by chance."""

_CLOSE_ENOUGH = 0.001
"""Left of the budget at which no further round is worth a prompt."""

_MAX_ROUNDS = 40

Charges = Mapping[tuple[str, int], Mapping[str, Charge]]
"""(sampler, block) -> problem id -> charge."""


@dataclass(frozen=True, slots=True)
class Balance:
    """How a sampler's cost compares with the reference's.

    Attributes:
        cost, budget: in the unit of the match. ``gap``: (cost - budget) / budget.
        step: the cost of one more sample as a share of the budget: no match is finer than half of it.
    """

    sampler: str
    cost: float
    budget: float
    gap: float
    step: float
    tolerance: float

    @property
    def held(self) -> bool:
        return abs(self.gap) <= self.tolerance

    def explain(self) -> str:
        """One line."""
        state = "held" if self.held else "did NOT hold"
        line = f"match {state}: {self.sampler} is {self.gap:+.2%} off its budget (tolerance {self.tolerance:.2%})"
        if not self.held and self.step > self.tolerance:
            line += f"; one sample is {self.step:.2%} of it: give more problems or a larger n"
        return line


class Planner:
    """Plans a sampler's rounds. ``problems`` are the ids in order; ``sizes`` the samplers' parameter counts."""

    def __init__(self, recipe: SynthRecipe, problems: Sequence[str], sizes: Mapping[str, Size]) -> None:
        self._recipe = recipe
        self._problems = tuple(problems)
        self._sizes = sizes

    def units(self, sampler: str, block: int, charges: Charges) -> list[Unit]:
        """The units of a round; none when the sampler has all that it may draw.

        Args:
            block: number of the round, from 0.
            charges: of the reference, and of this sampler's rounds before ``block``.
        """
        recipe = self._recipe
        if sampler == recipe.reference_name or recipe.match in ("samples", "params"):
            return self._everywhere(sampler, block, self._fixed(sampler)) if block == 0 else []
        if block >= _MAX_ROUNDS:
            return []
        left = self.budget(charges) - self._cost(sampler, _total(charges, sampler, block))
        if left <= _CLOSE_ENOUGH * self.budget(charges):
            return []
        live = self._live(sampler, block, charges)
        if not live:
            return []
        quantum = recipe.samplers[sampler].quantum
        lot = self._fewest(sampler, block, charges, live)
        if block == 0:
            return [Unit(sampler, 0, problem, quantum) for problem in lot[: max(_PILOT, len(live) // 20)]]
        call, sample, error = self._estimate(sampler, block, charges)
        share = left * min(max(1 - 2 * error, _SHARES[0]), _SHARES[1])
        shots = int((share - len(live) * call) / (quantum * sample)) if sample > 0 else 0
        if shots >= len(live):  # everybody gets as many, and some one more in the same call
            each, more = divmod(shots, len(live))
            extra = set(lot[:more])
            return [Unit(sampler, block, name, quantum * (each + (name in extra))) for name in live]
        single = call + quantum * sample
        if left < single / 2 or single <= 0:
            return []
        return [Unit(sampler, block, problem, quantum) for problem in lot[: max(1, int(share / single))]]

    def budget(self, charges: Charges) -> float:
        """What the reference cost, in the unit of the match."""
        name = self._recipe.reference_name
        return self._cost(name, _total(charges, name, _MAX_ROUNDS))

    def balance(self, sampler: str, charges: Charges) -> Balance:
        """The match as it came out."""
        recipe = self._recipe
        total = _total(charges, sampler, _MAX_ROUNDS + 1)
        cost, budget = self._cost(sampler, total), self.budget(charges)
        sample = cost / total.samples * recipe.samplers[sampler].quantum if total.samples else 0.0
        gap = (cost - budget) / budget if budget else 0.0
        step = sample / budget if budget else 0.0
        tolerance = recipe.tolerance
        if (
            recipe.match == "params" and budget
        ):  # whole samples per problem, as in the paper: floor() is the match
            tolerance = max(tolerance, self._sizes[sampler].policy * len(self._problems) / budget)
        return Balance(sampler, cost, budget, gap, step, tolerance)

    def _fixed(self, sampler: str) -> int:
        """Samples per problem that are known without measuring."""
        recipe = self._recipe
        n = recipe.n
        if recipe.match == "params" and sampler != recipe.reference_name:
            n = n * self._sizes[recipe.reference_name].policy // self._sizes[sampler].policy
        quantum = recipe.samplers[sampler].quantum
        return max(quantum, n // quantum * quantum)

    def _everywhere(self, sampler: str, block: int, n: int) -> list[Unit]:
        return [Unit(sampler, block, problem, n) for problem in self._problems]

    def _cost(self, sampler: str, charge: Charge) -> float:
        recipe = self._recipe
        return price_of(recipe.match, charge, recipe.samplers[sampler], self._sizes[sampler])

    def _live(self, sampler: str, block: int, charges: Charges) -> list[str]:
        """Problems that have not failed under this sampler or the reference: spending on them buys no pair."""
        failed = set()
        for (name, number), costs in charges.items():
            if name == self._recipe.reference_name or (name == sampler and number < block):
                failed |= {problem for problem, charge in costs.items() if not charge.calls}
        return [problem for problem in self._problems if problem not in failed]

    def _estimate(self, sampler: str, block: int, charges: Charges) -> tuple[float, float, float]:
        """Expected cost of a call's prompt and of one sample, from this sampler's rounds so far, and the relative
        standard error of the latter."""
        calls = [
            charge
            for (name, number), costs in sorted(charges.items())
            if name == sampler and number < block
            for charge in costs.values()
            if charge.calls
        ]
        if not calls:
            return 0.0, 0.0, 1.0
        pairs = [self._apart(sampler, charge) for charge in calls]
        samples = sum(charge.samples for charge in calls)
        mean = math.fsum(text for _, text in pairs) / samples
        each = [text / charge.samples for (_, text), charge in zip(pairs, calls, strict=True)]
        spread = math.fsum((value - mean) ** 2 for value in each) / max(1, len(each) - 1)
        deviation = max(math.sqrt(spread) / mean, _LEAST_DEVIATION) if mean else 1.0
        error = deviation / math.sqrt(len(each))
        return math.fsum(prompt for prompt, _ in pairs) / len(calls), mean, error

    def _apart(self, sampler: str, charge: Charge) -> tuple[float, float]:
        """Cost of a charge's prompts and of its samples. Seconds are measured as a whole: prompts are not timed."""
        if self._recipe.match == "seconds":
            return 0.0, charge.seconds
        reads = charge.read if self._recipe.samplers[sampler].reads_verifier else 0
        prompt = Charge(read=charge.read, checked=reads)
        text = Charge(written=charge.written, checked=charge.checked - reads)
        return self._cost(sampler, prompt), self._cost(sampler, text)

    def _fewest(self, sampler: str, block: int, charges: Charges, live: Sequence[str]) -> list[str]:
        """Problems in the order in which they are given an extra sample: the fewest so far, then by lot."""
        counts = dict.fromkeys(live, 0)
        for (name, number), costs in charges.items():
            if name == sampler and number < block:
                for problem, charge in costs.items():
                    counts[problem] = counts.get(problem, 0) + charge.samples
        return sorted(live, key=lambda problem: (counts[problem], _lot(self._recipe.seed, problem)))


def _total(charges: Charges, sampler: str, before: int) -> Charge:
    """The sum of a sampler's rounds before ``before``; exact for seconds too, whatever the order."""
    parts = [
        charge
        for (name, block), costs in charges.items()
        if name == sampler and block < before
        for charge in costs.values()
    ]
    return Charge(
        samples=sum(part.samples for part in parts),
        calls=sum(part.calls for part in parts),
        read=sum(part.read for part in parts),
        written=sum(part.written for part in parts),
        checked=sum(part.checked for part in parts),
        computed=sum(part.computed for part in parts),
        seconds=math.fsum(part.seconds for part in parts),
    )


def _lot(seed: int, problem: str) -> bytes:
    return blake2b(f"{seed}|{problem}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
