"""Trees as searches grow them, for the GPU benches and the tests of planned traffic. Knows no kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wcse import _core

KINDS = ("beam", "dvts", "best-of-n", "rebase", "chain")
STEP, TIP = 48, 24  # tokens of a finished step, and of the one being written

Spec = list[tuple[str, str | None, int]]


def search_tree(kind: str, leaves: int = 64, depth: int = 10, prompt: int = 512) -> tuple[Spec, list[str]]:
    """Nodes (name, parent, tokens) with what was pruned left out, and the names of the leaves.

    "beam" keeps a quarter at each step, descended from few parents; "dvts" a quarter, each its own line; "rebase" an
    eighth, unevenly; "best-of-n" shares the prompt only; "chain" is one line.
    """
    keep = {"beam": leaves // 4, "dvts": leaves // 4, "rebase": leaves // 8, "chain": 1}.get(kind, leaves)
    share = {"beam": 4, "rebase": 3}.get(kind, 1)  # survivors of one parent
    spec: Spec = [("p", None, prompt)]
    front = ["p"] * keep
    for level in range(depth):
        parents = [front[i // share] for i in range(keep)] if level else front
        front = [f"{level}.{i}" for i in range(keep)]
        spec += [(name, parent, STEP) for name, parent in zip(front, parents, strict=True)]
    used = set(front)
    for name, parent, _ in reversed(spec):
        if name in used and parent is not None:
            used.add(parent)
    width = 1 if kind == "chain" else leaves // keep
    tips: Spec = [(f"t{i}", front[i // width], TIP) for i in range(keep * width)]
    return [node for node in spec if node[0] in used] + tips, [name for name, _, _ in tips]


@dataclass
class Grown:
    """A tree in a ``KVTree``, the plan of one token for every leaf, and each leaf's slots in plan order."""

    plan: _core.Plan
    tree: _core.KVTree
    nodes: list[int]  # the leaves, by row of the plan
    pages: int
    slots: list[np.ndarray]  # int64, page * 16 + offset of every token on the path


def grow(kind: str, *, leaves: int, depth: int, prompt: int = 512, trees: int = 1, spare: int = 0) -> Grown:
    """``trees`` problems of ``leaves`` leaves each, in one plan; ``spare`` pages stay free."""
    return grow_spec(*search_tree(kind, leaves, depth, prompt), trees=trees, spare=spare)


def grow_spec(spec: Spec, tips: list[str], *, trees: int = 1, spare: int = 0) -> Grown:
    """``trees`` copies of a tree, in one plan of one token for every tip."""
    pages = trees * sum(-(-n // 16) for _, _, n in spec) + spare
    tree = _core.KVTree(pages)
    nodes: list[int] = []
    paths: list[np.ndarray] = []
    for _ in range(trees):
        ids: dict[str, int] = {}
        path: dict[str, np.ndarray] = {}
        for name, parent, n in spec:
            above = ids[parent] if parent is not None else 0
            if above and not tree.sealed(above):
                tree.seal(above)
            ids[name] = tree.fork(above)
            slots = np.asarray(tree.extend(ids[name], list(range(n))), np.int64)
            path[name] = np.concatenate([path[parent], slots]) if parent is not None else slots
        nodes += [ids[name] for name in tips]
        paths += [path[name] for name in tips]
    plan = _core.plan(tree, nodes, [1] * len(nodes))
    return Grown(plan, tree, [nodes[i] for i in plan.order], pages, [paths[i] for i in plan.order])
