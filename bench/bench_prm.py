"""A verifier under beam search: incremental scoring beside full re-scoring, and the shares of a policy's step.

64 beams, depth 10: in each round the 16 best of 64 nodes get four children each. Full re-scoring reads every path
from its first token in every round, in padded batches of 16, with transformers, the way the published adapters do.
Floor of the tokens: prompt and unique new steps, each read once. Random weights: neither time nor tokens depend on
them. Every step has a text of its own here, which is the worst case: equal texts are read once.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prm_tokens
import pytest
import torch
from bench_step import ROWS, decode_batch, qwen_shape
from timing import alternate
from transformers import AutoTokenizer, LlamaConfig, LlamaForTokenClassification

from wcse import zoo
from wcse.engine.driver import Driver, Job
from wcse.engine.engine import Engine
from wcse.engine.growth import Root
from wcse.engine.lanes import Lane
from wcse.engine.params import SamplingParams, StepRule
from wcse.models.load import load_model
from wcse.problems import load_problems
from wcse.prompts import render_problem
from wcse.reward.head import Head
from wcse.reward.load import load_prm
from wcse.reward.scorer import ImplicitPRM, SeparatePRM, SharedHead
from wcse.search import STRATEGIES, SearchConfig
from wcse.search.best import Best
from wcse.search.ranking import ranked
from wcse.types import Expand, Finish, Node

BEAMS, KEPT, DEPTH = 64, 16, 10
SHAPES = {"short prompt": (128, 46), "long prompt": (600, 46)}
"""Tokens of the prompt and of a step: 46 is the mean of a published set of training data (RLHFlow, Mistral)."""
PEER_BATCH = 16


LAYERS, ROUNDS = 2, 3


def write_prm(folder: Path, *, layers: int) -> Path:
    """A random token classifier with the width of SmolLM2-135M and the tokenizer of tiny-wc."""
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("tiny-wc"))
    config = LlamaConfig(
        vocab_size=1280,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=4096,
        num_labels=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForTokenClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def beam_search(prompt: int, step: int, depth: int, seed: int = 0) -> tuple[str, list[list[Node]]]:
    """The problem, and the nodes of every round; texts of digits, one token each."""
    rng = random.Random(seed)

    def digits(count: int) -> str:
        return "".join(rng.choices("0123456789", k=count))

    parents, rounds = [Node(None, (), ())], []
    for _ in range(depth):
        each = BEAMS // len(parents)
        texts = [(p, i, digits(step - 1) + "\n\n") for p in parents for i in range(each)]
        rounds.append([Node(p, (*p.path, i), (), text, Finish.DELIM) for p, i, text in texts])
        parents = rng.sample(rounds[-1], KEPT)
    return digits(prompt), rounds


def incremental(prm: SeparatePRM, problem: str, rounds: Sequence[Sequence[Node]]) -> list[list[float]]:
    root = Root(Node(None, (), ()), 0, problem, SamplingParams(), StepRule(), 0)
    found = []
    for nodes in rounds:
        scores: dict[Node, float] = {}
        for node in nodes:
            prm.submit(root, problem, node, partial(scores.__setitem__, node))  # type: ignore[arg-type]
        while prm.waiting:
            prm.step()
        found.append([scores[node] for node in nodes])
    return found


def paths(prm: SeparatePRM, problem: str, nodes: Sequence[Node]) -> list[list[int]]:
    return [
        prm.layout.read(problem, [step.text.removesuffix("\n\n") for step in node.steps()]).ids
        for node in nodes
    ]


@torch.inference_mode()
def full_text(model: Any, rounds: Sequence[Sequence[list[int]]]) -> list[list[float]]:
    found = []
    for ids in rounds:
        scores: list[float] = []
        for begin in range(0, len(ids), PEER_BATCH):
            part = ids[begin : begin + PEER_BATCH]
            width = max(map(len, part))
            tokens = torch.tensor([row + [0] * (width - len(row)) for row in part])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])
            logits = model(input_ids=tokens, attention_mask=mask).logits
            ends = torch.tensor([len(row) - 1 for row in part])
            scores += logits[torch.arange(len(part)), ends].softmax(-1)[:, 1].tolist()
        found.append(scores)
    return found


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
def test_incremental_beside_full_rescoring(benchmark: Any, shape: str, tmp_path: Path) -> None:
    """The sides take turns, each turn on a search of its own; the ratio is that of the times of one turn."""
    depth, rounds = (3, 1) if benchmark.disabled else (DEPTH, ROUNDS)
    folder = write_prm(tmp_path, layers=1 if benchmark.disabled else LAYERS)
    prompt, step = (size // (8 if benchmark.disabled else 1) for size in SHAPES[shape])
    model = LlamaForTokenClassification.from_pretrained(folder).eval()
    turns: list[tuple[float, float]] = []

    def turn() -> tuple[int, int]:
        """Both sides on one search. Returns the tokens that they read."""
        problem, nodes = beam_search(prompt, step, depth, seed=len(turns))
        prm = load_prm(str(folder), kv_memory=2.0)
        assert isinstance(prm, SeparatePRM)
        ids = [paths(prm, problem, row) for row in nodes]
        start = time.perf_counter()
        ours = incremental(prm, problem, nodes)
        middle = time.perf_counter()
        theirs = full_text(model, ids)
        turns.append((middle - start, time.perf_counter() - middle))
        for mine, other in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(other, abs=1e-4)
        assert prm.runner.computed == unique_tokens(prm, problem, nodes, ids)
        return prm.runner.computed, sum(len(path) for row in ids for path in row)

    tokens, reread = benchmark.pedantic(turn, rounds=rounds)
    ratios = sorted(theirs / ours for ours, theirs in turns)
    benchmark.extra_info |= {
        "tokens": tokens,
        "tokens_full_text": reread,
        "times_fewer_tokens": reread / tokens,
        "seconds": [ours for ours, _ in turns],
        "seconds_full_text": [theirs for _, theirs in turns],
        "times_less_time": {"min": ratios[0], "median": statistics.median(ratios), "max": ratios[-1]},
        "beams": BEAMS,
        "depth": depth,
        "layers": LAYERS,
        "threads": torch.get_num_threads(),
    }


def unique_tokens(
    prm: SeparatePRM, problem: str, rounds: Sequence[Sequence[Node]], ids: Sequence[Sequence[list[int]]]
) -> int:
    """The prompt, and what each step adds to the path above it."""
    total = prefix = len(prm.layout.prefix(problem))
    ends: dict[Node | None, int] = {}
    for nodes, row in zip(rounds, ids, strict=True):
        for node, path in zip(nodes, row, strict=True):
            ends[node] = len(path)
            total += len(path) - ends.get(node.parent, prefix)
    return total


class Late(Driver):
    """Holds all children of a round until the last one is scored."""

    def _expand(self, run: Any, request: Expand, *rest: Any) -> None:
        super()._expand(run, replace(request, best=None), *rest)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["beam_search", "dvts"])
def test_a_search_beside_full_rescoring(benchmark: Any, strategy: str) -> None:
    """Real texts: 64 beams of the embedded models on six problems at once; tokens, and pages at the highest point."""
    spec = f"gsm_symbolic:size={1 if benchmark.disabled else 6},seed=20261122"
    model, config = load_model("tiny-wc"), SearchConfig(n=BEAMS, agg_strategy="last")
    found: dict[type[Driver], dict[str, Any]] = {}

    def search(kind: type[Driver]) -> dict[str, Any]:
        engine = Engine(model, num_pages=8192)
        prm = load_prm("tiny-wc-prm", kv_memory=0.5)
        assert isinstance(prm, ImplicitPRM)
        params = SamplingParams(max_tokens=256, temperature=0.8)
        driver = kind(engine, prm, params=params, rule=StepRule("\n\n"))
        for problem in load_problems(spec):
            ids = render_problem(model.tokenizer, problem.prompt)
            run = partial(STRATEGIES[strategy].run, config=config)
            driver.submit(Job(problem.id, ids, problem.prompt, run, seed=0))
        peaks = [0, 0]
        while driver.advance():
            stats = [runner.tree.stats() for runner in (engine.runner, prm.model.runner)]
            used = [count["total"] - count["free"] - count["cached"] for count in stats]
            peaks = [max(pair) for pair in zip(peaks, used, strict=True)]
        outcomes = driver.take_finished()
        computed, reused = (
            sum(getattr(outcome.verifier, field) for outcome in outcomes)
            for field in ("prm_computed", "prm_reused")
        )
        return {
            "trees": {
                o.job.name: {path: (t.token_ids, t.score) for path, t in o.nodes.items()} for o in outcomes
            },
            "tokens": computed,
            "times_fewer_tokens": 1 + reused / computed,
            "policy_pages": peaks[0],
            "verifier_pages": peaks[1],
        }

    def both() -> None:
        for kind in (Driver, Late):
            found[kind] = search(kind)

    benchmark.pedantic(both, rounds=1)
    assert found[Driver].pop("trees") == found[Late].pop("trees")
    benchmark.extra_info |= {"ours": found[Driver], "pruned_late": found[Late], "beams": BEAMS}


def beam(count: int, depth: int) -> list[Node]:
    """Ends of as many paths of ``depth`` scored steps, four below each step before the last."""
    rng, ends = random.Random(0), list[Node]()
    for i in range(count):
        node = ends[-1].parent if i % 4 else None
        if node is None:
            node = Node(None, (i,), ())
            for _ in range(depth - 1):
                node = Node(node, (*node.path, 0), (1,), "step\n\n", Finish.DELIM, (), rng.random())
        ends.append(Node(node, (*node.path, i), (i,), "step\n\n", Finish.DELIM, (), rng.random()))
    return ends


class Rows:
    """Hidden states in the place of an engine: each node's row, copied as the engine keeps it."""

    def __init__(self, hidden: torch.Tensor, row: dict[Node, int]) -> None:
        self.hidden, self.row = hidden, row
        self.runner = SimpleNamespace(lane=Lane(hidden.device))

    def fill(self, root: Root, node: Node, done: Callable[[torch.Tensor], None]) -> None:
        done(self.hidden[self.row[node]].clone())


def test_share_of_a_policy_step(benchmark: Any) -> None:
    """What a shared head and the selection add to a step of 256 rows of a Qwen2.5-0.5B-shaped policy.

    A row ends a step every 46 tokens, so six are scored in a step, each a candidate of its problem's best. ``score`` is
    all of it: the rows are kept, queued, gathered, scored by the op, summed up along their paths, entered among the
    best 64, and the nodes told. ``rank`` is the sort that the best need not be found by any more.
    """
    width = 896
    sizes = (width, 256, 1)
    head = Head([(torch.randn(n, k), torch.zeros(n)) for k, n in pairwise(sizes)])
    hidden = torch.randn(ROWS, width)
    ends = beam(ROWS, DEPTH)
    nodes = ends[::4][:6]
    scorer = SharedHead(Rows(hidden, {node: i for i, node in enumerate(nodes)}), head)  # type: ignore[arg-type]
    root = Root(Node(None, (), ()), 0, "p", SamplingParams(), StepRule(), 0)
    heard: dict[Node, float | None] = {}
    best = Best(ROWS // 4, "prod")
    for node in ends[6:]:
        best.enter(node)

    def score() -> None:
        for node in nodes:
            node.summed, node.contest = None, best
            scorer.submit(root, "p", node, partial(heard.__setitem__, node))
        scorer.step()

    def rank() -> list[Node]:
        return ranked(ends, "prod")[: ROWS // 4]

    score()
    assert len(heard) == 6 and all(node.summed and not node.contest for node in nodes)
    assert len(rank()) == len(best.nodes)
    if benchmark.disabled:
        return
    decoder = qwen_shape(layers=24)
    batch, pool = decode_batch(decoder)

    def step() -> torch.Tensor:
        return decoder.logits(decoder.forward(batch, pool))

    seconds = alternate({"step": step, "score": score, "rank": rank}, 5)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    benchmark.extra_info |= {f"{name}_seconds": value for name, value in medians.items()}
    benchmark.extra_info |= {
        "score_share": medians["score"] / medians["step"],
        "threads": torch.get_num_threads(),
    }
    benchmark.pedantic(score, rounds=3)


def test_tokens_of_a_real_search_are_each_read_once(tmp_path: Path) -> None:
    """``prm_tokens.py`` counts what the ledger does. Depth is beyond the embedded policy's, so all rounds count."""
    options = ["tiny-wc", "--problems", "gsm_symbolic:size=1,seed=20261122", "--n", "8", "--max-tokens", "96"]
    (row,) = prm_tokens.searches(prm_tokens.parse(options), tmp_path)
    assert row["read_once"] == row["ledger"]
    assert row["full_text"] > row["read_once"] > row["prompt"] > 0
