"""What the kernel tests share: forests whose content depends only on labels, and the error bound.

A token of a forest is known by its node's label and its index in the node; its key, value and query are a
function of those, so the same row can be computed in different trees, batches and pages and compared bit by bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from wcse import _core
from wcse.kernels import ops


def assert_as_good_as_torch(
    got: Tensor, exact: Tensor, torch_float32: Tensor, *, factor: float = 3.0, floor: float = 2e-7
) -> None:
    """The error against float64 is at most ``factor`` times that of the same maths in torch float32."""
    assert got.shape == exact.shape and got.dtype == torch.float32
    scale = max(1.0, float(exact.abs().max()))
    error = float((got - exact).abs().max()) / scale
    allowed = factor * float((torch_float32 - exact).abs().max()) / scale + floor
    assert error <= allowed, f"error {error:.2e}, allowed {allowed:.2e}"


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: _core.Plan,
    softcap: float = 0.0,
    window: int = 0,
    backend: ops.Backend = "cpp",
) -> Tensor:
    """``ops.tree_attention`` with the usual scale."""
    return ops.tree_attention(
        q, k, v, plan, scale=q.shape[-1] ** -0.5, softcap=softcap, window=window, backend=backend
    )


def each_isa(*, integer: bool = False) -> Iterator[str]:
    """Every instruction set that this processor runs, in use while the loop's body works.

    Those with VNNI differ in the integer kernels only; they are left out unless ``integer``.
    """
    before = _core.cpu_isa()
    try:
        for isa in _core.cpu_isas():
            if isa.endswith("_vnni") and not integer:
                continue
            _core.set_cpu_isa(isa)
            yield isa
    finally:
        _core.set_cpu_isa(before)


class Forest:
    """A KV tree with filled pools. Unused slots hold ``poison``; pages are handed out in shuffled order."""

    def __init__(
        self,
        *,
        kv_heads: int,
        group: int,
        head_dim: int,
        pages: int = 96,
        poison: float = float("nan"),
        shuffle: int = 0,
    ) -> None:
        self.tree = _core.KVTree(pages)
        self.k = torch.full((pages, kv_heads, head_dim, 16), poison)
        self.v = torch.full((pages, kv_heads, 16, head_dim), poison)
        self.shape = (kv_heads, group, head_dim)
        self.ids: dict[str, int] = {}
        self.length: dict[str, int] = {}
        self._mix_pages(shuffle)

    def _mix_pages(self, seed: int) -> None:
        """Free every page in a random order, so that equal trees lie in different pages."""
        total = self.tree.stats()["total"]
        nodes = []
        for _ in range(total):
            nodes.append(self.tree.fork(0))
            self.tree.extend(nodes[-1], [0])
        self.tree.settle()
        for i in np.random.default_rng(seed).permutation(total):
            self.tree.release(nodes[i])

    def _content(self, label: str, kind: str, heads: int, length: int) -> Tensor:
        """[length, heads, d]; a longer node begins with the content of a shorter one."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{label}/{kind}".encode()))
        return torch.randn(max(length, 1), heads, self.shape[2], generator=generator)[:length]

    def add(self, label: str, parent: str | None, length: int) -> None:
        """A child of ``parent`` (which gets sealed) with ``length`` tokens, its keys and values written."""
        above = 0 if parent is None else self.ids[parent]
        if parent is not None and not self.tree.sealed(above):
            self.tree.seal(above)
        node = self.tree.fork(above)
        slots = torch.from_numpy(self.tree.extend(node, list(range(length)))).long()
        page, offset = slots // 16, slots % 16
        self.k[page, :, :, offset] = self._content(label, "k", self.shape[0], length)
        self.v[page, :, offset, :] = self._content(label, "v", self.shape[0], length)
        self.ids[label], self.length[label] = node, length

    def plan(self, segments: Sequence[tuple[str, int]]) -> _core.Plan:
        """The plan of the last n tokens of each node."""
        return _core.plan(self.tree, [self.ids[label] for label, _ in segments], [n for _, n in segments])

    def queries(self, segments: Sequence[tuple[str, int]], plan: _core.Plan) -> Tensor:
        """[T, Hq, d] in the order of the plan."""
        kv_heads, group, head_dim = self.shape
        q = torch.empty(plan.n_rows, kv_heads * group, head_dim)
        for (label, n), start in zip(segments, plan.row_start.tolist(), strict=True):
            q[start : start + n] = self._content(label, "q", kv_heads * group, self.length[label])[-n:]
        return q

    def rows(
        self, segments: Sequence[tuple[str, int]], softcap: float = 0.0, window: int = 0
    ) -> dict[tuple[str, int], Tensor]:
        """The native result of every row, by node label and token index."""
        plan = self.plan(segments)
        out = attend(self.queries(segments, plan), self.k, self.v, plan, softcap, window)
        return {
            (label, self.length[label] - n + i): out[start + i]
            for (label, n), start in zip(segments, plan.row_start.tolist(), strict=True)
            for i in range(n)
        }


def each_thread_count(run: Callable[[], Tensor]) -> list[Tensor]:
    """The result with one, two and three threads."""
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run())
    return results


Spec = list[tuple[str, str | None, int]]
Segments = list[tuple[str, int]]

RAGGED: Spec = [
    ("prompt", None, 64),
    ("tail", "prompt", 37),
    ("a", "tail", 20),
    ("b", "tail", 1),
    ("aa", "a", 90),
    ("ab", "a", 16),
    ("ac", "a", 5),
    ("ba", "b", 33),
    ("other", None, 18),
]
TREES: dict[str, tuple[Spec, Segments]] = {
    "one token": ([("a", None, 1)], [("a", 1)]),
    "one leaf": ([("a", None, 75)], [("a", 1)]),
    "whole prompt": ([("a", None, 75)], [("a", 75)]),
    "chain": ([("a", None, 64), ("b", "a", 3), ("c", "b", 1), ("d", "c", 17)], [("d", 1)]),
    "ragged": (RAGGED, [("ba", 1), ("aa", 1), ("ab", 1), ("other", 1), ("ac", 1)]),
    "extend": (RAGGED, [("aa", 80), ("ac", 5), ("ba", 2), ("other", 18)]),
    "node and descendants": (RAGGED, [("a", 20), ("aa", 3), ("ab", 16), ("tail", 30), ("ba", 1)]),
    "wide": (
        [("p", None, 64), *((f"l{i}", "p", 1 + i) for i in range(40))],
        [(f"l{i}", 1) for i in range(40)],
    ),
}
OPTIONS = [(0.0, 0), (20.0, 0), (0.0, 9), (5.0, 70)]


def grow(spec: Spec, *, kv_heads: int, group: int, head_dim: int, **options: float) -> Forest:
    forest = Forest(kv_heads=kv_heads, group=group, head_dim=head_dim, **options)  # type: ignore[arg-type]
    for node in spec:
        forest.add(*node)
    return forest


@st.composite
def forests(draw: st.DrawFn) -> tuple[Spec, Segments]:
    spec: Spec = []
    for i in range(draw(st.integers(1, 9))):
        parent = draw(st.integers(-1, i - 1))
        spec.append((f"n{i}", f"n{parent}" if parent >= 0 else None, draw(st.integers(1, 80))))
    chosen = draw(st.lists(st.sampled_from(spec), min_size=1, unique_by=lambda node: node[0]))
    return spec, [(label, draw(st.integers(1, length))) for label, _, length in chosen]
