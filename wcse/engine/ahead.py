"""Places for tokens that a device draws by itself: owned before a round, settled after it, foreseen while it runs.

Knows spans, the tree and its pages; nothing of devices, sampling or what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wcse import _core
from wcse.engine.runner import Runner
from wcse.engine.spans import Span, opened_pages, pages


@dataclass(frozen=True, slots=True)
class Places:
    """Where the last token of every span and those that follow it go; in the order of ``spans``.

    ``stored`` are the tokens that each span had stored before, ``moves`` the runner's at that time.
    """

    spans: list[Span]
    stored: list[int]
    moves: int
    plan: _core.Plan  # of one row for every span
    slots: np.ndarray  # int32 [spans], of each last token
    ahead: np.ndarray  # int32 [spans, pages] that each will grow into, -1 for none


def store_ahead(
    runner: Runner, spans: Sequence[Span], count: int, *, foreseen: Places | None = None
) -> Places:
    """Store the last token of every span and own places for the ``count - 1`` that follow it. Memory must suffice.

    Returns:
        ``foreseen``, where all came as it says; else new places.
    """
    work, stored = runner.begin(), [span.n_kv for span in spans]
    runner.store_one(work, spans)
    for span in spans:
        runner.take(span, count - 1)
    nodes, slots = _nodes(spans), np.concatenate(work.slots)
    runner.ahead = True
    if foreseen is not None and (foreseen.spans, foreseen.stored, foreseen.moves) == (
        list(spans),
        stored,
        runner.moves,
    ):
        later = _extend(runner.tree, nodes, count - 1)
        if np.array_equal(slots, foreseen.slots) and np.array_equal(opened_pages(later), foreseen.ahead):
            return foreseen
        _retract(runner.tree, nodes, count - 1)
    plan = _plan(runner.tree, nodes)
    later = _extend(runner.tree, nodes, count - 1)
    return Places(list(spans), stored, runner.moves, plan, slots, opened_pages(later))


def foresee(runner: Runner, spans: Sequence[Span], count: int) -> Places | None:
    """What ``store_ahead`` will say next, if every span writes all of the ``count`` tokens that it has places for now.

    Nothing is changed: the tree hands out the same pages again if none became free meanwhile. None: it has too few.
    """
    tree, nodes = runner.tree, _nodes(spans)
    stored = [span.n_kv + count - 1 for span in spans]
    stats = tree.stats()
    if sum(pages(n + count) - pages(n) for n in stored) > stats["free"] - stats["lent"]:
        return None
    slots = np.asarray(tree.extend_rows(nodes, np.zeros(len(nodes), np.int32)))
    plan = _plan(tree, nodes)
    later = _extend(tree, nodes, count - 1)
    _retract(tree, nodes, count - 1)
    _retract(tree, nodes, 1)
    return Places(list(spans), stored, runner.moves, plan, slots, opened_pages(later))


def settle_ahead(runner: Runner, spans: Sequence[Span], count: int, written: Sequence[Sequence[int]]) -> None:
    """After ``store_ahead``: each span wrote these tokens, at least one; all but the last are stored."""
    for span, new in zip(spans, written, strict=True):
        span.tokens += new
        span.n_kv += len(new) - 1
    kept = np.fromiter(map(len, written), np.int32, len(spans))
    stored = [token for new in written for token in new[:-1]]
    runner.tree.amend_rows(_nodes(spans), count - kept, kept - 1, np.asarray(stored, np.int32))
    runner.ahead = False
    runner.settle()
    runner.computed += int(kept.sum())
    runner.refresh_room()


def _nodes(spans: Sequence[Span]) -> np.ndarray:
    return np.fromiter((span.kv for span in spans), np.int32, len(spans))


def _plan(tree: _core.KVTree, nodes: np.ndarray) -> _core.Plan:
    """Of the last token of every node."""
    return _core.plan(tree, nodes, np.ones(len(nodes), np.int32))


def _extend(tree: _core.KVTree, nodes: np.ndarray, count: int) -> np.ndarray:
    """Slots [nodes, count] of so many tokens more."""
    return np.asarray(tree.extend_ahead(nodes, count)).reshape(len(nodes), count)


def _retract(tree: _core.KVTree, nodes: np.ndarray, count: int) -> None:
    """Undo ``_extend``."""
    none = np.zeros(len(nodes), np.int32)
    tree.amend_rows(nodes, none + count, none, np.empty(0, np.int32))
