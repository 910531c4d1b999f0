"""One arena for the pages of several models: blocks, what moves between them, and that nothing is lost or shared."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wcse.engine.ahead import Places, foresee, settle_ahead, store_ahead
from wcse.engine.arena import LOSS, NOBODY, Arena, block_size
from wcse.engine.memory import Memory
from wcse.engine.runner import Runner
from wcse.engine.spans import Span
from wcse.models.decoder import Decoder
from wcse.models.kv_pool import KVPool
from wcse.models.load import LoadedModel, load_model
from wcse.types import WcseError

KIB = 1024
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_models.build("llama", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def halves(model: LoadedModel) -> Decoder:
    """The model with keys and values of 16 bits: pages of half the size."""
    return Decoder(model.spec, model.weights, kv_dtype=torch.float16)


@pytest.mark.parametrize(
    ("pages", "size", "expected"),
    [
        ([46 * KIB], 2**24, 46 * KIB),
        ([512 * KIB, 2048 * KIB], 2**32, 2048 * KIB),
        ([512 * KIB, 896 * KIB], 2**32, 3584 * KIB),  # their least common multiple
        ([360 * KIB, 2048 * KIB], 2**32, 10240 * KIB),  # that would be 90 MiB
        ([512 * KIB], 2**37, 32 * 2**20),  # larger blocks rather than more of them
        ([6 * KIB, 10 * KIB], 36 * 6 * KIB, 10 * KIB),  # a small arena keeps as many blocks as it can
    ],
)
def test_blocks_are_small_and_lose_little(pages: list[int], size: int, expected: int) -> None:
    assert block_size(pages, size) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=3), st.integers(2000, 9000))
def test_pages_of_two_blocks_share_no_byte(pages: list[int], size: int) -> None:
    arena = Arena(size, CPU)
    arena.cut(pages, 10**6)
    blocks = np.arange(len(arena.owner), dtype=np.int32)
    for page in pages:
        kept = arena.pages(blocks, page)
        assert (np.diff(kept) > 0).all() and (kept.astype(int) + 1).max() * page <= size
        of = arena.blocks(kept, page)
        assert (
            of == (kept.astype(int) * page + page - 1) // arena.block
        ).all()  # first and last byte in one block
        assert np.bincount(of, minlength=len(blocks)).min() >= arena.fewest(page)
        if len(blocks) * arena.block > size * 0.9 and arena.block < 33 * max(pages):
            assert arena.fewest(max(pages)) >= 1
        lost = 1 - len(kept) * page / (len(blocks) * arena.block)
        assert lost <= LOSS or size // max(pages) // 16 < 32


def test_a_block_goes_back_to_who_had_it_then_to_who_need_not_clear_it() -> None:
    arena = Arena(80, CPU)
    arena.cut([10], 100)
    assert arena.block == 10
    first, foreign = arena.take(0, 3)
    arena.own(0, first)
    second, _ = arena.take(1, 2)
    arena.own(1, second)
    assert len(foreign) == 0 and arena.count(NOBODY) == 3
    arena.give(first)
    arena.give(second)
    again, foreign = arena.take(1, 6)
    assert again.tolist() == [*second.tolist(), 5, 6, 7, *first.tolist()[:1]]
    assert foreign.tolist() == first.tolist()[:1]
    arena.bytes.fill_(7)
    arena.clear(foreign)
    assert int(arena.bytes.sum()) == 70 * 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("device", [None, CPU])
def test_a_page_holds_every_layer(
    model: LoadedModel, dtype: torch.dtype, device: torch.device | None
) -> None:
    """Each byte of a page belongs to one number of one layer, and to no other page."""
    spec, size = model.spec, KVPool.page_bytes(model.spec, dtype)
    pool = KVPool(spec, 3, device=device, dtype=dtype, memory=torch.zeros(4 * size, dtype=torch.uint8))
    parts = [*pool.k, *pool.v]
    if dtype is torch.float8_e4m3fn:
        parts = [x for part in parts for x in (part.values.view(torch.uint8), part.scale)]
    for i, part in enumerate(parts):
        assert (part[1] == 0).all(), f"part {i} overlaps another"
        part[1] = 1.0
    assert (pool.pages[1].view(torch.uint8) == 0).sum() < size and not pool.pages[[0, 2]].any()
    assert sum(part[1].numel() * part.element_size() for part in parts) == size
    pool.move(np.array([1], np.int32), np.array([2], np.int32))
    assert all((part[2] == 1).all() for part in parts)


def _read(runner: Runner, tokens: list[int], parent: Span | None = None) -> tuple[Span, torch.Tensor]:
    span = Span(parent, tokens)
    span.closed = True
    work = runner.begin()
    assert runner.store(work, span, len(tokens))
    hidden = runner.run(work)
    runner.memory.check()
    return span, hidden


def test_the_border_moves_both_ways_and_keeps_what_is_stored(model: LoadedModel, halves: Decoder) -> None:
    """Pages that hold something lie scattered; they are moved together, and what is read below them is the same."""
    memory = Memory(32 * KVPool.page_bytes(model.spec))
    runners = [Runner(model.decoder, memory=memory), Runner(halves, memory=memory)]
    assert memory.arena.block == runners[0].page_bytes == 2 * runners[1].page_bytes
    texts = [[3 + (7 * i + j) % 90 for j in range(16)] for i in range(120)]
    tail = [5, 6, 7]
    for giver, taker in (runners, runners[::-1]):
        free = giver.begin() and giver.room
        spans = [_read(giver, texts[i])[0] for i in range(free)]
        assert giver.refresh_room() == 0 and taker.refresh_room() == 0
        alone = Runner(giver.decoder, num_pages=64)
        kept = spans[1::2]
        for span in spans[::2]:
            giver.release(span)
        need = taker.refresh_room()
        assert need == free // 2 * giver.page_bytes // taker.page_bytes
        moved = giver.moves
        taken = [_read(taker, texts[-1 - i])[0] for i in range(need)]
        assert taker.refresh_room() == 0
        # Two pages of the smaller size lie in a block: one of each had to move. The larger are whole blocks.
        assert (giver.moves > moved) == (giver is runners[1])
        for span in taken:
            taker.release(span)
        for span in kept:
            below, found = _read(giver, tail, span)
            fresh, _ = _read(alone, span.tokens)
            assert torch.equal(found, _read(alone, tail, fresh)[1])
            giver.release(below)
        giver.reset()
        assert giver.tree.stats()["nodes"] == 0
    memory.check()
    assert (
        sum(runner.refresh_room() * runner.page_bytes for runner in runners) == 2 * 32 * runners[0].page_bytes
    )


def test_memory_of_a_runner_that_is_gone_comes_back(model: LoadedModel) -> None:
    memory = Memory(20 * KVPool.page_bytes(model.spec))
    first, second = (Runner(model.decoder, memory=memory) for _ in range(2))
    _read(second, list(range(3, 300)))
    assert first.refresh_room() == 1
    del second
    memory.check()
    _read(first, list(range(3, 300)))


def test_models_join_before_the_first_runs(model: LoadedModel, halves: Decoder) -> None:
    memory = Memory(20 * KVPool.page_bytes(halves.spec, torch.float16))
    _read(Runner(halves, memory=memory), [3, 4])
    with pytest.raises(WcseError, match="load all models before the first of them runs"):
        runner = Runner(halves, memory=memory)
        _read(runner, [3, 4])
        Runner(model.decoder, memory=memory)


class TestForesight:
    def start(self, runner: Runner) -> list[Span]:
        parent, _ = _read(runner, list(range(3, 23)))
        spans = [Span(parent, [token]) for token in (5, 6, 7)]
        runner.release(_read(runner, list(range(40, 90)), parent)[0])  # the free pages are in no order
        return spans

    def test_what_is_foreseen_comes(self, model: LoadedModel) -> None:
        runner = Runner(model.decoder, num_pages=40)
        spans = self.start(runner)
        places = store_ahead(runner, spans, 9)
        for _ in range(4):
            before = (runner.tree.stats(), runner.tree.spare().tolist())
            foreseen = foresee(runner, spans, 9)
            assert foreseen is not None
            after = (
                runner.tree.stats() | {"peak_used": before[0]["peak_used"]},
                runner.tree.spare().tolist(),
            )
            assert after == before, "looking ahead changed the tree"
            settle_ahead(runner, spans, 9, [list(range(30, 39))] * 3)
            places = store_ahead(runner, spans, 9, foreseen=foreseen)
            assert places is foreseen
            _check_plan(runner, places)
        runner.tree.check()

    @pytest.mark.parametrize("change", ["a row stopped early", "a row is gone", "pages moved", "other pages"])
    def test_what_comes_otherwise_is_planned_anew(self, model: LoadedModel, change: str) -> None:
        runner = Runner(model.decoder, num_pages=40)
        spans = self.start(runner)
        store_ahead(runner, spans, 16)
        foreseen = foresee(runner, spans, 16)
        assert foreseen is not None
        written = [list(range(30, 46)) for _ in spans]
        if change == "a row stopped early":
            written[1] = [30]
        settle_ahead(runner, spans, 16, written)
        if change == "a row is gone":
            runner.release(spans.pop())
        if change == "pages moved":
            runner.relocate(runner.tree.pages(spans[0].kv)[:1], runner.tree.spare()[:1])
        if change == "other pages":
            runner.tree.take_back(_swap(runner))
        places = store_ahead(runner, spans, 16, foreseen=foreseen)
        assert places is not foreseen and places.spans == spans
        _check_plan(runner, places)
        runner.tree.check()

    def test_too_few_pages(self, model: LoadedModel) -> None:
        runner = Runner(model.decoder, num_pages=8)
        spans = self.start(runner)
        store_ahead(runner, spans, 16)
        assert foresee(runner, spans, 32) is None


def _check_plan(runner: Runner, places: Places) -> None:
    """The plan is of the last stored token of every row, and reads the pages on their paths up to there."""
    ends = sorted(span.start + span.n_kv - 1 for span in places.spans)
    assert sorted(places.plan.positions.tolist()) == ends
    path = {part for span in places.spans for part in span.lineage()}
    pages = [page for part in path for page in runner.tree.pages(part.kv)[: -(-part.n_kv // 16)].tolist()]
    assert sorted(places.plan.pages.tolist()) == sorted(pages)


def _swap(runner: Runner) -> np.ndarray:
    """The page that would be handed out next, taken out to be handed out after another."""
    spare = runner.tree.spare()
    runner.tree.lend(spare[-2:])
    return spare[-2:]
