"""A model of the machine: the time of kernels, steps and searches from work lists and a device's ceilings.

    python bench/roofline.py [--machine h200] [--write]

Nothing here is measured. Bytes, rows and tiles come from the work lists that the kernels would get, instructions from
``results/static``; rates are a data sheet's less what a good copy and a good GEMM reach, or, with ``Machine.measured``,
those of a run of ``bench_gpu.py``. A resource that is not the slowest counts for a third, for they overlap imperfectly
(``rates.OVERLAP``); that third, and the shares that peers are granted, are assumptions. ``--write`` stores
``results/static/roofline.json`` and ``roofline.md``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gpu_trees import KINDS, STEP, Grown, grow

from wcse import _core
from wcse.kernels.triton import work
from wcse.kernels.triton.rates import Device, Load, Resources

RESULTS = Path(__file__).parent / "results" / "static"
PEER = 0.85  # of the copy rate that peers' kernels are granted
PROMPT = 512


@dataclass(frozen=True)
class Machine:
    """Ceilings of a device. Bytes and FLOPs a second, seconds."""

    name: str
    memory: float  # a copy, read and written
    cache: float  # L2
    gemm: float  # bfloat16 product of large matrices, sustained
    tensor: float  # bfloat16 products at most
    processors: int
    clock: float
    major: int = 9
    launch: float = 1.3e-6  # of a kernel inside a graph
    eight: float = 1.6  # how much faster GEMMs of 8 bits are

    @property
    def issue(self) -> float:
        """Instructions of warps a second."""
        return self.processors * 4 * self.clock

    def device(self) -> Device:
        """For the choice of tiles, and the time of attention."""
        return Device(
            major=self.major,
            processors=self.processors,
            memory=self.memory,
            cache=self.cache,
            tensor=self.tensor,
            clock=self.clock,
        )

    def measured(self, *, memory: float, gemm: float) -> Machine:
        """With rates of a run in place of assumed ones; the others keep their proportion."""
        return replace(
            self,
            memory=memory,
            cache=self.cache * memory / self.memory,
            gemm=gemm,
            tensor=self.tensor * gemm / self.gemm,
        )


MACHINES = {
    "h200": Machine("H200", 4.3e12, 5.5e12, 600e12, 989e12, 132, 1.75e9),
    "h100": Machine("H100 SXM", 3.0e12, 5.5e12, 600e12, 989e12, 132, 1.75e9),
    "a100": Machine("A100 80G", 1.75e12, 4.0e12, 250e12, 312e12, 108, 1.41e9, major=8),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; 16-bit weights, keys and values."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    vocab: int

    @property
    def body(self) -> int:
        """Weights of all layers."""
        projections = self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        return self.layers * (projections + 3 * self.hidden * self.inner)

    @property
    def head(self) -> int:
        return self.hidden * self.vocab

    @property
    def kv(self) -> int:
        """Bytes of a token in one layer."""
        return 2 * self.kv_heads * self.head_dim * 2


SHAPES = {
    "0.5B": Shape("0.5B", 24, 14, 2, 64, 896, 4864, 151936),
    "1B": Shape("1B", 16, 32, 8, 64, 2048, 8192, 128256),
    "8B": Shape("8B", 32, 32, 8, 128, 4096, 14336, 128256),
}


@dataclass(frozen=True)
class Attention:
    """One layer of attention."""

    resources: Resources
    launches: float
    unique: float  # bytes of keys and values that must be read at least

    @property
    def seconds(self) -> float:
        return self.resources.seconds + self.launches

    @property
    def bound(self) -> float:
        """If all resources overlapped."""
        return self.resources.bound + self.launches


def attention(machine: Machine, shape: Shape, list_: work.DeviceList) -> Attention:
    """Our kernel on a work list, and the merge where lists were split."""
    load = Load(
        tile_m=list_.tile_m,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        stored=_whole_pages(list_),
        read=list_.traffic.read,
        items=list_.n_items,
        rows_bytes=4.0 * list_.n_rows * shape.heads * shape.head_dim,
        partial_bytes=float(list_.n_slots * shape.heads * (2 * shape.head_dim + 4)),
    )
    launches = machine.launch * (2 if list_.n_slots else 1)
    return Attention(machine.device().resources(load), launches, list_.traffic.unique * shape.kv)


def _whole_pages(list_: work.DeviceList) -> int:
    """Tokens of all distinct pages of the list: memory is read in whole pages, once, the rest comes from L2."""
    entries = list_.page.numpy()
    return len({int(page) & 0x7FFFFFF for page in entries[entries != 0]}) * work.PAGE


def per_sequence(machine: Machine, shape: Shape, grown: Grown) -> float:
    """Seconds of a kernel that reads every sequence of its own; shared reads are 1.3x as fast, from L2.

    Few sequences are split, and merged by a kernel more.
    """
    tokens = sum(map(len, grown.slots))
    unique = _unique(grown)
    from_memory = unique + (tokens - unique) / 1.3
    launches = 2 if len(grown.slots) * shape.kv_heads < 2 * machine.processors else 1
    return from_memory * shape.kv / (PEER * machine.memory) + launches * machine.launch


def cascade(machine: Machine, shape: Shape, grown: Grown) -> float:
    """Seconds of a kernel for each level of the tree and a merge of it with the levels above."""
    nodes = grown.plan.nodes
    open_: list[int] = []
    levels = 0
    pairs = 0  # (row, node): partial results
    for lo, hi in zip(nodes.lo.tolist(), nodes.hi.tolist(), strict=True):
        open_ = [end for end in open_ if end > lo] + [hi]
        levels = max(levels, len(open_))
        pairs += hi - lo
    partials = 2 * pairs * shape.heads * (shape.head_dim * 2 + 4)
    return (_unique(grown) * shape.kv + partials) / (PEER * machine.memory) + (
        2 * levels - 1
    ) * machine.launch


def _unique(grown: Grown) -> int:
    nodes = grown.plan.nodes
    return int(nodes.length.sum())


def gemm(machine: Machine, weights: float, rows: float, *, eight: bool = False) -> float:
    """Seconds of all products of ``rows`` rows with so many 16-bit weights."""
    speed = machine.eight if eight else 1.0
    return max(weights * 2 / speed / (0.92 * machine.memory), 2.0 * weights * rows / (machine.gemm * speed))


def elementwise(machine: Machine, shape: Shape, rows: int) -> float:
    """Norms, activations, rotation and the write of keys and values, all layers."""
    per_row = shape.hidden * 16 + shape.inner * 6 + (shape.heads + 2 * shape.kv_heads) * shape.head_dim * 6
    return shape.layers * rows * per_row / (0.8 * machine.memory)


def sampling(machine: Machine, vocab: int, rows: int, way: str = "temperature") -> float:
    """Seconds of a sampler of 16-bit logits. Ways: ``SAMPLERS``, or "sort".

    The logits are read once; the time is that, or that of the instructions, which ``gpu_static.py`` counts.
    """
    size = rows * vocab * 2.0
    if way == "sort":
        return size / (0.9 * machine.memory) + SORT_PASSES * size / machine.cache
    scan, pick, passes = SAMPLERS[way]
    read = max(size / (0.9 * machine.memory), rows * vocab / 32 * scan / machine.issue)
    chosen = rows * 4 * pick / machine.issue  # four warps a row
    wide = passes * max(size / machine.cache, rows * vocab / 32 * WIDE / machine.issue)
    return read + chosen + wide + 3 * machine.launch


SAMPLERS = {
    "greedy": (12.0, 400.0, 0.0),
    "temperature": (18.3, 900.0, 0.0),
    "top-p": (18.3, 8200.0, 0.0),
    "top-p, flat rows": (18.3, 5000.0, 5.0),
}
"""Of kernels/triton/sampler.py on sm_90, bfloat16: instructions of a warp for 32 logits in the scan; of a warp for the
draw of a row; and passes of flat rows (three that narrow, two that weigh, and those that look for ties and the token).
"""
WIDE = 60.0  # instructions of a warp for 32 logits in the longest of those passes

SORT_PASSES = 30  # of a sort-based sampler: keys and values of 8 bytes, several radix passes


def list_of(machine: Machine, shape: Shape, plan: _core.Plan, tile_m: int | None = None) -> work.DeviceList:
    """The work list that our kernel would get on the machine."""
    group = shape.heads // shape.kv_heads
    placed = work.DevicePlan(
        plan,
        torch.device("cpu"),
        group,
        shape.kv_heads,
        shape.head_dim,
        tile_m=tile_m,
        rates=machine.device(),
    )
    return placed.list(0)


@dataclass(frozen=True)
class Step:
    """Milliseconds of one decode step by what takes them."""

    body: float
    head: float
    attention: float
    elementwise: float
    sampling: float
    launches: float

    @property
    def total(self) -> float:
        return self.body + self.head + self.attention + self.elementwise + self.sampling + self.launches


def decode_step(
    machine: Machine,
    shape: Shape,
    layer: float,
    rows: int,
    *,
    way: str = "temperature",
    kernels: int = 9,
) -> Step:
    """One token for ``rows`` rows; ``layer`` is the time of one layer's attention."""
    parts = (
        gemm(machine, shape.body, rows),
        gemm(machine, shape.head, rows),
        shape.layers * layer,
        elementwise(machine, shape, rows),
        sampling(machine, shape.vocab, rows, way),
        shape.layers * kernels * machine.launch,
    )
    return Step(*(part * 1e3 for part in parts))


def cases(machine: Machine) -> dict[str, Any]:
    """The modelled figures."""
    found: dict[str, Any] = {"attention": [], "step": []}
    for name in ("1B", "8B"):
        shape = SHAPES[name]
        for kind in KINDS:
            for problems in (1, 16, 64):
                if kind == "chain" and problems > 1:
                    continue
                grown = grow(kind, leaves=64, depth=10, prompt=PROMPT, trees=problems)
                found["attention"].append(_attention_row(machine, shape, kind, grown))
                if kind in ("beam", "dvts", "best-of-n"):
                    found["step"].append(_step_row(machine, shape, kind, grown))
    found["search"] = [_search_row(machine, prm) for prm in ("1B", "8B")]
    found["sampling"] = {
        "rows": 4096,
        "vocabulary": 128256,
        **{f"{way} ms": sampling(machine, 128256, 4096, way) * 1e3 for way in (*SAMPLERS, "sort")},
    }
    found["score_steps 4096 x 4096 us"] = (4096 * 4096 * 2 / (0.85 * machine.memory) + machine.launch) * 1e6
    found["samples"] = [_samples_row(machine, kind) for kind in ("best-of-n", "dvts")]
    return found


def _attention_row(machine: Machine, shape: Shape, kind: str, grown: Grown) -> dict[str, Any]:
    list_ = list_of(machine, shape, grown.plan)
    ours = attention(machine, shape, list_)
    alone, levels = per_sequence(machine, shape, grown), cascade(machine, shape, grown)
    return {
        "model": shape.name,
        "tree": kind,
        "leaves": grown.plan.n_rows,
        "tile": list_.tile_m,
        "layer us": ours.seconds * 1e6,
        "share of copy rate, unique bytes": ours.unique / ours.seconds / machine.memory,
        "if all overlapped": ours.unique / ours.bound / machine.memory,
        "faster than per sequence": alone / ours.seconds,
        "faster than cascade": levels / ours.seconds,
    }


def _step_row(machine: Machine, shape: Shape, kind: str, grown: Grown) -> dict[str, Any]:
    rows = grown.plan.n_rows
    ours = decode_step(
        machine, shape, attention(machine, shape, list_of(machine, shape, grown.plan)).seconds, rows
    )
    alone = decode_step(machine, shape, per_sequence(machine, shape, grown), rows)
    return {
        "model": shape.name,
        "tree": kind,
        "leaves": rows,
        "ms": ours.total,
        "attention ms": ours.attention,
        "per sequence ms": alone.total,
        "faster": alone.total / ours.total,
        "tokens/s": rows / ours.total * 1e3,
    }


def _search_row(machine: Machine, prm: str) -> dict[str, Any]:
    """One step of 64 problems x 64 beams at depth 10: 1B policy, tokens of the step and its scores."""
    policy, verifier = SHAPES["1B"], SHAPES[prm]
    grown = grow("beam", leaves=64, depth=10, prompt=PROMPT, trees=64)
    rows = grown.plan.n_rows
    layer = attention(machine, policy, list_of(machine, policy, grown.plan)).seconds
    alone = per_sequence(machine, policy, grown)
    length = PROMPT + STEP * 11
    full = gemm(machine, verifier.body + verifier.head, rows * length)  # every conversation, all logits
    new = gemm(machine, verifier.body, rows * STEP * 1.17)  # new tokens and template
    times = {
        "search-and-learn's way s": STEP * decode_step(machine, policy, alone, rows).total / 1e3 + full,
        "tree attention s": STEP * decode_step(machine, policy, layer, rows).total / 1e3 + full,
        "incremental scores s": STEP * decode_step(machine, policy, alone, rows).total / 1e3 + new,
        "both s": STEP * decode_step(machine, policy, layer, rows).total / 1e3 + new,
        "both, fp8 verifier s": STEP * decode_step(machine, policy, layer, rows).total / 1e3
        + gemm(machine, verifier.body, rows * STEP * 1.17, eight=True),
    }
    return {"prm": prm, **times, "faster": times["search-and-learn's way s"] / times["both s"]}


def _samples_row(machine: Machine, kind: str) -> dict[str, Any]:
    """256 samples a problem, four problems at once, 1B: mean of steps at five depths."""
    shape, totals = SHAPES["1B"], {"ours": 0.0, "per sequence": 0.0, "floor": 0.0}
    depths = (2, 4, 6, 8, 10)
    for depth in depths:
        grown = grow(kind, leaves=256, depth=depth, prompt=PROMPT, trees=4)
        rows = grown.plan.n_rows
        ours = attention(machine, shape, list_of(machine, shape, grown.plan))
        totals["ours"] += decode_step(machine, shape, ours.seconds, rows).total
        totals["per sequence"] += decode_step(machine, shape, per_sequence(machine, shape, grown), rows).total
        floor = ours.unique / machine.memory * shape.layers + gemm(machine, shape.body + shape.head, rows)
        totals["floor"] += floor * 1e3
    tokens = 10 * STEP
    rate = 1024 * len(depths) / (totals["ours"] / 1e3)
    return {
        "kind": f"{kind} 256",
        "tokens/s": rate,
        "samples a GPU-hour": rate * 3600 / tokens,
        "share of floor": totals["floor"] / totals["ours"],
        "faster than per sequence": totals["per sequence"] / totals["ours"],
    }


def text(machine: Machine, found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"MODELLED for one {machine.name} (`python bench/roofline.py --write`); nothing here was measured. Copy "
        f"{machine.memory / 1e12:.1f} TB/s, L2 {machine.cache / 1e12:.1f} TB/s, GEMM {machine.gemm / 1e12:.0f} "
        "TFLOP/s, all assumed. Trees: 64 leaves a problem, depth 10, prompt 512, steps of 48 tokens.",
    ]
    for part, rows in found.items():
        if isinstance(rows, dict):
            rows = [rows]
        elif not isinstance(rows, list):
            rows = [{part: rows}]
        names = list(rows[0])
        lines += [
            "",
            f"**{part}**",
            "",
            "| " + " | ".join(names) + " |",
            "| " + " | ".join("---" for _ in names) + " |",
        ]
        lines += ["| " + " | ".join(_shown(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--machine", choices=MACHINES, default="h200")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    machine = MACHINES[chosen.machine]
    found = cases(machine)
    print(text(machine, found), end="")
    if chosen.write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "roofline.json").write_text(
            json.dumps({"machine": machine.name, **found}, indent=1) + "\n"
        )
        (RESULTS / "roofline.md").write_text(text(machine, found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
