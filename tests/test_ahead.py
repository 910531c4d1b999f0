"""Room for tokens that a device draws by itself: the tree's side, the work list's, and the automata it follows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wcse import _core

ALPHABET = [b"a", b"b", b" ", b"\n", b"\n\n", b"ab", b"b\n", b"\na", b"", b" a\n\nb"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from([b"\n\n", b"ab", b"a\n", b"aab"]),
    st.lists(st.sampled_from([b"ab", b"b\nb", b"\n", b"aaa", b"ba"]), max_size=3, unique=True),
    st.lists(st.integers(0, len(ALPHABET) - 1), max_size=25),
    st.lists(st.booleans(), min_size=25, max_size=25),
)
def test_automata_find_what_the_matcher_finds(
    delimiter: bytes, stops: list[bytes], tokens: list[int], renewed: list[bool]
) -> None:
    matcher = _core.TextMatcher(ALPHABET)
    pattern = matcher.pattern(delimiter, stops)
    slot = matcher.open(pattern, b"xa")
    machines = {bit: matcher.automaton(pattern, bit) for bit in (1, 2)}
    tables = {bit: matcher.table(machine) for bit, machine in machines.items()}
    states = {bit: matcher.state(machine, slot, bit) for bit, machine in machines.items()}
    for token, renew in zip(tokens, renewed, strict=False):
        found = int(matcher.advance([slot], [token])[0])
        for bit, table in tables.items():
            entry = int(table[states[bit], token])
            assert bool(entry >> 15) == bool(found & bit)
            states[bit] = entry & 0x7FFF
        if renew:  # a new step: only its own text can hold a delimiter
            matcher.new_step(slot)
            states = {bit: matcher.state(machine, slot, bit) for bit, machine in machines.items()}


def test_no_delimiter_finds_nothing() -> None:
    matcher = _core.TextMatcher(ALPHABET)
    machine = matcher.automaton(matcher.pattern(b"", []), 1)
    assert not (np.asarray(matcher.table(machine)) >> 15).any()


def test_a_tree_keeps_what_the_device_wrote() -> None:
    tree = _core.KVTree(16, True)
    root = tree.fork(0)
    tree.extend(root, range(20))
    tree.settle()
    tree.seal(root)
    leaves = [tree.fork(root) for _ in range(3)]
    tree.extend_rows(leaves, [7, 8, 9])
    slots = np.asarray(tree.extend_ahead(leaves, 17)).reshape(3, 17)
    assert [tree.length(leaf) for leaf in leaves] == [18] * 3
    for leaf, mine in zip(leaves, slots, strict=True):
        pages = tree.pages(leaf)
        assert mine.tolist() == [pages[(1 + i) // 16] * 16 + (1 + i) % 16 for i in range(17)]
    tree.amend_rows(leaves, [17, 10, 0], [0, 7, 17], [*range(30, 37), *range(50, 67)])
    tree.settle()
    assert tree.tokens(leaves[0]).tolist() == [7]
    assert tree.tokens(leaves[1]).tolist() == [8, *range(30, 37)]
    assert tree.tokens(leaves[2]).tolist() == [9, *range(50, 67)]
    assert [len(tree.pages(leaf)) for leaf in leaves] == [1, 1, 2]
    assert tree.depth(leaves[1]) == 28
    for leaf in leaves:
        tree.release(leaf)
    assert tree.stats()["free"] == 14


@pytest.mark.parametrize(
    ("nodes", "drop", "counts", "tokens", "message"),
    [
        ([0], [3], [0], [], "too few tokens in flight"),
        ([0], [0], [3], [1, 2, 3], "too few tokens in flight"),
        ([0], [-1], [0], [], "too few tokens in flight"),
        ([0], [1], [1], [], "fewer tokens than it counts"),
        ([0], [1], [1], [-4], "must be >= 0"),
        ([0, 0], [0, 0], [0, 0], [], "given twice"),
    ],
)
def test_amendments_that_do_not_fit_are_refused(
    nodes: list[int], drop: list[int], counts: list[int], tokens: list[int], message: str
) -> None:
    tree = _core.KVTree(4, True)
    leaf = tree.fork(0)
    tree.extend_rows([leaf], [5])
    tree.extend_ahead([leaf], 1)
    before = tree.stats()
    with pytest.raises(ValueError, match=message):
        tree.amend_rows([leaf for _ in nodes], drop, counts, tokens)
    assert tree.stats() == before
    with pytest.raises(_core.KVExhausted):
        tree.extend_ahead([leaf], 100)
    assert tree.stats() == before


def test_a_list_with_room_to_grow_shows_what_a_later_plan_would() -> None:
    """Adding one valid token to each row's tail is what a new plan of the grown tree says."""
    tree = _core.KVTree(64)
    root = tree.fork(0)
    tree.extend(root, range(37))
    tree.settle()
    tree.seal(root)
    leaves = [tree.fork(root) for _ in range(5)]
    for i, leaf in enumerate(leaves):
        tree.extend(leaf, range(3 + 4 * i))
    plan = _core.plan(tree, leaves, [1] * 5)
    starts = np.asarray(tree.extend_ahead(leaves, 20)).reshape(5, 20)
    ahead = np.full((5, 2), -1, np.int32)
    for row, slots in enumerate(starts):
        opened = slots[slots % 16 == 0] // 16
        ahead[row, : len(opened)] = opened
    options = {"tile_rows": 2, "block_pages": 2, "items": 1, "least_pages": 1}
    list_ = _core.work_list(plan, **options, ahead=ahead[np.asarray(plan.order)].ravel())
    page, tails = np.asarray(list_.page).copy(), np.asarray(list_.tails)
    for _ in range(20):
        full = (page[tails] >> 27 & 31) == 16
        tails = tails + full
        page[tails] += np.int32(1 << 27)
    items, rows, merged = list_.items.reshape(-1, 5), list_.rows, np.asarray(plan.order)
    seen: list[set[int]] = [set() for _ in leaves]
    for row0, n_rows, begin, end, _ in items.tolist():
        for i in range(begin, end):
            low, high, causal = rows[i] & 255, rows[i] >> 8 & 255, (rows[i] >> 16 & 255) - 128
            for e in range(low, min(high, n_rows)):
                shown = min(int(page[i] >> 27 & 31), causal + e)
                seen[row0 + e] |= {int(page[i] & 0x7FFFFFF) * 16 + t for t in range(shown)}
    for row, segment in enumerate(merged):
        want = set()
        for node in (root, leaves[segment]):
            pages = tree.pages(node)
            want |= {int(pages[t // 16]) * 16 + t % 16 for t in range(tree.length(node))}
        assert seen[row] == want
    with pytest.raises(ValueError, match="as many pages for each"):
        _core.work_list(plan, **options, ahead=[1, 2])
