"""What samples cost: tokens of the ledger times a rate, by the measure that the recipe matches.

The charge of a unit depends only on what was read and written (the prompt once a call, every sampled token,
pruned ones too, and for a verifier of its own all of it again, with its own questions and verdicts where it
writes), not on eviction or on a resumed run's cold cache: a killed run plans as an unkilled one. Only seconds are the
machine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wcse.synth.recipe import SamplerSpec, SynthRecipe
from wcse.synth.record import SynthRecord
from wcse.types import WcseError


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters of a sampler's models that a token is multiplied with (``wcse.flops.ModelCost``): an embedding table
    that is only looked up does not count. ``verifier`` includes its reference, where it has one."""

    policy: int
    verifier: int = 0


@dataclass(frozen=True, slots=True)
class Charge:
    """Tokens and time of some units. ``samples`` were asked for, ``calls`` made.

    Attributes:
        read: prompt tokens, once a call.
        written: sampled tokens, pruned ones included.
        checked: tokens that a verifier of its own read or wrote.
        computed: tokens that really went through the policy's layers, as the ledger counted them.
        seconds: as the ledger counted them.
    """

    samples: int = 0
    calls: int = 0
    read: int = 0
    written: int = 0
    checked: int = 0
    computed: int = 0
    seconds: float = 0.0

    def __add__(self, other: Charge) -> Charge:
        return Charge(
            self.samples + other.samples,
            self.calls + other.calls,
            self.read + other.read,
            self.written + other.written,
            self.checked + other.checked,
            self.computed + other.computed,
            self.seconds + other.seconds,
        )

    @classmethod
    def of(cls, record: SynthRecord, spec: SamplerSpec) -> Charge:
        """The charge of one unit; a failed one wrote nothing."""
        solved = record.solved
        if solved is None:
            return cls()
        read, written = solved.prompt_tokens, solved.ledger.policy_sampled
        checked = read + written + solved.ledger.prm_asked if spec.reads_verifier else 0
        return cls(
            record.unit.n, 1, read, written, checked, solved.ledger.policy_computed, solved.ledger.seconds
        )


def price_of(match: str, charge: Charge, spec: SamplerSpec, size: Size) -> float:
    """What a charge is worth in the unit of the match: FLOPs, parameter-samples, money, seconds or samples."""
    if match == "flops":
        tokens = charge.read + charge.written
        return 2.0 * size.policy * tokens + 2.0 * size.verifier * charge.checked
    if match == "params":
        return float(charge.samples) * size.policy
    if match == "money":
        assert spec.price is not None
        money = charge.read * spec.price[0] + charge.written * spec.price[1]
        return (money + charge.checked * (spec.prm_price or 0.0)) / 1e6
    if match == "seconds":
        return charge.seconds
    return float(charge.samples)


def check_order(recipe: SynthRecipe, sizes: Mapping[str, Size]) -> None:
    """Refuse a reference that is cheaper than what is matched to it.

    Raises:
        WcseError: names both samplers, what was compared and the fix.
    """
    first = recipe.reference_name
    for name, spec in recipe.samplers.items():
        if recipe.match in ("flops", "params"):
            mine, its, what = float(sizes[name].policy), float(sizes[first].policy), "parameters"
        elif recipe.match == "money" and len(recipe.samplers) > 1:
            mine, its, what = _price(spec), _price(recipe.samplers[first]), "price of a written token"
        else:
            continue
        if mine > its:
            raise WcseError(
                f"reference={first}: it is cheaper than {name} ({what} {its:g} against {mine:g}); "
                f"the reference must be the more expensive one: set reference: {name}, or swap the models"
            )


def _price(spec: SamplerSpec) -> float:
    assert spec.price is not None
    return spec.price[1] or spec.price[0]
