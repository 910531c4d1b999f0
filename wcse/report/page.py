"""``report.html``: one file with the table, the plots and every search tree; it opens from a disk, offline.

Model text and problems are untrusted. Whatever Python puts into the page is escaped; trees travel as
compressed base64 and are shown as text nodes; and the page's own policy (CSP) runs no script but ours, by its
hash, and loads nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from html import escape
from typing import Any, BinaryIO

from wcse.data.record import Path, SolveRecord
from wcse.data.tables import clean
from wcse.report import overview
from wcse.report.assets import asset, fill, source, template

_THEME = '<button id="theme" type="button" title="Light or dark">◐</button>'

MOST_TREE_BYTES = 48 << 20
"""Size at which the page stops taking trees; the rest stay in ``nodes.parquet``."""


class Report:
    """Collects records, one at a time; ``write`` puts the page into a file."""

    def __init__(self, *, most_tree_bytes: int = MOST_TREE_BYTES) -> None:
        self._room = most_tree_bytes
        self._pieces: list[str] = []
        self._trees: dict[bytes, int] = {}
        self._problems: dict[str, dict[str, Any]] = {}
        self.left_out = 0

    def add(self, record: SolveRecord) -> None:
        entry = self._problems.setdefault(
            record.problem.id, {"id": clean(record.problem.id), "gist": _gist(record), "runs": {}}
        )
        if self._room <= 0:
            self.left_out += 1
            piece = None
        else:
            nodes, order = _tree(record)
            piece = self._embed(_run(record, order, tree=self._embed_once(nodes)))
        entry["runs"][record.strategy] = [record.correct, piece]

    def write(self, file: BinaryIO, summary: Mapping[str, Any]) -> None:
        """Write the page; ``summary`` is that of the same records."""
        style, script = asset("page.css"), asset("page.js")
        index = {
            "strategies": list(summary["strategies"]),
            "first": overview.best_strategy(summary),
            "problems": list(self._problems.values()),
            "leftOut": self.left_out,
        }
        # The pieces are large: they are written between two halves of the page, never joined to it.
        head, _, tail = template(asset("run.html"), controls=_THEME).partition("{{pieces}}")
        values = {
            "csp": f"default-src 'none'; style-src {source(style)}; script-src {source(script)}",
            "title": escape(f"wcse run {summary['run']}"),
            "style": style,
            "script": script,
            "facts": overview.facts(summary["recipe"]),
            "tiles": overview.tiles(summary),
            "table": overview.table(summary),
            "plots": overview.plots(summary),
            "recipe": escape(
                json.dumps({key: summary[key] for key in ("recipe", "inputs", "versions")}, indent=2)
            ),
            "index": _embeddable(index),
        }
        file.write(fill(head, values).encode())
        for piece in self._pieces:
            file.write(piece.encode("ascii"))
        file.write(fill(tail, values).encode())

    def _embed_once(self, nodes: list[Any]) -> int:
        """The tree's piece; strategies that drew the same samples share it."""
        key = hashlib.sha256(json.dumps(nodes).encode()).digest()
        if key not in self._trees:
            self._trees[key] = self._embed(nodes)
        return self._trees[key]

    def _embed(self, value: Any) -> int:
        data = base64.b64encode(zlib.compress(json.dumps(value, allow_nan=False).encode("ascii"), 6)).decode(
            "ascii"
        )
        number = len(self._pieces)
        self._pieces.append(f'<script type="text/plain" id="piece-{number}">{data}</script>\n')
        self._room -= len(data)
        return number


def _tree(record: SolveRecord) -> tuple[list[Any], dict[Path, int]]:
    """Depth-first rows: parent index or -1, child index, tokens, finish, score, logprob, text."""
    nodes = sorted(record.nodes, key=lambda node: node.path)
    order = {node.path: index for index, node in enumerate(nodes)}
    rows = [
        [
            order.get(node.parent or (), -1),
            node.path[-1],
            len(node.token_ids),
            node.finish,
            None if node.score is None else round(node.score, 4),
            None if node.logprob is None else round(node.logprob, 3),
            clean(node.text),
        ]
        for node in nodes
    ]
    return rows, order


def _run(record: SolveRecord, order: Mapping[Path, int], *, tree: int) -> dict[str, Any]:
    return {
        "tree": tree,
        "prompt": clean(record.problem.prompt),
        "gold": clean(record.problem.answer),
        "answer": clean(record.answer),
        "correct": record.correct,
        "verdict": record.verdict,
        "chosen": record.chosen,
        "selectors": {name: [s.solution, clean(s.answer), s.correct] for name, s in record.selectors.items()},
        "solutions": [
            [order.get(s.path, -1), clean(s.answer), s.answer_class, s.agg, s.correct, record.complete(s)]
            for s in record.solutions
        ],
        "promptTokens": record.prompt_tokens,
        "computed": record.ledger.policy_computed,
        "reused": record.ledger.policy_reused,
        "prmComputed": record.ledger.prm_computed,
        "prmReused": record.ledger.prm_reused,
        "seconds": record.seconds,
    }


def _gist(record: SolveRecord) -> str:
    text = " ".join(str(clean(record.problem.prompt)).split())
    return text if len(text) <= 90 else text[:89] + "…"


def _embeddable(value: Any) -> str:
    """JSON that cannot end the script element it stands in: no ``<``, ``>`` or ``&`` is left in it."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
