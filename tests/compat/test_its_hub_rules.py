"""Our searches against its_hub's on the path-seeded fake policy, where the rules of the two coincide.

Its beam search starts with n / width beams, keeps ``width`` of them, and lets a finished one compete for their
places. At width 1 and with solutions that all end at one depth that is our beam search of n children a step, and,
subtree by subtree, our DVTS. Best-of-n, the Beta rule and systematic resampling coincide as they are.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from typing import Any

import pytest
from fakes import FakePolicy, make_root, run

from wcse.search import SearchConfig
from wcse.search.adaptive_vote import lead_holds
from wcse.search.beam_search import beam_search
from wcse.search.best_of_n import best_of_n
from wcse.search.dvts import dvts
from wcse.search.particle_filter import systematic
from wcse.types import Expand, Finish, Node
from wcse.votes import aggregate

api = pytest.importorskip("its_hub.api")

SEEDS = range(20)


class OneDepth(FakePolicy):
    """Every solution ends after ``max_steps`` steps; texts are all different."""

    def _finish(self, u: float, depth: int) -> Finish:
        return Finish.EOS if depth == self.max_steps else Finish.DELIM


class Model(api.AbstractLanguageModel):  # type: ignore[misc]
    """The fake policy as its_hub sees one: child i of a text is the i-th answer to it."""

    def __init__(self, policy: FakePolicy, first: int = 0) -> None:
        self.policy = policy
        self.nodes: dict[str, Node] = {"": make_root()}
        self.born: Counter[str] = Counter({"": first})

    async def agenerate(self, messages: Any, stop: str | None = None, **kwargs: Any) -> Any:
        return [self._answer(conversation, to_end=stop is None) for conversation in messages]

    async def agenerate_single(self, messages: Any, stop: str | None = None, **kwargs: Any) -> Any:
        return self._answer(messages, to_end=stop is None)

    def _answer(self, messages: Any, *, to_end: bool) -> dict[str, str]:
        text = messages[-1].content if messages[-1].role == "assistant" else ""
        child, self.born[text] = self.born[text], self.born[text] + 1
        (node,) = self.policy.answer(Expand(self.nodes[text], 1, first=child, to_end=to_end))
        self.nodes[node.completion] = node
        return {"role": "assistant", "content": node.completion[len(text) :]}


class Verifier:
    """The fake scores, by text. Serves as process and as outcome reward model."""

    def __init__(self, model: Model) -> None:
        self.model = model

    async def ascore(self, prompt: Any, responses: Any = None, **kwargs: Any) -> list[float]:
        texts = responses if responses is not None else [each[-1].content for each in prompt]
        return [aggregate(self.model.nodes[text].scores, "last") for text in texts]


def best(nodes: list[Node]) -> str:
    return max(nodes, key=lambda node: aggregate(node.scores, "last")).completion


def its_beam(policy: FakePolicy, budget: int, first: int = 0) -> str:
    from its_hub.core.algorithms.beam_search import BeamSearch
    from its_hub.core.lms.step_generation import StepGeneration

    model = Model(policy, first)
    steps = StepGeneration(
        policy.max_steps + 1, step_token="\n\n", stop_token="boxed", include_stop_str_in_output=True
    )
    search = BeamSearch(steps, Verifier(model), beam_width=1)
    reply = asyncio.run(search.ainfer(model, "1 + 1 = ?", budget=budget))
    return str(reply["content"])


@pytest.mark.parametrize("n", [2, 4, 8])
def test_beam_search(n: int) -> None:
    for seed in SEEDS:
        fake: dict[str, Any] = {"words": 10**9, "max_steps": 5}
        config = SearchConfig(n=n, beam_width=n, agg_strategy="last")
        ours = run(beam_search(make_root(), config), OneDepth(seed, **fake))
        assert best(ours) == its_beam(OneDepth(seed, **fake), n)


@pytest.mark.parametrize("n", [4, 12])
def test_dvts(n: int) -> None:
    for seed in SEEDS:
        fake: dict[str, Any] = {"words": 10**9, "max_steps": 4}
        config = SearchConfig(n=n, beam_width=4, agg_strategy="last")
        ours = run(dvts(make_root(), config), OneDepth(seed, **fake))
        for first in range(0, n, 4):
            subtree = [node for node in ours if first <= node.path[0] < first + 4]
            assert best(subtree) == its_beam(OneDepth(seed, **fake), 4, first)


@pytest.mark.parametrize("n", [3, 16])
def test_best_of_n(n: int) -> None:
    from its_hub.core.algorithms.bon import BestOfN

    for seed in SEEDS:
        fake: dict[str, Any] = {"words": 10**9, "eos": 0.3}
        ours = run(best_of_n(make_root(), SearchConfig(n=n)), FakePolicy(seed, **fake))
        model = Model(FakePolicy(seed, **fake))
        reply = asyncio.run(BestOfN(Verifier(model)).ainfer(model, "1 + 1 = ?", budget=n))
        assert best(ours) == reply["content"]


def test_beta_rule() -> None:
    from its_hub.core.algorithms.beta_self_consistency import BetaSelfConsistency

    for first in range(24):
        for second in range(first + 1):
            theirs = BetaSelfConsistency.beta_stopping_probability(first, second)
            assert math.isclose(lead_holds(first, second), theirs, abs_tol=1e-12)


def test_systematic_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    from its_hub.core.algorithms.particle_gibbs import ParticleGibbs

    draw = random.Random(5)
    for _ in range(200):
        weights = [draw.random() for _ in range(draw.randint(2, 9))]
        u = draw.random()
        monkeypatch.setattr(np.random, "uniform", lambda *_, u=u: u)
        shares = np.array(weights) / math.fsum(weights)
        theirs = ParticleGibbs._resampling_systematic(None, list(range(len(weights))), shares, len(weights))
        assert systematic(weights, u) == theirs
