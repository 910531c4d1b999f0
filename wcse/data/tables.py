"""``solutions.parquet`` and ``nodes.parquet``: the journal as flat tables.

Column names are search-and-learn's where it has them, so that notebooks written for it read these files.
Derived from records alone; knows neither models nor files' places.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from wcse.data.costs import readers, roles, tree_costs
from wcse.data.record import Path, SolveRecord
from wcse.votes import SELECTORS

_FLUSH_ROWS = 20_000

_SAL_SELECTORS = {"weighted": "weighted", "maj": "majority", "naive": "argmax"}
"""search-and-learn's names of the selectors."""


class Table:
    """Rows that are written to a Parquet file as they come, in row groups."""

    def __init__(
        self, file: BinaryIO, schema: pa.Schema, rows: Callable[[SolveRecord], list[dict[str, Any]]]
    ) -> None:
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")
        self._schema = schema
        self._make = rows
        self._rows: list[dict[str, Any]] = []

    def add(self, record: SolveRecord) -> None:
        self._rows += self._make(record)
        if len(self._rows) >= _FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


def subset_sizes(n: int) -> list[int]:
    """1, 2, 4, ... up to ``n``, and ``n`` itself."""
    sizes = [1 << i for i in range(n.bit_length()) if 1 << i <= n]
    return sizes if sizes and sizes[-1] == n else [*sizes, n]


def solutions_table(file: BinaryIO, n: int) -> Table:
    """One row a problem and strategy.

    ``pred`` is the text of the chosen solution, ``pred_<selector>@k`` a boxed answer as search-and-learn
    writes it. For independent samples it is the vote of the first k; survivors of a search are no samples of
    a smaller search, so there only the column of their whole budget is filled.
    """
    sizes = subset_sizes(n)
    votes = [(f"pred_{name}@{size}", pa.string()) for size in sizes for name in _SAL_SELECTORS]
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("strategy", pa.string()),
            ("problem", pa.string()),
            ("answer", pa.string()),
            ("completions", pa.list_(pa.string())),
            ("scores", pa.list_(pa.list_(pa.float64()))),
            ("agg_scores", pa.list_(pa.float64())),
            ("completion_tokens", pa.list_(pa.int64())),
            ("completion_answers", pa.list_(pa.string())),
            ("completion_correct", pa.list_(pa.bool_())),
            ("finish", pa.list_(pa.string())),
            ("pred", pa.string()),
            ("pred_answer", pa.string()),
            ("correct", pa.bool_()),
            ("verdict", pa.string()),
            *votes,
            ("policy_tokens_computed", pa.int64()),
            ("policy_tokens_reused", pa.int64()),
            ("prm_tokens_computed", pa.int64()),
            ("prm_tokens_reused", pa.int64()),
            ("seconds", pa.float64()),
            ("meta", pa.string()),
        ]
    )
    return Table(file, schema, lambda record: [_solutions_row(record, sizes)])


def _solutions_row(record: SolveRecord, sizes: Sequence[int]) -> dict[str, Any]:
    paths = [record.steps(solution.path) for solution in record.solutions]
    completions = [clean("".join(step.text for step in steps)) for steps in paths]
    row: dict[str, Any] = {
        "id": clean(record.problem.id),
        "strategy": record.strategy,
        "problem": clean(record.problem.prompt),
        "answer": clean(record.problem.answer),
        "completions": completions,
        "scores": [[step.score for step in steps] for steps in paths],
        "agg_scores": [solution.agg for solution in record.solutions],
        "completion_tokens": [sum(len(step.token_ids) for step in steps) for steps in paths],
        "completion_answers": [clean(solution.answer) for solution in record.solutions],
        "completion_correct": [solution.correct for solution in record.solutions],
        "finish": [steps[-1].finish if steps else None for steps in paths],
        "pred": None if record.chosen is None else completions[record.chosen],
        "pred_answer": clean(record.answer),
        "correct": record.correct,
        "verdict": record.verdict,
        "policy_tokens_computed": record.ledger.policy_computed,
        "policy_tokens_reused": record.ledger.policy_reused,
        "prm_tokens_computed": record.ledger.prm_computed,
        "prm_tokens_reused": record.ledger.prm_reused,
        "seconds": record.seconds,
        "meta": json.dumps(dict(record.problem.meta), default=str),
    }
    return row | _votes(record, sizes)


def _votes(record: SolveRecord, sizes: Sequence[int]) -> dict[str, str | None]:
    ballots = record.ballots()
    scored = all(ballot.score is not None for ballot in ballots if ballot.complete)
    budget = len(ballots) if record.independent else sizes[-1]
    votes: dict[str, str | None] = {}
    for size in sizes:
        if size > budget or (size < budget and not record.independent):
            continue
        for name, selector in _SAL_SELECTORS.items():
            if scored or selector == "majority":
                best = SELECTORS[selector](ballots[:size])
                answer = None if best is None else clean(record.solutions[best].answer)
                votes[f"pred_{name}@{size}"] = None if answer is None else f"\\boxed{{{answer}}}"
    return votes


NODES = pa.schema(
    [
        ("run", pa.string()),
        ("problem", pa.string()),
        ("strategy", pa.string()),
        ("node_id", pa.int32()),
        ("parent_id", pa.int32()),
        ("depth", pa.int32()),
        ("tok_start", pa.int32()),
        ("tok_end", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("logprob_sum", pa.float64()),
        ("prm_score", pa.float64()),
        ("state", pa.string()),
        ("role", pa.string()),
        ("policy_tokens_computed", pa.int32()),
        ("policy_tokens_reused", pa.int32()),
        ("prm_tokens_computed", pa.int32()),
        ("prm_tokens_reused", pa.int32()),
    ]
)


def nodes_table(file: BinaryIO, run: str) -> Table:
    """One row a step of any tree, pruned steps included.

    ``node_id`` counts from 1 within a problem and strategy, parents first; ``parent_id`` 0 is the prompt.
    ``tok_start``, ``tok_end`` count from the end of the prompt; ``state`` is the step's finish reason, ``role``
    what it was for (``wcse.data.costs.roles``). Computed tokens are the step's own, reused ones its prefix, prompt
    included; a verifier of two models computes each token twice, one on the policy's own states none.
    """
    return Table(file, NODES, lambda record: _node_rows(record, run))


def _node_rows(record: SolveRecord, run: str) -> list[dict[str, Any]]:
    ids: dict[Path, int] = {(): 0}
    ends: dict[Path, int] = {(): 0}
    rows = []
    role = roles(record)
    times = readers(record, tree_costs(record).reread)
    for node in sorted(record.nodes, key=lambda node: (len(node.path), node.path)):
        above = node.parent or ()
        ids[node.path] = len(ids)
        ends[node.path] = ends[above] + len(node.token_ids)
        rows.append(
            {
                "run": run,
                "problem": clean(record.problem.id),
                "strategy": record.strategy,
                "node_id": ids[node.path],
                "parent_id": ids[above],
                "depth": len(node.path),
                "tok_start": ends[above],
                "tok_end": ends[node.path],
                "token_ids": list(node.token_ids),
                "text": clean(node.text),
                "logprob_sum": node.logprob,
                "prm_score": node.score,
                "state": node.finish,
                "role": role[node.path],
                "policy_tokens_computed": len(node.token_ids),
                "policy_tokens_reused": record.prompt_tokens + ends[above],
                "prm_tokens_computed": times * len(node.token_ids) if node.score is not None else 0,
                "prm_tokens_reused": max(1, times) * (record.prompt_tokens + ends[above])
                if node.score is not None
                else 0,
            }
        )
    return rows


def clean(text: str | None) -> Any:
    """``text`` with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD. None stays None."""
    return None if text is None else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
