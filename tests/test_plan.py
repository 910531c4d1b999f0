"""The planner against a naive one: every row sees every token of its path up to itself, once, and no other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wcse._core import KVTree, Plan, plan

PAGE = 16


@dataclass(frozen=True)
class Row:
    """One token of a segment, and what it must see: slot of each position of its path, up to itself."""

    segment: int
    position: int
    slots: list[int]


def path_of(tree: KVTree, node: int) -> tuple[int, ...]:
    chain = []
    while node != 0:
        chain.append(node)
        node = tree.parent(node)
    return tuple(reversed(chain))


def slots_of(tree: KVTree, node: int) -> list[int]:
    pages = tree.pages(node)
    return [int(pages[i // PAGE]) * PAGE + i % PAGE for i in range(tree.length(node))]


def naive_rows(tree: KVTree, nodes: list[int], n_new: list[int]) -> list[Row]:
    """Depth-first pre-order with children by id is the lexicographic order of the paths."""
    rows = []
    for segment in sorted(range(len(nodes)), key=lambda s: path_of(tree, nodes[s])):
        slots = [slot for node in path_of(tree, nodes[segment]) for slot in slots_of(tree, node)]
        for position in range(len(slots) - n_new[segment], len(slots)):
            rows.append(Row(segment, position, slots[: position + 1]))
    return rows


def seen_slots(made: Plan) -> list[dict[int, list[int]]]:
    """Per row: position -> slots that the plan shows it there."""
    seen: list[dict[int, list[int]]] = [{} for _ in range(made.n_rows)]
    nodes = made.nodes
    for e in range(len(nodes)):
        pages = made.pages[nodes.page_begin[e] : nodes.page_end[e]]
        assert len(pages) == -(-nodes.length[e] // PAGE)
        for r in range(nodes.lo[e], nodes.hi[e]):
            for j in range(min(nodes.length[e], nodes.seen[e] + r - nodes.lo[e])):
                slot = int(pages[j // PAGE]) * PAGE + j % PAGE
                seen[r].setdefault(int(nodes.pos[e]) + j, []).append(slot)
    return seen


def assert_right(tree: KVTree, nodes: list[int], n_new: list[int]) -> Plan:
    return assert_shows(plan(tree, nodes, n_new), tree, nodes, n_new)


def assert_shows(made: Plan, tree: KVTree, nodes: list[int], n_new: list[int]) -> Plan:
    rows = naive_rows(tree, nodes, n_new)
    assert made.n_rows == len(rows)
    assert made.positions.tolist() == [row.position for row in rows]
    order = list(dict.fromkeys(row.segment for row in rows))
    assert made.order.tolist() == order
    first = {row.segment: r for r, row in reversed(list(enumerate(rows)))}
    assert made.row_start.tolist() == [first[s] for s in range(len(nodes))]
    for row, seen in zip(rows, seen_slots(made), strict=True):
        assert seen == {position: [slot] for position, slot in enumerate(row.slots)}
    assert (made.nodes.lo < made.nodes.hi).all(), "a node that no row sees"
    assert (made.nodes.length > 0).all()
    paths = {step for node in nodes for step in path_of(tree, node) if tree.length(step) > 0}
    assert len(made.nodes) == len(paths), "a node is read more than once"
    return made


def child(tree: KVTree, parent: int, length: int) -> int:
    if not tree.sealed(parent):
        tree.seal(parent)
    node = tree.fork(parent)
    tree.extend(node, list(range(length)))
    return node


def test_no_segments() -> None:
    tree = KVTree(4)
    child(tree, 0, 3)
    made = assert_right(tree, [], [])
    assert (made.n_rows, len(made.nodes), len(made.pages)) == (0, 0, 0)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 65])
@pytest.mark.parametrize("whole", [True, False])
def test_single_node(length: int, whole: bool) -> None:
    tree = KVTree(8)
    node = child(tree, 0, length)
    n_new = length if whole else 1
    made = assert_right(tree, [node], [n_new])
    assert made.nodes.seen.tolist() == [length - n_new + 1]
    assert made.nodes.pos.tolist() == [0]


def test_one_child_chain() -> None:
    tree = KVTree(64)
    node = 0
    chain = []
    for length in (64, 64, 5, 16, 1):
        node = child(tree, node, length)
        chain.append(node)
    made = assert_right(tree, [node], [1])
    assert made.nodes.pos.tolist() == [0, 64, 128, 133, 149]
    assert made.nodes.seen.tolist() == [64, 64, 5, 16, 1]
    made = assert_right(tree, chain[2:], [5, 16, 1])  # the end of a prompt: all rows, every node a segment
    assert made.positions.tolist() == list(range(128, 150))


def test_widest_fork_reads_the_prompt_once() -> None:
    tree = KVTree(300)
    prompt = child(tree, 0, 20)
    leaves = [child(tree, prompt, 3) for _ in range(256)]
    made = assert_right(tree, leaves, [1] * 256)
    assert (made.nodes.lo[0], made.nodes.hi[0]) == (0, 256)
    assert len(made.pages) == 2 + 256


def test_node_and_descendant_are_both_segments() -> None:
    tree = KVTree(8)
    top = child(tree, 0, 20)
    middle = child(tree, top, 4)
    leaf = child(tree, middle, 3)
    made = assert_right(tree, [leaf, top], [2, 6])
    assert made.order.tolist() == [1, 0]
    assert made.row_start.tolist() == [6, 0]
    assert made.positions.tolist() == [14, 15, 16, 17, 18, 19, 25, 26]
    assert made.nodes.seen.tolist() == [15, 4, 2]


def test_nodes_without_tokens_are_passed_over() -> None:
    tree = KVTree(8)
    empty = child(tree, child(tree, 0, 2), 0)
    leaf = child(tree, child(tree, empty, 0), 3)
    made = assert_right(tree, [leaf], [3])
    assert len(made.nodes) == 2


def test_several_problems_share_a_plan() -> None:
    tree = KVTree(32)
    prompts = [child(tree, 0, n) for n in (5, 40, 16)]
    leaves = [child(tree, prompt, 2) for prompt in prompts for _ in range(3)]
    made = assert_right(tree, leaves[::-1], [1] * 9)
    assert made.order.tolist() == list(range(8, -1, -1))


def test_rows_do_not_depend_on_the_order_of_segments() -> None:
    tree = KVTree(64)
    prompt = child(tree, 0, 30)
    nodes = [child(tree, prompt, n) for n in range(1, 9)]
    a = plan(tree, nodes, [1] * 8)
    shuffled = [nodes[i] for i in (3, 1, 7, 0, 2, 6, 5, 4)]
    b = plan(tree, shuffled, [1] * 8)
    assert [nodes[i] for i in a.order] == [shuffled[i] for i in b.order]
    assert a.positions.tolist() == b.positions.tolist()
    assert a.pages.tolist() == b.pages.tolist()


def test_reused_ids_below_their_parents() -> None:
    """A child may have a smaller id than its parent once ids are reused."""
    tree = KVTree(16)
    low = child(tree, 0, 1)
    high = child(tree, 0, 2)
    tree.settle()
    tree.drop(low)
    below = child(tree, high, 3)
    assert below == low
    assert_right(tree, [below, high], [3, 1])


def test_deep_chain_needs_no_stack() -> None:
    tree = KVTree(20_000)
    node = 0
    for _ in range(20_000):
        node = child(tree, node, 1)
    made = plan(tree, [node], [1])
    assert len(made.nodes) == 20_000
    assert made.positions.tolist() == [19_999]
    assert (made.nodes.pos == np.arange(20_000)).all()


def test_a_plan_outlives_its_tree() -> None:
    tree = KVTree(4)
    nodes = plan(tree, [child(tree, 0, 3)], [3]).nodes
    del tree
    assert nodes.length.tolist() == [3]


@pytest.mark.parametrize(
    ("nodes", "n_new", "message"),
    [
        ([9], [1], r"segment 0: node 9 is dead or unknown"),
        ([-1], [1], r"segment 0: node -1 is dead or unknown"),
        ([0], [1], r"segment 0: n_new is 1, must be between 1 and the node's length 0"),
        ([1], [0], r"segment 0: n_new is 0"),
        ([1], [-1], r"segment 0: n_new is -1"),
        ([2, 1], [1, 4], r"segment 1: n_new is 4, must be between 1 and the node's length 3"),
        ([1, 2, 1], [1, 1, 1], r"segment 2: node 1 is a segment already"),
        ([1], [1, 1], r"nodes has 1 entries and n_new 2"),
    ],
)
def test_bad_segments(nodes: list[int], n_new: list[int], message: str) -> None:
    tree = KVTree(4)
    child(tree, 0, 3)
    child(tree, 0, 3)
    with pytest.raises(ValueError, match=message):
        plan(tree, nodes, n_new)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    spans=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 40)), min_size=1, max_size=20),
    wanted=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), max_size=12),
    dropped=st.sets(st.integers(0, 19), max_size=3),
)
def test_random_trees(spans: list[tuple[int, int]], wanted: list[tuple[int, int]], dropped: set[int]) -> None:
    tree = KVTree(3 * 23)
    for _ in dropped:  # some ids free in the middle: later children get them
        tree.fork(0)
    nodes = [0]
    for i, (parent, length) in enumerate(spans):
        nodes.append(child(tree, nodes[parent % len(nodes)], length))
        if i in dropped:
            tree.release(1 + len([d for d in dropped if d < i]))
    filled = [node for node in nodes if tree.length(node) > 0]
    segments = {filled[pick % len(filled)]: count for pick, count in wanted} if filled else {}
    assert_right(tree, list(segments), [min(count, tree.length(node)) for node, count in segments.items()])


def test_a_plan_goes_on_with_its_rows() -> None:
    tree = KVTree(64)
    prompt = child(tree, 0, 21)
    step = child(tree, prompt, 16)
    leaves = [
        child(tree, above, length) for above, length in ((prompt, 1), (step, 15), (step, 16), (prompt, 3))
    ]
    made = assert_right(tree, leaves, [1] * 4)
    for token in range(40):
        made.advance(tree.extend_rows(leaves, [token] * 4))
        assert_shows(made, tree, leaves, [1] * 4)


def test_a_plan_goes_on_with_single_leaves_only() -> None:
    tree = KVTree(16)
    prompt = child(tree, 0, 5)
    leaves = [child(tree, prompt, 3), child(tree, prompt, 1)]
    wide = plan(tree, leaves, [2, 1])
    above = plan(tree, [prompt, *leaves], [1, 1, 1])
    slots = tree.extend_rows(leaves, [7, 7])
    with pytest.raises(ValueError, match="segment 0: it is not one row of a leaf"):
        wide.advance(slots)
    with pytest.raises(ValueError, match="segment 0: it is not one row of a leaf"):
        above.advance([5, *slots])
    single = plan(tree, leaves, [1, 1])
    with pytest.raises(ValueError, match=r"segment 0: slot .* does not follow 4 tokens"):
        single.advance(slots)  # those of the step before
    with pytest.raises(ValueError, match="1 slots for 2 segments"):
        single.advance(slots[:1])
    assert_shows(single, tree, leaves, [1, 1])
