"""The KV tree: its edges by name, a fuzzer in C++, a state machine that shrinks, and laws that must bite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kv_tree_model import Model

from wcse import _core
from wcse._core import KVExhausted, KVTree


def stored(tree: KVTree, parent: int, tokens: list[int]) -> int:
    """A sealed, settled child with one reference."""
    node = tree.fork(parent)
    tree.extend(node, tokens)
    tree.seal(node)
    tree.settle()
    return node


def pages_of(tree: KVTree) -> tuple[int, int, int, int]:
    stats = tree.stats()
    return stats["free"], stats["cached"], stats["pinned"], stats["in_flight"]


# -- edges ------------------------------------------------------------------------------------------------------


def test_empty_tree() -> None:
    tree = KVTree(4, debug=True)
    assert pages_of(tree) == (4, 0, 0, 0)
    assert tree.match_prefix([1, 2, 3]) == (0, 0)
    assert tree.match_prefix([]) == (0, 0)
    tree.release(0)
    tree.release(0)
    assert tree.evict(4) == 0
    tree.settle()
    assert (tree.length(0), tree.depth(0), tree.parent(0), tree.sealed(0)) == (0, 0, -1, True)
    assert tree.stats()["nodes"] == 0


def test_single_node_goes_through_every_state() -> None:
    tree = KVTree(4, debug=True)
    node = tree.fork(0)
    slots = tree.extend(node, list(range(20)))
    assert slots.dtype == np.int32
    assert slots.tolist() == [int(tree.pages(node)[i // 16]) * 16 + i % 16 for i in range(20)]
    assert pages_of(tree) == (2, 0, 0, 2)
    tree.settle()
    assert pages_of(tree) == (2, 0, 2, 0)
    tree.extend(node, [7])  # writes the second page again, leaves the first alone
    assert pages_of(tree) == (2, 0, 1, 1)
    tree.seal(node)
    tree.release(node)
    assert pages_of(tree) == (2, 0, 1, 1), "freed or cached in flight"
    tree.settle()
    assert pages_of(tree) == (2, 2, 0, 0)
    assert tree.evict(1) == 2
    assert pages_of(tree) == (4, 0, 0, 0)
    assert not tree.alive(node)
    assert tree.stats()["peak_used"] == 2
    assert tree.stats()["evicted"] == 2


def test_full_prefix_hit() -> None:
    tree = KVTree(8, debug=True)
    a = stored(tree, 0, list(range(64)))
    b = stored(tree, a, [70, 71])
    tokens = [*range(64), 70, 71]
    assert tree.match_prefix(tokens) == (b, 66)
    assert tree.match_prefix([*tokens, 5]) == (b, 66)
    assert tree.match_prefix(tokens[:65]) == (a, 64), "half a node is no match"
    assert tree.match_prefix([*tokens[:63], 9]) == (0, 0)
    assert (tree.refs(a), tree.refs(b), tree.refs(0)) == (2, 3, 1)


def test_match_takes_the_deepest_of_equal_siblings() -> None:
    tree = KVTree(16, debug=True)
    first, second = stored(tree, 0, [1, 2]), stored(tree, 0, [1, 2])
    shorter = stored(tree, 0, [1])
    below = stored(tree, second, [3])
    assert tree.match_prefix([1, 2, 3, 4]) == (below, 3)
    deeper = stored(tree, shorter, [2, 3, 4])
    assert tree.match_prefix([1, 2, 3, 4]) == (deeper, 4)
    node, matched = tree.match_prefix([1, 2])
    assert (node in (first, second), matched) == (True, 2)


def test_match_compares_tokens_beyond_the_looked_up_ones() -> None:
    tree = KVTree(32, debug=True)
    tokens = list(range(200))
    long = stored(tree, 0, tokens)
    assert tree.match_prefix(tokens) == (long, 200)
    assert tree.match_prefix([*tokens[:199], 3]) == (0, 0)
    assert tree.match_prefix([*tokens[:64], 3, *tokens[65:]]) == (0, 0)


def test_match_returns_no_unsettled_and_no_unsealed_node() -> None:
    tree = KVTree(8, debug=True)
    node = tree.fork(0)
    tree.extend(node, [1, 2])
    assert tree.match_prefix([1, 2]) == (0, 0), "not sealed"
    tree.seal(node)
    assert tree.match_prefix([1, 2]) == (0, 0), "not written yet"
    child = tree.fork(node)
    tree.extend(child, [3])
    tree.seal(child)
    tree.settle()
    assert tree.match_prefix([1, 2, 3]) == (child, 3)


def test_an_unsettled_parent_hides_its_child() -> None:
    tree = KVTree(8, debug=True)
    parent = tree.fork(0)
    tree.extend(parent, [1])
    tree.settle()
    tree.extend(parent, [2])
    tree.seal(parent)
    child = tree.fork(parent)
    tree.seal(child)
    assert tree.match_prefix([1, 2]) == (0, 0)
    tree.settle()
    assert tree.match_prefix([1, 2])[1] == 2


def test_one_child_chain_is_pinned_and_cached_as_a_whole() -> None:
    tree = KVTree(64, debug=True)
    chain = [stored(tree, 0, [1])]
    for depth in range(2, 33):
        chain.append(stored(tree, chain[-1], [depth]))
        assert tree.depth(chain[-1]) == depth
    for node in chain[:-1]:
        tree.release(node)
    assert pages_of(tree) == (32, 0, 32, 0), "the last node holds its path"
    assert tree.evict(64) == 0
    tree.release(chain[-1])
    assert pages_of(tree) == (32, 32, 0, 0)
    assert tree.evict(1) == 1
    assert not tree.alive(chain[-1]) and tree.alive(chain[-2]), "children go before parents"
    assert tree.match_prefix(list(range(1, 33))) == (chain[-2], 31)
    assert pages_of(tree) == (33, 0, 31, 0)


def test_widest_fork_shares_everything_above() -> None:
    tree = KVTree(1 + 256, debug=False)
    prompt = stored(tree, 0, list(range(16)))
    leaves = np.array([tree.fork(prompt) for _ in range(256)], np.int32)
    slots = tree.extend_rows(leaves, np.full(256, 5, np.int32))
    assert len({int(slot) // 16 for slot in slots}) == 256
    assert pages_of(tree) == (0, 0, 1, 256)
    with pytest.raises(KVExhausted):
        tree.extend(tree.fork(prompt), [1])
    tree.check()
    for leaf in leaves.tolist():
        tree.release(leaf)
    assert pages_of(tree) == (0, 0, 1, 256), "in flight"
    tree.settle()
    assert pages_of(tree) == (256, 0, 1, 0)
    tree.check()


def test_nothing_held_is_evicted() -> None:
    tree = KVTree(4, debug=True)
    a = stored(tree, 0, [1] * 16)
    b = stored(tree, a, [2] * 16)
    tree.release(a)
    c = tree.fork(0)
    with pytest.raises(KVExhausted, match=r"needs 3 pages, 2 are free and 0 cached of 4"):
        tree.extend(c, [1] * 48)
    assert tree.alive(a) and tree.alive(b)
    tree.release(b)
    tree.extend(c, [1] * 48)
    assert not tree.alive(b) and tree.alive(a), "evicted more than needed"


def test_eviction_order_is_least_recently_held() -> None:
    tree = KVTree(4, debug=True)
    a, b, c = (stored(tree, 0, [i]) for i in range(3))
    for node in (b, c, a):
        tree.release(node)
    assert tree.match_prefix([1]) == (b, 1)
    tree.release(b)
    for expected in (c, a, b):
        assert tree.evict(1) == 1
        assert not tree.alive(expected)


def test_exhausted_extend_rows_changes_nothing() -> None:
    tree = KVTree(3, debug=True)
    cached = stored(tree, 0, [9])
    tree.release(cached)
    rows = [tree.fork(0) for _ in range(4)]
    before = tree.stats()
    with pytest.raises(KVExhausted):
        tree.extend_rows(rows, [1, 2, 3, 4])
    assert tree.stats() == before and tree.alive(cached)
    tree.extend_rows(rows[:3], [1, 2, 3])
    assert not tree.alive(cached)


def test_drop_frees_at_once_and_climbs_over_dropped_parents_only() -> None:
    tree = KVTree(8, debug=True)
    top = stored(tree, 0, [1])
    middle = stored(tree, top, [2])
    leaf = stored(tree, middle, [3])
    tree.release(top)
    tree.drop(middle)
    assert tree.alive(middle), "its child needs it"
    tree.drop(leaf)
    assert (tree.alive(leaf), tree.alive(middle), tree.alive(top)) == (False, False, True)
    assert pages_of(tree) == (7, 1, 0, 0)


def test_drop_leaves_what_others_hold() -> None:
    tree = KVTree(8, debug=True)
    node = stored(tree, 0, [1])
    tree.retain(node)
    tree.drop(node)
    assert tree.alive(node)
    tree.release(node)
    assert pages_of(tree) == (7, 1, 0, 0), "the last one to leave decides"


def test_dropped_parent_goes_with_its_last_cached_child() -> None:
    tree = KVTree(8, debug=True)
    parent = stored(tree, 0, [1])
    child = stored(tree, parent, [2])
    tree.release(child)
    tree.drop(parent)
    assert pages_of(tree) == (6, 2, 0, 0)
    assert tree.evict(1) == 2
    assert not tree.alive(parent) and not tree.alive(child)


def test_dropped_in_flight_is_freed_when_settled() -> None:
    tree = KVTree(8, debug=True)
    node = tree.fork(0)
    tree.extend(node, [1])
    tree.seal(node)
    tree.drop(node)
    assert pages_of(tree) == (7, 0, 0, 1)
    other = tree.fork(0)
    assert other != node, "an id was reused in flight"
    tree.settle()
    assert pages_of(tree) == (8, 0, 0, 0)


def test_unsealed_released_in_flight_is_dead_and_freed_when_settled() -> None:
    tree = KVTree(8, debug=True)
    parent = stored(tree, 0, [1])
    node = tree.fork(parent)
    tree.extend(node, [1, 2])
    tree.release(node)
    tree.release(parent)
    assert not tree.alive(node)
    assert pages_of(tree) == (6, 0, 1, 1), "the running step reads the parent"
    assert tree.evict(8) == 0
    tree.settle()
    assert pages_of(tree) == (7, 1, 0, 0)


def test_empty_nodes_cost_nothing() -> None:
    tree = KVTree(1, debug=True)
    node = tree.fork(0)
    assert tree.extend(node, []).tolist() == []
    tree.seal(node)
    child = stored(tree, node, [4])
    assert tree.match_prefix([4]) == (child, 1)
    for _ in range(2):
        tree.release(child)
    tree.release(node)
    assert tree.evict(1) == 1
    assert tree.stats()["nodes"] == 1


# -- misuse -----------------------------------------------------------------------------------------------------

MISUSE: dict[str, tuple[Callable[[KVTree, dict[str, int]], object], str]] = {
    "fork of an unknown node": (lambda t, n: t.fork(99), r"fork: node 99 does not exist"),
    "fork of a negative id": (lambda t, n: t.fork(-1), r"fork: node -1 does not exist"),
    "fork of a dead node": (lambda t, n: t.fork(n["dead"]), r"fork: node \d+ is dead"),
    "fork of an unsealed node": (lambda t, n: t.fork(n["open"]), r"fork: node \d+ is not sealed"),
    "extend of a sealed node": (lambda t, n: t.extend(n["sealed"], [1]), r"extend: node \d+ is sealed"),
    "extend of the super-root": (lambda t, n: t.extend(0, [1]), r"extend: node 0 is sealed"),
    "extend of a dead node": (lambda t, n: t.extend(n["dead"], [1]), r"extend: node \d+ is dead"),
    "negative token": (lambda t, n: t.extend(n["open"], [1, -1]), r"extend: node \d+ got token -1"),
    "rows given twice": (lambda t, n: t.extend_rows([n["open"]] * 2, [1, 2]), r"node \d+ is given twice"),
    "rows with a dead node": (
        lambda t, n: t.extend_rows([n["open"], n["dead"]], [1, 2]),
        r"node \d+ is dead",
    ),
    "rows of unequal length": (
        lambda t, n: t.extend_rows([n["open"]], [1, 2]),
        r"nodes has 1 entries and tokens 2",
    ),
    "sealed twice": (lambda t, n: t.seal(n["sealed"]), r"seal: node \d+ is sealed already"),
    "retain of a dead node": (lambda t, n: t.retain(n["dead"]), r"retain: node \d+ is dead"),
    "released twice": (lambda t, n: t.release(n["cached"]), r"release: node \d+ has no reference"),
    "release of a dead node": (lambda t, n: t.release(n["dead"]), r"release: node \d+ is dead"),
    "super-root released": (lambda t, n: t.release(0), r"release: node 0 has no reference"),
    "dropped after release": (lambda t, n: t.drop(n["cached"]), r"drop: node \d+ has no reference"),
    "negative eviction": (lambda t, n: t.evict(-1), r"evict: n_pages is -1"),
    "tokens of a dead node": (lambda t, n: t.tokens(n["dead"]), r"tokens: node \d+ is dead"),
    "token beyond int32": (
        lambda t, n: t.extend(n["open"], [2**31]),
        r"tokens: 2147483648 does not fit int32",
    ),
    "two dimensions": (
        lambda t, n: t.extend(n["open"], np.zeros((2, 2), np.int32)),
        r"tokens: has 2 dimensions",
    ),
    "too many tokens": (lambda t, n: t.extend(n["open"], np.zeros(999, np.int32)), r"needs 62 pages"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_refused_and_changes_nothing(name: str) -> None:
    tree = KVTree(8, debug=True)
    nodes = {"sealed": stored(tree, 0, [1, 2]), "open": tree.fork(0), "cached": stored(tree, 0, [3])}
    tree.extend(nodes["open"], [5])
    tree.release(nodes["cached"])
    nodes["dead"] = tree.fork(0)
    tree.release(nodes["dead"])
    before = tree.stats()
    call, message = MISUSE[name]
    with pytest.raises((ValueError, KVExhausted), match=message):
        call(tree, nodes)
    tree.check()
    assert tree.stats() == before
    assert tree.tokens(nodes["open"]).tolist() == [5]


def test_floats_are_no_tokens() -> None:
    tree = KVTree(1)
    with pytest.raises(TypeError, match="dtype is float64"):
        tree.extend(tree.fork(0), [1.5])  # type: ignore[list-item]


@pytest.mark.parametrize("num_pages", [0, -1, 2**27, 2**40])
def test_pool_sizes_whose_slots_do_not_fit_are_refused(num_pages: int) -> None:
    with pytest.raises(ValueError, match=f"num_pages is {num_pages}, must be between 1 and 134217727"):
        KVTree(num_pages)


# -- laws -------------------------------------------------------------------------------------------------------

# fault -> (node to plant it in, the law that check() must name)
FAULTS = {
    "page lost": ("leaf", "is lost"),
    "page twice": ("leaf", "belongs to node"),
    "free page in use": ("leaf", "belongs to the free list"),
    "cached count": ("leaf", "count of cached pages"),
    "pinned count": ("leaf", "count of pinned pages"),
    "flight count": ("leaf", "count of pages in flight"),
    "token count": ("leaf", "count of tokens"),
    "node count": ("leaf", "count of nodes"),
    "refs": ("leaf", "hold count"),
    "negative refs": ("leaf", "negative reference count"),
    "holds": ("leaf", "hold count"),
    "child count": ("leaf", "child count"),
    "dead parent": ("leaf", "parent of node"),
    "open parent": ("leaf", "is not sealed"),
    "depth": ("leaf", "depth of node"),
    "page missing": ("leaf", "pages for"),
    "cache order": ("cached leaf", "evicted after its parent"),
    "cache missing": ("cached leaf", "is not listed"),
    "index missing": ("leaf", "cannot be looked up"),
    "token changed": ("leaf", "look-up key"),
    "flight list": ("flying", "list of nodes in flight"),
    "peak": ("leaf", "peak of used pages"),
    "unsealed cached": ("cached leaf", "has no reference"),
}


def test_every_fault_is_planted() -> None:
    assert set(FAULTS) == set(_core._testing.kv_tree_faults())


@pytest.mark.parametrize("fault", FAULTS)
def test_check_names_the_broken_law(fault: str) -> None:
    tree = KVTree(16)
    leaf = stored(tree, stored(tree, 0, [1]), [2, 3])
    cached = stored(tree, 0, [4])
    cached_leaf = stored(tree, cached, [5])
    tree.release(cached)
    tree.release(cached_leaf)
    flying = tree.fork(0)
    tree.extend(flying, [6])
    tree.check()
    where, law = FAULTS[fault]
    node = {"leaf": leaf, "cached leaf": cached_leaf, "flying": flying}[where]
    _core._testing.plant_fault(tree, fault, node)
    with pytest.raises(RuntimeError, match=f"KVTree.check: .*{law}"):
        tree.check()


# -- random operations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_fuzz_against_a_model_in_cpp(seed: int) -> None:
    report = _core._testing.fuzz_kv_tree(seed, 600_000)
    assert report["operations"] >= 600_000
    for what in ("refused", "exhausted", "evicted_pages", "matched_tokens"):
        assert report[what] > 5_000, f"the fuzzer hardly met {what}"


class KVTreeMachine(RuleBasedStateMachine):
    """Slower than the fuzzer; a failure comes out as the shortest program that shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = KVTree(6)
        self.model = Model(6)

    def _ids(self, data: st.DataObject, *, unsealed: bool = False, referenced: bool = False) -> int | None:
        ids = [
            i
            for i, node in self.model.nodes.items()
            if self.model.alive(i) and not (unsealed and node.sealed) and not (referenced and node.refs == 0)
        ]
        return data.draw(st.sampled_from(ids)) if ids else None

    @rule(data=st.data())
    @precondition(lambda self: len(self.model.nodes) < 10)
    def fork(self, data: st.DataObject) -> None:
        parent = self._ids(data)
        assert parent is not None
        if not self.model.nodes[parent].sealed:
            with pytest.raises(ValueError, match="not sealed"):
                self.tree.fork(parent)
            return
        self.model.fork(self.tree.fork(parent), parent)

    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), max_size=40))
    def extend(self, data: st.DataObject, tokens: list[int]) -> None:
        node = self._ids(data, unsealed=True)
        if node is None:
            return
        need = self.model.need(node, len(tokens))
        if need > self.model.room():
            with pytest.raises(KVExhausted):
                self.tree.extend(node, tokens)
            return
        self.model.make_room(need)
        self.model.append(node, tokens, self.tree.extend(node, tokens).tolist())

    @rule(token=st.integers(0, 1))
    def extend_all_rows(self, token: int) -> None:
        nodes = [i for i, node in self.model.nodes.items() if self.model.alive(i) and not node.sealed]
        need = sum(self.model.need(i, 1) for i in nodes)
        if need > self.model.room():
            with pytest.raises(KVExhausted):
                self.tree.extend_rows(nodes, [token] * len(nodes))
            return
        self.model.make_room(need)
        slots = self.tree.extend_rows(nodes, [token] * len(nodes)).tolist()
        for node, slot in zip(nodes, slots, strict=True):
            self.model.append(node, [token], [slot])

    @rule()
    def settle(self) -> None:
        self.tree.settle()
        self.model.settle()

    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        node = self._ids(data, unsealed=True)
        if node is not None:
            self.tree.seal(node)
            self.model.nodes[node].sealed = True

    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        node = self._ids(data)
        assert node is not None
        self.tree.retain(node)
        self.model.retain(node)

    @rule(data=st.data(), drop=st.booleans())
    def give_back(self, data: st.DataObject, drop: bool) -> None:
        node = self._ids(data, referenced=True)
        if node is not None:
            (self.tree.drop if drop else self.tree.release)(node)
            self.model.give_back(node, drop=drop)

    @rule(data=st.data(), more=st.lists(st.integers(0, 1), max_size=20))
    def match_prefix(self, data: st.DataObject, more: list[int]) -> None:
        node = self._ids(data)
        assert node is not None
        query = self.model.path_tokens(node) + more
        found, matched = self.tree.match_prefix(query)
        allowed = self.model.matches(query)
        assert matched == max(allowed.values())
        assert allowed[found] == matched
        self.model.retain(found)

    @rule(n_pages=st.integers(0, 7))
    def evict(self, n_pages: int) -> None:
        expected = 0
        while expected < n_pages and (freed := self.model.evict_one()) is not None:
            expected += freed
        assert self.tree.evict(n_pages) == expected

    @rule(data=st.data())
    def lend(self, data: st.DataObject) -> None:
        pages = self._some(data, self.tree.spare().tolist())
        self.tree.lend(pages)
        self.model.lent += len(pages)

    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        pages = self._some(data, sorted({*range(6)} - {*self.tree.spare().tolist(), *self._owned()}))
        self.tree.take_back(pages)
        self.model.lent -= len(pages)
        assert self.tree.spare().tolist()[::-1][: len(pages)] == pages

    @rule(data=st.data())
    def relocate(self, data: st.DataObject) -> None:
        source, target = self._some(data, self._owned()), self._some(data, self.tree.spare().tolist())
        pairs = dict(zip(source, target, strict=False))
        self.tree.relocate(list(pairs), list(pairs.values()))
        for node in self.model.nodes.values():
            node.pages = [pairs.get(page, page) for page in node.pages]
            node.flight = {pairs.get(page, page) for page in node.flight}

    @rule()
    def pages_of_others(self) -> None:
        for page in {*range(-1, 7)} - {*self.tree.spare().tolist()}:
            with pytest.raises(ValueError, match=f"lend: page {page} is not spare"):
                self.tree.lend([page])
            with pytest.raises(ValueError, match="relocate: page"):
                self.tree.relocate([page], [page])
        for page in [-1, *self.tree.spare().tolist(), *self._owned()]:
            with pytest.raises(ValueError, match=f"take_back: page {page} is not lent"):
                self.tree.take_back([page])

    def _owned(self) -> list[int]:
        return [page for node in self.model.nodes.values() for page in node.pages]

    def _some(self, data: st.DataObject, pages: list[int]) -> list[int]:
        chosen = data.draw(st.lists(st.sampled_from(pages), unique=True)) if pages else []
        return list(chosen)

    @invariant()
    def agrees(self) -> None:
        self.tree.check()
        assert self.tree.stats() == self.model.stats()
        for i in range(-1, 12):
            assert self.tree.alive(i) == self.model.alive(i)
            if not self.model.alive(i):
                continue
            node = self.model.nodes[i]
            assert self.tree.tokens(i).tolist() == node.tokens
            assert self.tree.pages(i).tolist() == node.pages
            assert self.tree.parent(i) == (-1 if node.parent is None else node.parent)
            assert (self.tree.refs(i), self.tree.sealed(i)) == (node.refs, node.sealed)
            assert self.tree.depth(i) == len(self.model.path_tokens(i))

    def teardown(self) -> None:
        for i in list(self.model.nodes):
            while i in self.model.nodes and self.model.nodes[i].refs > 0:
                self.tree.release(i)
                self.model.give_back(i, drop=False)
        self.settle()
        self.tree.evict(99)
        self.tree.check()
        assert self.tree.stats()["free"] == 6


TestKVTreeMachine = KVTreeMachine.TestCase
TestKVTreeMachine.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_a_match_below_an_empty_node_stays_in_its_subtree() -> None:
    tree = KVTree(8, debug=True)
    rooms = [tree.fork(0) for _ in range(2)]
    for room in rooms:
        tree.seal(room)
    node = tree.fork(rooms[0])
    tree.extend(node, [1, 2])
    tree.settle()
    tree.seal(node)
    assert tree.match_prefix([1, 2, 3], rooms[0]) == (node, 2)
    assert tree.match_prefix([1, 2, 3], rooms[1]) == (rooms[1], 0)
    with pytest.raises(ValueError, match="match_prefix"):
        tree.match_prefix([1, 2, 3], node)
