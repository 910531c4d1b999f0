"""What a KV tree should be, as plain Python lists. Every question is answered by looking at all nodes.

Knows the meaning of the operations, nothing of how ``wcse._core.KVTree`` does them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE = 16


@dataclass
class ModelNode:
    parent: int | None
    tokens: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    refs: int = 1
    sealed: bool = False
    dropped: bool = False
    flight: set[int] = field(default_factory=set)  # pages in flight
    held: bool = True
    unheld_at: int = 0


class Model:
    def __init__(self, total: int) -> None:
        self.total = total
        self.nodes = {0: ModelNode(None, refs=0, sealed=True)}
        self.flight_order: list[int] = []
        self.clock = 0
        self.peak = 0
        self.lent = 0
        self.evicted = 0

    def alive(self, i: int) -> bool:
        return i in self.nodes and (self.nodes[i].sealed or self.nodes[i].refs > 0)

    def children(self, i: int) -> list[int]:
        return [c for c, node in self.nodes.items() if node.parent == i]

    def path(self, i: int) -> list[int]:
        """Ids from below the super-root to ``i``."""
        chain = []
        while i != 0:
            chain.append(i)
            i = self.nodes[i].parent or 0
        return chain[::-1]

    def path_tokens(self, i: int) -> list[int]:
        return [token for node in self.path(i) for token in self.nodes[node].tokens]

    def held(self) -> set[int]:
        holders = [i for i, node in self.nodes.items() if node.refs > 0 or node.flight]
        return {0}.union(*(self.path(i) for i in holders))

    def stats(self) -> dict[str, int]:
        held = self.held()
        pages = {"free": self.total, "cached": 0, "pinned": 0, "in_flight": 0}
        for i, node in self.nodes.items():
            pages["free"] -= len(node.pages)
            pages["in_flight"] += len(node.flight)
            pages["pinned" if i in held else "cached"] += len(node.pages) - len(node.flight)
        return pages | {
            "total": self.total,
            "lent": self.lent,
            "nodes": len(self.nodes) - 1,
            "tokens": sum(len(node.tokens) for node in self.nodes.values()),
            "peak_used": self.peak,
            "evicted": self.evicted,
        }

    def room(self) -> int:
        stats = self.stats()
        return stats["free"] - self.lent + stats["cached"]

    def need(self, i: int, more: int) -> int:
        node = self.nodes[i]
        return -(-(len(node.tokens) + more) // PAGE) - len(node.pages)

    def fork(self, i: int, parent: int) -> None:
        assert i not in self.nodes, "the new id is in use"
        self.nodes[i] = ModelNode(parent)
        self._update()

    def make_room(self, need: int) -> None:
        while self.stats()["free"] - self.lent < need:
            self.evict_one()

    def append(self, i: int, tokens: list[int], slots: list[int]) -> None:
        """``slots`` is what the tree answered; the model says whether that may be."""
        node = self.nodes[i]
        for token, slot in zip(tokens, slots, strict=True):
            page, offset = divmod(slot, PAGE)
            assert offset == len(node.tokens) % PAGE
            if offset == 0:
                assert 0 <= page < self.total
                assert all(page not in other.pages for other in self.nodes.values()), "page is in use"
                node.pages.append(page)
            assert node.pages[-1] == page
            if not node.flight:
                self.flight_order.append(i)
            node.flight.add(page)
            node.tokens.append(token)
        self._update()
        self.peak = max(self.peak, self.total - self.stats()["free"])

    def settle(self) -> None:
        order, self.flight_order = self.flight_order, []
        for i in order:
            self.nodes[i].flight = set()
            self._update()

    def retain(self, i: int) -> None:
        self.nodes[i].refs += 1
        self._update()

    def give_back(self, i: int, *, drop: bool) -> None:
        node = self.nodes[i]
        node.refs -= 1
        if node.refs == 0:
            node.dropped = drop
        self._update()

    def matches(self, query: list[int]) -> dict[int, int]:
        """Every node that ``match_prefix`` may return, with the tokens it matches."""
        found = {}
        for i in self.nodes:
            tokens = self.path_tokens(i)
            whole = all(self.nodes[n].sealed and not self.nodes[n].flight for n in self.path(i))
            if whole and query[: len(tokens)] == tokens:
                found[i] = len(tokens)
        return found

    def evict_one(self) -> int | None:
        """Evicts the node that was held longest ago. Returns its pages, None when there is none."""
        leaves = [i for i, node in self.nodes.items() if not node.held and not self.children(i)]
        if not leaves:
            return None
        i = min(leaves, key=lambda leaf: self.nodes[leaf].unheld_at)
        freed = 0
        while True:
            node = self.nodes.pop(i)
            freed += len(node.pages)
            i = node.parent or 0
            if self.nodes[i].held or not self.nodes[i].dropped or self.children(i):
                break
        self.evicted += freed
        return freed

    def _update(self) -> None:
        """Nodes that nothing holds any more are cached or freed, children before parents."""
        held = self.held()
        gone = [i for i, node in self.nodes.items() if node.held and i not in held]
        gone.sort(key=lambda i: len(self.path(i)), reverse=True)
        for i, node in self.nodes.items():
            node.held = i in held
        for i in gone:
            if not self.children(i) and (self.nodes[i].dropped or not self.nodes[i].sealed):
                del self.nodes[i]
            else:
                self.clock += 1
                self.nodes[i].unheld_at = self.clock
