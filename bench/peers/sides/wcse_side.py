"""wcse itself: one engine, and a verifier of its own where the work asks for scores.

A tree search is a strategy like any other, run by the driver that ``wcse solve`` uses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from side import Count, CutOff, Facts, Item, Meter, serve

from wcse import _core
from wcse.engine.driver import Driver, Job, Scorer
from wcse.engine.engine import Engine
from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams, StepRule
from wcse.models.load import load_model
from wcse.reward.load import load_prm
from wcse.types import Expand, Node, Parallel, Search

KV_GIB = 2.0


class WcseSide:
    """The engine stays; every item is a new problem with a prompt that was never seen."""

    def load(self, model: dict[str, str], precision: str, threads: int, workloads: Sequence[str]) -> Facts:
        torch.set_num_threads(threads)
        quantization: Any = None if precision == "float32" else precision
        self.llm = LLM(load_model(model["path"], quantization=quantization), kv_memory=KV_GIB)
        self.scorer: Scorer | None = None
        if "score" in workloads:
            self.scorer = load_prm(model["prm"], kv_memory=KV_GIB)
        self.done = 0
        self.meter = Meter()
        count_rows(self.llm.engine, lambda rows: self.meter.add(rows))
        return {
            "versions": {name: version(name) for name in ("wcse", "torch")},
            "dtype": Path(model["path"]).stem if precision == "gguf" else precision,
            "isa": _core.cpu_isa(),
            "modes": {"sample": ["tree"], "search": ["tree"], "score": ["tree"]},
        }

    def prepare(self, item: Item) -> None:
        """Nothing: memory is allotted once."""

    def run(self, item: Item) -> Count:
        self.done += 1
        self.meter = item.meter
        return self._sample(item) if item.workload == "sample" else self._search(item)

    def _sample(self, item: Item) -> Count:
        params = SamplingParams(
            n=item.n,
            max_tokens=item.new_tokens,
            temperature=item.temperature,
            top_p=item.top_p,
            ignore_eos=True,
            seed=item.seed,
        )
        (output,) = self.llm.generate([item.prompt], params, use_tqdm=False)
        return Count(sum(len(one.token_ids) for one in output.outputs))

    def _search(self, item: Item) -> Count:
        params = SamplingParams(
            max_tokens=item.steps * item.step_tokens,
            temperature=item.temperature,
            top_p=item.top_p,
            ignore_eos=True,
        )
        scored = item.workload == "score"
        driver = Driver(
            self.llm.engine,
            self.scorer if scored else None,
            params=params,
            rule=StepRule("", item.step_tokens),
        )
        text = str(self.llm.model.tokenizer.decode(item.prompt))

        def strategy(root: Node) -> Search:
            return quarter(root, item, scored)

        job = Job(f"item {self.done}", item.prompt, text, strategy, item.seed)
        try:
            (outcome,) = driver.run([job])
        except CutOff:
            for root in {row.growth.root for row in self.llm.engine.rows}:
                driver.abort(root)
            raise
        extra = {
            "policy_tokens": float(outcome.policy.policy_computed),
            "policy_seconds": outcome.policy.seconds,
        }
        if scored:
            read = outcome.verifier
            extra |= {"verifier_tokens": float(read.prm_computed), "verifier_seconds": read.seconds}
        return Count(sum(len(node.token_ids) for node in outcome.nodes.values()), extra)


def count_rows(engine: Engine, add: Callable[[int], None]) -> None:
    """``add`` is told after every step how many rows wrote a token."""
    step = engine.step

    def counted() -> None:
        step()
        add(len(engine.rows))

    engine.step = counted  # type: ignore[method-assign]


def quarter(root: Node, item: Item, scored: bool) -> Search:
    """``n`` beams, of which a quarter is kept after each step: the best by score, or any."""
    rng = random.Random(item.seed)
    beam = [(root, item.n)]
    for step in range(1, item.steps + 1):
        groups = yield Parallel(tuple(Expand(node, width) for node, width in beam))
        nodes = [node for group in groups for node in group]
        if step == item.steps:
            return nodes
        if scored:
            nodes.sort(key=lambda node: -1.0 if node.score is None else node.score, reverse=True)
            kept = nodes[: item.keep]
        else:
            kept = rng.sample(nodes, item.keep)
        width, more = divmod(item.n, item.keep)
        beam = [(node, width + (rank < more)) for rank, node in enumerate(kept)]
        del groups, nodes, kept  # a node that nobody holds is pruned
    return []


if __name__ == "__main__":
    serve(WcseSide())
