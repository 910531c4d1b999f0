"""One memory for policy and verifier: it moves with need, adds up always, and changes no tree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from weakref import ref

import pytest
import tiny_models
import torch
from transformers import AutoModelForTokenClassification

from wcse.engine.ahead import settle_ahead, store_ahead
from wcse.engine.driver import Driver, Job, Outcome
from wcse.engine.engine import Engine
from wcse.engine.memory import Memory
from wcse.engine.params import SamplingParams, StepRule
from wcse.engine.runner import KVMemoryError, Runner
from wcse.engine.spans import Span
from wcse.models.load import LoadedModel, load_model
from wcse.reward.load import load_prm
from wcse.reward.scorer import SeparatePRM
from wcse.search import STRATEGIES, SearchConfig
from wcse.types import Node, Search, WcseError

PROBLEM = "Anna has 12 apples and buys 7 more."


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_models.build("llama", tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.build("qwen2", tmp_path_factory.mktemp("prm"), seed=7)
    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def run(
    policy: LoadedModel,
    verifier: Path,
    memories: tuple[Memory, Memory],
    *,
    problem: str = PROBLEM,
    prompt: str = PROBLEM,
    tokens: int = 36,
) -> list[Outcome]:
    engine = Engine(policy, max_rows=16, memory=memories[0])
    prm = load_prm(str(verifier), kv_memory=memories[1])
    assert isinstance(prm, SeparatePRM)
    driver = Driver(
        engine,
        prm,
        params=SamplingParams(max_tokens=tokens),
        rule=StepRule("e", 10),
        on_step=memories[0].check,
    )

    def search(root: Node) -> Search:
        return STRATEGIES["beam_search"].run(
            root, SearchConfig(n=8, beam_width=2, num_iterations=4, agg_strategy="last")
        )

    jobs = [Job(name, policy.tokenizer.encode(prompt), problem, search, seed=1) for name in "ab"]
    outcomes = sorted(driver.run(jobs), key=lambda outcome: outcome.job.name)
    for memory in memories:
        memory.check()
    return outcomes


def trees(outcomes: list[Outcome]) -> list[dict[tuple[int, ...], tuple[tuple[int, ...], float | None]]]:
    return [{path: (t.token_ids, t.score) for path, t in outcome.nodes.items()} for outcome in outcomes]


def pages(policy: LoadedModel, count: int) -> int:
    return count * Runner(policy.decoder, num_pages=8).page_bytes


HEAVY = {
    "policy": {
        "prompt": PROBLEM * 26,
        "tokens": 40,
    },  # a long prompt, of which the verifier sees the question only
    "verifier": {"problem": PROBLEM * 12},
}


@pytest.mark.parametrize("heavy", HEAVY)
def test_memory_goes_to_the_side_that_needs_it(policy: LoadedModel, verifier: Path, heavy: str) -> None:
    options = HEAVY[heavy]
    expected = trees(run(policy, verifier, (Memory.gib(0.05), Memory.gib(0.05)), **options))  # type: ignore[arg-type]
    size = pages(policy, 36)
    together = Memory(size)
    assert trees(run(policy, verifier, (together, together), **options)) == expected  # type: ignore[arg-type]
    with pytest.raises(KVMemoryError):
        run(policy, verifier, (Memory(size // 2), Memory(size // 2)), **options)  # type: ignore[arg-type]


def test_trees_are_the_same_whatever_the_memory(policy: LoadedModel, verifier: Path) -> None:
    expected = trees(run(policy, verifier, (Memory.gib(0.05), Memory.gib(0.05))))
    for count in (24, 40):
        memory = Memory(pages(policy, count))
        assert trees(run(policy, verifier, (memory, memory))) == expected


def test_a_page_that_moves_begins_as_zeros(policy: LoadedModel) -> None:
    memory = Memory(pages(policy, 20))
    first, second = (Runner(policy.decoder, memory=memory) for _ in range(2))

    span = _read(first, 300)
    used = first.tree.pages(span.kv)
    assert first.pool.k[0][int(used[0])].abs().sum() > 0
    second.begin()
    assert second.room <= 1
    first.release(span)
    other = _read(second, 300)
    assert first.tree.stats()["lent"] >= 19
    stored = {int(page) for page in second.tree.pages(other.kv)}
    assert stored >= set(used.tolist())  # the same bytes
    tail = second.pool.v[:, second.tree.pages(other.kv)[-1]]
    assert tail[..., : 300 % 16, :].any() and not tail[..., 300 % 16 :, :].any()  # finite in any type
    assert memory.evict(first, 19, [])  # idle on the other side
    assert other.kv < 0


def test_places_for_tokens_ahead_are_granted_and_given_back(policy: LoadedModel) -> None:
    memory = Memory(pages(policy, 20))
    first, second = (Runner(policy.decoder, memory=memory) for _ in range(2))
    second.release(_read(second, 300))  # its pages hold nothing, and are its own
    parent = _read(first, 20)
    rows = [Span(parent, [5]), Span(parent, [6])]
    first.begin()
    before = first.room
    assert before == 18 and memory.free < 6 * first.page_bytes
    worker = Rows(rows)
    first.worker = ref(worker)
    store_ahead(first, rows, 40)
    memory.check()
    assert not first.suspend() and memory.waits(second)  # the device is at work on them
    assert first.refresh_room() == before - 6  # 40 places each
    settle_ahead(first, rows, 40, [list(range(3, 43)), [7]])
    memory.check()
    assert first.suspend() and not memory.waits(second)
    assert [row.n_kv for row in rows] == [40, 1] and [len(row.tokens) for row in rows] == [41, 2]
    assert first.refresh_room() == before - 4


@dataclass(eq=False)
class Rows:
    """A worker that can always be suspended."""

    spans: list[Span]

    def standing(self) -> list[Span]:
        return self.spans

    def suspend(self) -> bool:
        return True


def _read(runner: Runner, count: int) -> Span:
    span = Span(None, list(range(3, 3 + count)))
    span.closed = True
    work = runner.begin()
    assert runner.store(work, span, count)
    runner.run(work)
    runner.memory.check()
    return span


def test_a_memory_that_holds_nothing_is_refused(policy: LoadedModel) -> None:
    with pytest.raises(WcseError, match="holds 0 pages of 16 tokens; give more GiB"):
        Runner(policy.decoder, memory=Memory(100))
