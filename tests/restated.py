"""The rules of the searches once more, as plain loops over paths: no generators, no nodes of wcse.search.

Written from the papers' rules and used only to compare. A path is a tuple of child indices; ``World`` tells
what a path holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby

from fakes import FakePolicy, make_root

from wcse.types import Expand, Node

Path = tuple[int, ...]


class World:
    """The fake policy as a function of paths."""

    def __init__(self, policy: FakePolicy, agg: str) -> None:
        self.policy, self.agg = policy, agg
        self.nodes: dict[Path, Node] = {(): make_root()}

    def write(self, path: Path, greedy: bool = False) -> None:
        (self.nodes[path],) = self.policy.answer(
            Expand(self.nodes[path[:-1]], 1, first=path[-1], greedy=greedy)
        )

    def to_end(self, path: Path) -> Path:
        self.write(path)
        while self.alive(path):
            path = (*path, 0)
            self.write(path)
        return path

    def alive(self, path: Path) -> bool:
        return str(self.nodes[path].finish) in ("delim", "step_cap") or path == ()

    def ended(self, path: Path) -> bool:
        return str(self.nodes[path].finish) == "eos"

    def value(self, path: Path) -> float:
        scores = [self.nodes[path[: i + 1]].score for i in range(len(path))]
        fold: dict[str, Callable[[list[float]], float]] = {
            "last": lambda s: s[-1],
            "min": min,
            "prod": math.prod,
            "mean": lambda s: math.fsum(s) / len(s),
        }
        return fold[self.agg](scores)

    def text(self, path: Path) -> str:
        return "".join(self.nodes[path[: i + 1]].text for i in range(len(path)))

    def best_first(self, paths: list[Path]) -> list[Path]:
        return sorted(paths, key=lambda p: (-self.value(p), p))


def best_of_n(world: World, n: int) -> list[Path]:
    return [world.to_end((i,)) for i in range(n)]


def beam_search(world: World, n: int, m: int, depth: int) -> list[Path]:
    done: list[Path] = []
    widths: dict[Path, int] = {(): n}
    for t in range(depth):
        cand: list[Path] = []
        for parent, width in widths.items():
            for child in range(width):
                path = (*parent, child)
                if t == depth - 1:
                    path = world.to_end(path)
                else:
                    world.write(path)
                if world.ended(path):
                    done.append(path)
                elif world.alive(path):
                    cand.append(path)
        seen: set[str] = set()
        cand = [p for p in cand if not (world.text(p) in seen or seen.add(world.text(p)))]
        slots = n - len(done)
        if slots <= 0 or not cand:
            break
        k = min(len(cand), math.ceil(slots / m))
        top = world.best_first(cand)[:k]
        widths = {p: slots // k + (1 if i < slots % k else 0) for i, p in enumerate(top)}
    return sorted(done)


def dvts(world: World, n: int, m: int, depth: int) -> list[Path]:
    """n divisible by m."""
    answers: list[Path] = []
    for g in range(n // m):
        current: Path = ()
        ended: list[Path] = []
        for t in range(depth):
            children = [(*current, i + (g * m if t == 0 else 0)) for i in range(m)]
            if t == depth - 1:
                children = [world.to_end(c) for c in children]
            else:
                for c in children:
                    world.write(c)
            ended += [c for c in children if world.ended(c)]
            ranked = world.best_first([c for c in children if world.ended(c) or world.alive(c)])
            if not ranked or world.ended(ranked[0]):
                break
            current = ranked[0]
        answers += world.best_first(ended)[:m]
    return sorted(answers)


def rebase(world: World, n: int, temperature: float, depth: int) -> list[Path]:
    budget, done = n, []
    widths: dict[Path, int] = {(): n}
    for t in range(depth):
        live: list[Path] = []
        for parent, width in widths.items():
            for child in range(width):
                path = (*parent, child)
                if t == depth - 1:
                    path = world.to_end(path)
                else:
                    world.write(path)
                if world.alive(path):
                    live.append(path)
                else:
                    budget -= 1
                    if world.ended(path):
                        done.append(path)
        if budget <= 0 or not live:
            break
        top = max(map(world.value, live))
        e = {p: math.exp((world.value(p) - top) / temperature) for p in live}
        q = {p: budget * e[p] / sum(e.values()) for p in live}
        widths = {p: math.floor(q[p]) for p in sorted(live)}
        rest = sorted(world.best_first(live), key=lambda p: -(q[p] - math.floor(q[p])))
        for p in rest[: budget - sum(widths.values())]:
            widths[p] += 1
        widths = {p: w for p, w in widths.items() if w}
    return sorted(done)


def search_and_learn_beam(world: World, n: int, m: int, depth: int) -> list[Path]:
    """Refill to n by copies until nothing is alive; the first n to end."""
    done: list[Path] = []
    kept: list[Path] = [()]
    for t in range(depth):
        beams = [kept[i % len(kept)] for i in range(n)]
        used: dict[Path, int] = {}
        grown: list[Path] = []
        for beam in beams:
            path = (*beam, used.get(beam, 0))
            used[beam] = used.get(beam, 0) + 1
            if t == depth - 1:
                path = world.to_end(path)
            else:
                world.write(path)
            grown.append(path)
        done += [p for p in grown if not world.alive(p)]
        live = [p for p in grown if world.alive(p)]
        if not live:
            break
        order = sorted(range(len(live)), key=lambda i: world.value(live[i]))
        kept = [live[i] for i in sorted(order[-(n // m) :])]
    return done[:n]


def votes_until_settled(labels: list[int | None], settled: Callable[[int, int, int], bool]) -> int:
    """How many labels are read until ``settled(first, second, left)``; all of them if it never is."""
    for read in range(1, len(labels) + 1):
        valid = sorted(label for label in labels[:read] if label is not None)
        runs = [*sorted((len(list(group)) for _, group in groupby(valid)), reverse=True), 0, 0]
        if settled(runs[0], runs[1], len(labels) - read):
            return read
    return len(labels)
