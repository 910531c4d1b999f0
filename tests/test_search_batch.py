"""The driver keeps the batch full while searches of many problems go on, whatever each of them waits for."""

from __future__ import annotations

import pytest

from wcse.engine.engine import Engine
from wcse.problems import load_problems
from wcse.recipe import Recipe
from wcse.solve import solve_all

PROBLEMS = "gsm_symbolic:size=10,seed=30000000"
ROWS = 16


@pytest.mark.parametrize("strategy", ["beam_search"])
def test_batch_is_full_until_the_last_tenth(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    begin = Engine.begin

    def counted(self: Engine) -> bool:
        begun = begin(self)
        rows.append(len(self.rows))
        return begun

    monkeypatch.setattr(Engine, "begin", counted)
    recipe = Recipe.parse(
        {
            "policy": "tiny-wc",
            "prm": "shared",
            "problems": PROBLEMS,
            "strategies": [strategy],
            "n": 8,
            "max_tokens": 160,
            "batch_size": ROWS,
        }
    )
    solve_all(recipe, load_problems(PROBLEMS))
    done, busy = 0, []
    for count in rows:
        if done < 0.9 * sum(rows):
            busy.append(count)
        done += count
    assert sum(busy) / len(busy) >= 0.8 * ROWS
