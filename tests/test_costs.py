"""Where a tree's tokens went, by hand on a small tree and by its sums on real ones."""

from __future__ import annotations

from dataclasses import replace

import fake_runs
import pytest
import sample_runs

from wcse.data.costs import readers, roles, tree_costs
from wcse.data.record import NodeRecord, SolutionRecord
from wcse.ledger import Ledger
from wcse.types import LOOKAHEAD, PROBE


def node(path: tuple[int, ...], tokens: int, finish: str = "delim") -> NodeRecord:
    return NodeRecord(path, path[:-1] or None, (1,) * tokens, "x", finish, 0.0, 0.5)


def test_costs_by_hand() -> None:
    nodes = (
        node((0,), 4),
        node((0, 0), 3, "eos"),
        node((0, 1), 2),
        node((1,), 5),
        node((0, LOOKAHEAD), 6),
        node((PROBE,), 7, "eos"),
    )
    record = replace(
        sample_runs.record(),
        nodes=nodes,
        solutions=(SolutionRecord((0, 0), "1", 0, 0.5, True),),
        prompt_tokens=10,
    )
    costs = tree_costs(record)
    assert (costs.kept, costs.pruned, costs.lookahead, costs.difficulty) == (7, 7, 6, 7)
    assert costs.unique == 10 + 27
    assert costs.apart == (10 + 7) + (10 + 6) + (10 + 5) + (10 + 10) + (10 + 7)
    assert costs.read_once == 37 and costs.reread == 14 + 17 + 16 + 15 + 20 + 17
    assert costs.sharing == pytest.approx(85 / 37)


def test_readers_are_told_although_equal_texts_were_read_once() -> None:
    record = sample_runs.record(strategy="beam_search")
    reread = tree_costs(record).reread
    read = reread + record.prompt_tokens

    def told(computed: int, reused: int, asked: int = 0) -> int:
        ledger = Ledger(prm_computed=computed, prm_reused=reused, prm_asked=asked)
        return readers(replace(record, ledger=ledger), reread)

    assert told(read // 8, read - read // 8) == 1
    assert told(read // 16, 2 * read - read // 16) == 2  # two models, and less computed than one reads once
    assert told(read + 5000, 0, asked=5000) == 1
    assert told(0, 0) == 0


@pytest.mark.parametrize("strategy", ["best_of_n", "beam_search", "lookahead_search", "dvts", "majority"])
def test_every_token_has_one_role(strategy: str) -> None:
    record = fake_runs.record(2, strategy, fake_runs.recipe())
    costs = tree_costs(record)
    assert costs.unique == record.prompt_tokens + costs.kept + costs.pruned + costs.lookahead
    assert costs.unique == record.ledger.policy_computed
    assert (costs.lookahead > 0) == (strategy == "lookahead_search")
    assert (costs.read_once == 0) == (strategy == "majority")
    assert set(roles(record)) == set(record.by_path)
    if strategy == "best_of_n":  # only the prompt is shared
        assert costs.apart == costs.unique + (len(record.solutions) - 1) * record.prompt_tokens
