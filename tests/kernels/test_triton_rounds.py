"""Rounds of several tokens without the host: the tokens of an engine that looks at every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from wcse.engine import machines
from wcse.engine.engine import Engine
from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams
from wcse.engine.rounds import Rounds
from wcse.engine.runner import Runner
from wcse.engine.spans import Span
from wcse.kernels import ops
from wcse.models.decoder import Decoder
from wcse.models.kv_pool import KVPool
from wcse.models.load import load_model

pytest.importorskip("triton")

from wcse.kernels.triton import work

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
R, K, V, STATES = 150, 3, 40, 6  # more rows than one program has


def rows_of(generator: torch.Generator) -> ops.DecodeRows:
    def ints(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape or (R,), generator=generator, dtype=torch.int32)

    return ops.DecodeRows(
        tokens=ints(V).long(),
        positions=ints(99),
        slots=ints(999),
        counters=ints(99),
        left=ints(3) + 1,
        machines=ints(STATES, 2, R),
        done=ints(4) // 3,
        counts=torch.zeros(R, dtype=torch.int32),
        written=torch.full((K, R), -7, dtype=torch.int32),
        logprobs=torch.zeros(K, R),
    )


def test_advance_and_grow_are_what_the_references_say() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = rows_of(generator)
    entries = torch.randint(STATES, (STATES, V), generator=generator)
    entries += (torch.rand(STATES, V, generator=generator) < 0.1) * (1 << 15)
    table = torch.from_numpy(entries.numpy().astype(np.uint16).view(np.int16))
    # Two entries a row: its last page, and the one that it may grow into.
    page = torch.stack(
        [torch.arange(R) | torch.randint(1, 17, (R,), generator=generator) << 27, torch.arange(R) + R]
    )
    page = page.T.reshape(-1).to(torch.int32).contiguous()
    row_pos = rows.positions.clone()
    tails = torch.arange(0, 2 * R, 2, dtype=torch.int32)
    empty = torch.empty(0, dtype=torch.int32)

    def run(backend: str, device: torch.device) -> list[torch.Tensor]:
        mine = ops.DecodeRows(*(getattr(rows, f.name).clone().to(device) for f in fields(rows)))
        parts = [x.clone().to(device) for x in (page, row_pos, tails)]
        list_ = work.DeviceList(
            empty, 16, 1, 0, R, empty, parts[0], empty, empty, empty, parts[1], traffic=work.Traffic(0, 0)
        )
        draws = torch.Generator().manual_seed(5)
        for _ in range(K):
            drawn = torch.randint(-1, V, (R,), generator=draws, dtype=torch.int32)
            ops.advance(drawn.to(device), drawn.float().to(device), mine, table.to(device), backend=backend)
            ops.grow(mine, parts[2], list_, backend=backend)
        return [x.cpu() for x in (*(getattr(mine, f.name) for f in fields(mine)), *parts)]

    want, got = run("torch", torch.device("cpu")), run("triton", DEVICE)
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs)
    done = want[6]
    assert {1, 2, 4, 8, 16} <= {1 << b for b in range(5) if (done >> b & 1).any()}


class Neighbour(Runner):
    """A model whose pages of 8 bits take what is left of the memory but three blocks, anew each time."""

    stored: Span | None = None

    def press(self) -> None:
        if self.stored is not None:
            self.release(self.stored)
        work, left = self.begin(), 3 * self.memory.arena.fewest(self.page_bytes)
        self.stored = Span(None, [5] * (16 * (self.room - left)))
        assert self.store(work, self.stored, len(self.stored.tokens))
        self.settle()
        for page in self.tree.pages(self.stored.kv):
            self.pool.pages[page] = 255  # no number, in any type
        self.memory.check()


def pressed(engine: Engine, other: Neighbour) -> Callable[[], bool]:
    """The beginning of a step, after the neighbour took its part; once a page of the engine's rows is moved as well."""
    begin, runner = engine.begin, engine.runner

    def step() -> bool:
        other.press()
        if engine.rounds and engine.rounds.foreseen == 1 and not runner.moves:
            runner.relocate(runner.tree.pages(engine.rows[0].span.kv)[:1], runner.tree.spare()[:1])
        return begin()

    return step


def test_an_engine_in_rounds_writes_the_same(tmp_path: Path) -> None:
    """Greedy and drawn, with stop strings and ids, across a page; gemma2 has two windows, hence two work lists.

    A neighbour in the same memory moves the border all the time.
    """
    folder = tiny_models.build("gemma2", tmp_path, num_hidden_layers=2)
    model = load_model(folder)
    dense = Decoder(model.spec, model.weights, backend="triton", device=DEVICE)
    narrow = Decoder(model.spec, model.weights, backend="triton", device=DEVICE, kv_dtype=ops.FP8)
    page = KVPool.page_bytes(model.spec)
    prompts = ["12 + 7 =", "Anna has three"]
    drawn = SamplingParams(n=3, temperature=1.2, top_p=0.95, max_tokens=13)
    free = LLM(model, kv_memory=0.01, seed=3).generate(prompts, drawn, use_tqdm=False)[1].outputs
    text = model.tokenizer.decode([free[1].token_ids[7]])
    params = [
        SamplingParams(temperature=0.0, max_tokens=19, ignore_eos=True),
        replace(drawn, stop=[text] if text else [], stop_token_ids=[free[0].token_ids[5]]),
    ]
    found, computed = [], []
    for loaded in (model, replace(model, decoder=dense)):
        llm = LLM(loaded, kv_memory=60 * page / 2**30, seed=3)
        if loaded is not model:
            engine = llm.engine
            engine.rounds = Rounds(engine, tokens=3)
            other = Neighbour(narrow, memory=engine.runner.memory)
            engine.begin = pressed(engine, other)  # type: ignore[method-assign]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        found.append([c for r in outputs for c in r.outputs])
        llm.engine.runner.tree.check()
        if loaded is not model:
            assert engine.rounds.done > engine.rounds.foreseen >= 1
            assert engine.runner.moves == 1
        computed.append(llm.engine.runner.computed)
    assert computed[0] == computed[1]
    for want, got in zip(*found, strict=True):
        assert (got.token_ids, got.text, got.finish_reason) == (want.token_ids, want.text, want.finish_reason)
    assert {c.finish_reason for c in found[0]} == {"length", "stop"}


@pytest.mark.parametrize("states", [2048, 8])
def test_later_requests_have_stop_strings_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: int
) -> None:
    """The matcher gives the number of a pattern that is gone to the next one; a full table forgets what is gone."""
    monkeypatch.setattr(machines, "MOST_STATES", states)
    folder = tiny_models.build("llama", tmp_path, num_hidden_layers=1)
    model = load_model(folder)
    dense = replace(model, decoder=Decoder(model.spec, model.weights, backend="triton", device=DEVICE))
    base = SamplingParams(temperature=1.2, max_tokens=12, ignore_eos=True, seed=5)
    (free,) = LLM(model, kv_memory=0.01).generate(["12 + 7 ="], base, use_tqdm=False)
    texts = [model.tokenizer.decode([token]) for token in free.outputs[0].token_ids]
    stops = [text for text in texts if text.strip().isascii() and text.strip()]
    assert len(set(stops)) > 1
    found = []
    for loaded in (model, dense):
        llm = LLM(loaded, kv_memory=0.01)
        if loaded is dense:
            llm.engine.rounds = Rounds(llm.engine, tokens=6)
        outputs = []
        for stop in (stops[-1], stops[0], stops[-1]):
            (output,) = llm.generate(["12 + 7 ="], replace(base, stop=[stop]), use_tqdm=False)
            outputs.append((output.outputs[0].token_ids, output.outputs[0].finish_reason))
            llm.engine.reclaim()
            assert llm.engine.matcher.patterns == 0
        found.append(outputs)
    assert found[0] == found[1] and llm.engine.rounds.done > 2
