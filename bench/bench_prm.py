"""A verifier under beam search: incremental scoring beside full re-scoring, and the shares of a policy's step.

64 beams, depth 10: in each round the 16 best of 64 nodes get four children each. Full re-scoring reads every path
from its first token in every round, in padded batches of 16, with transformers, the way the published adapters do.
Floor of the tokens: prompt and unique new steps, each read once. Random weights: neither time nor tokens depend on
them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_step import ROWS, decode_batch, qwen_shape
from timing import alternate
from transformers import AutoTokenizer, LlamaConfig, LlamaForTokenClassification

from wcse import zoo
from wcse.engine.growth import Root
from wcse.engine.params import SamplingParams, StepRule
from wcse.kernels import ops
from wcse.reward.head import Head
from wcse.reward.load import load_prm
from wcse.reward.scorer import SeparatePRM
from wcse.search.ranking import distinct, ranked
from wcse.types import Finish, Node
from wcse.votes import aggregate

BEAMS, KEPT, DEPTH = 64, 16, 10
SHAPES = {"short prompt": (128, 46), "long prompt": (600, 46)}
"""Tokens of the prompt and of a step: 46 is the mean of a published set of training data (RLHFlow, Mistral)."""
PEER_BATCH = 16


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


def beam_search(prompt: int, step: int, depth: int) -> tuple[str, list[list[Node]]]:
    """The problem, and the nodes of every round; texts of digits, one token each."""
    rng = random.Random(0)

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


@pytest.mark.parametrize("shape", SHAPES)
def test_incremental_beside_full_rescoring(benchmark: Any, shape: str, tmp_path: Path) -> None:
    depth = 3 if benchmark.disabled else DEPTH
    folder = write_prm(tmp_path, layers=1 if benchmark.disabled else 8)
    prompt, step = SHAPES[shape]
    shrink = 8 if benchmark.disabled else 1
    problem, rounds = beam_search(prompt // shrink, step // shrink, depth)
    prm = load_prm(str(folder), kv_memory=2.0)
    assert isinstance(prm, SeparatePRM)
    model = LlamaForTokenClassification.from_pretrained(folder).eval()
    ids = [paths(prm, problem, nodes) for nodes in rounds]

    start = time.perf_counter()
    ours = benchmark.pedantic(incremental, args=(prm, problem, rounds), rounds=1)
    middle = time.perf_counter()
    theirs = full_text(model, ids)
    end = time.perf_counter()

    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, abs=1e-4)
    reread = sum(len(path) for nodes in ids for path in nodes)
    prefix = len(prm.layout.prefix(problem))
    unique = prefix + sum(len(i) - prefix for i in ids[0])
    above = {
        node: i for nodes, row in zip(rounds, ids, strict=True) for node, i in zip(nodes, row, strict=True)
    }
    unique += sum(
        len(i) - len(above[node.parent])  # type: ignore[index]
        for nodes, row in zip(rounds[1:], ids[1:], strict=True)
        for node, i in zip(nodes, row, strict=True)
    )
    assert prm.runner.computed == unique
    benchmark.extra_info |= {
        "tokens": unique,
        "tokens_full_text": reread,
        "times_fewer_tokens": reread / unique,
        "seconds": middle - start,
        "seconds_full_text": end - middle,
        "times_less_time": (end - middle) / (middle - start),
        "beams": BEAMS,
        "depth": depth,
        "threads": torch.get_num_threads(),
    }


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


def test_share_of_a_policy_step(benchmark: Any) -> None:
    """Shared head and selection beside a step of 256 rows of a Qwen2.5-0.5B-shaped policy.

    A row ends a step every 46 tokens, so six are scored in a step, and 64 of 256 beams are selected once in 46 steps.
    ``distinct`` compares texts and ``rank`` sorts, as beam search does; ``top_k`` is the native op in its
    place, with the tensors that it needs.
    """
    width = 896
    sizes = (width, 256, 1)
    head = Head([(torch.randn(n, k), torch.zeros(n)) for k, n in pairwise(sizes)])
    hidden = torch.randn(ROWS, width)
    ends = beam(ROWS, DEPTH)
    nodes, rows = ends[::4][:6], range(0, ROWS, ROWS // 6)[:6]

    def score() -> list[float]:
        for node in nodes:
            node.summed = None
        return head.score_nodes(hidden, nodes, rows)

    def values() -> dict[tuple[int, ...], float]:
        return {node.path: aggregate(node.path_scores, "prod") for node in ends}

    worth = values()

    def rank() -> list[Node]:
        return ranked(ends, worth)[: ROWS // 4]

    def top_k() -> list[Node]:
        scores = torch.tensor([worth[node.path] for node in ends])
        bounds = torch.tensor([0, ROWS], dtype=torch.int32)
        return [ends[i] for i in ops.group_top_k(scores, bounds, ROWS // 4, largest_group=ROWS)[0].tolist()]

    assert len(score()) == 6 and all(node.summed for node in nodes)
    assert rank() == top_k()
    if benchmark.disabled:
        return
    decoder = qwen_shape(layers=24)
    batch, pool = decode_batch(decoder)

    def step() -> torch.Tensor:
        return decoder.logits(decoder.forward(batch, pool))

    sides = {"step": step, "score": score, "values": values, "rank": rank, "top_k": top_k}
    seconds = alternate(sides | {"distinct": lambda: distinct(ends)}, 5)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    benchmark.extra_info |= {f"{name}_seconds": value for name, value in medians.items()}
    benchmark.extra_info |= {
        "score_share": medians["score"] / medians["step"],
        "selection_share": sum(medians[n] for n in ("values", "rank", "distinct")) / (46 * medians["step"]),
        "threads": torch.get_num_threads(),
    }
    benchmark.pedantic(score, rounds=3)
