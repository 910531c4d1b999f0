"""The GPU suite: every kernel beside its peers, with its floors. ``make bench-gpu``, or single parts of it.

    python bench/bench_gpu.py [--parts rates attention ...] [--quick] [--dry-run]

Needs a clone, a GPU and what is installed; fetches nothing. Each side is checked before it is timed. Prints rows
as they come, a short table last, and writes ``bench/results/DATE-gpu-PARTS.json``. ``--dry-run`` runs all parts on the
CPU at toy sizes in Triton's interpreter, to show that they run, and says why it skips others; it reports no times. As
a pytest file it is that dry run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import gpu_model
import torch
import torch.nn.functional as F
from gpu_peers import peers
from gpu_timing import Row, Suite, line, summary, write
from gpu_trees import KINDS, Grown, grow
from roofline import MACHINES, sampling
from roofline import SHAPES as MODEL_SHAPES
from roofline import attention as modelled
from torch import Tensor
from workloads import saved

from wcse import _core
from wcse.kernels import ops

BUDGET = 480  # seconds: parts and cases that have not begun by then are skipped
SECONDS = {"rates": 15, "attention": 110, "extend": 15, "rows": 15, "sample": 25, "score": 10, "plan": 5}
SECONDS |= {"decode": 60, "generate": 35, "prm": 40}  # of each part when all are run: 330 in all
SHAPES = {"1B": (32, 8, 64), "8B": (32, 8, 128), "0.5B": (14, 2, 64)}  # query heads, kv heads, head size
FLEX = (
    "1B beam 1024 leaves",
    "1B dvts 1024 leaves",
    "8B beam 1024 leaves",
)  # torch compiles it for each case


def rates(suite: Suite) -> None:
    """What the device does at best: every share below is of the copy rate."""
    size = 2**12 if suite.dry else 2**29
    source = torch.empty(size, dtype=torch.int32, device=suite.device)
    target = torch.empty_like(source)
    row = suite.time("rates", "copy 2 GiB", "torch", lambda: target.copy_(source), bytes=8.0 * size)
    if row.ms:
        suite.copy_rate = row.bytes / (row.ms / 1e3)
    n = 32 if suite.dry else 8192
    a = torch.randn(n, n, device=suite.device).to(suite.dtype)
    row = suite.time("rates", f"GEMM {n}", "torch", lambda: a @ a, flops=2.0 * n**3)
    if row.ms:
        suite.gemm_rate = row.flops / (row.ms / 1e3)
    x = torch.zeros(16, device=suite.device)
    suite.time("rates", "one launch", "torch", lambda: x.add_(1))


def attention(suite: Suite) -> None:
    """Decode: one token for every leaf."""
    trees = ("beam", "dvts", "best-of-n") if suite.quick else KINDS
    sizes = [(8, 1)] if suite.dry else [(64, 16), (64, 1), (64, 4)]
    for model in ["0.5B"] if suite.dry else ["1B"] if suite.quick else SHAPES:
        for kind in trees[:1] if suite.dry else trees:
            for leaves, problems in sizes:
                if kind == "chain" and problems > 1:
                    continue
                if suite.late(f"attention, {model} {kind} {leaves * problems} leaves"):
                    continue
                depth, prompt = (1, 32) if suite.dry else (10, 512)
                grown = grow(kind, leaves=leaves, depth=depth, prompt=prompt, trees=problems)
                _attention_case(suite, model, kind, grown, prompt)
    for workload in [] if suite.dry else saved():
        if suite.late(f"attention, {workload.name}"):
            continue
        _attention_case(suite, "1B", workload.name, workload.grow(), 0)


def _attention_case(suite: Suite, model: str, kind: str, grown: Grown, prompt: int) -> None:
    from wcse.kernels.triton import attention as kernels
    from wcse.kernels.triton import work
    from wcse.kernels.triton.rates import device_rates

    heads, kv_heads, d = SHAPES[model]
    plan, group = grown.plan, heads // kv_heads
    case = f"{model} {kind} {plan.n_rows} leaves"
    torch.manual_seed(0)
    k, v = (torch.randn(grown.pages, kv_heads, 16, d, device=suite.device).to(suite.dtype) for _ in range(2))
    q = torch.randn(plan.n_rows, heads, d, device=suite.device).to(suite.dtype)
    options = {"scale": d**-0.5, "softcap": 0.0, "window": 0}
    exact = _rows_exactly(q, k, v, grown, sample=4)

    def place(tile_m: int | None) -> work.DeviceList:
        made = work.DevicePlan(
            plan, suite.device, group, kv_heads, d, suite.dtype, tile_m, rates=device_rates(suite.device)
        )
        return made.list(0)

    chosen = place(None)
    unique = chosen.traffic.unique
    floor = {
        "bytes": 2.0 * unique * kv_heads * d * k.element_size(),
        "flops": 4.0 * sum(map(len, grown.slots)) * heads * d,
    }

    def ours(side: str, list_: work.DeviceList, keys: Tensor = k, values: Tensor = v) -> None:
        run = lambda: kernels.tree_attention(q, keys.transpose(2, 3), values, list_, **options)  # noqa: E731
        note = f"reads {list_.traffic.ratio:.2f}x unique, {list_.n_items} items, {list_.n_slots} partials"
        row = suite.time("attention", case, side, run, **floor, error=_worst(run(), exact), note=note)
        if not suite.dry and side.startswith("tree"):
            machine = MACHINES["h200"].measured(memory=suite.copy_rate, gemm=suite.gemm_rate)
            row.predicted_ms = modelled(machine, MODEL_SHAPES[model], list_).seconds * 1e3

    ours(f"tree M={chosen.tile_m} (chosen)", chosen)
    layers = 2 if suite.dry else MODEL_SHAPES[model].layers
    ours(f"tree M={chosen.tile_m}, as the engine's pool", chosen, *_in_whole_pages(k, v, layers))
    for tile_m in () if suite.quick or suite.dry else work.tile_sizes(group, d, suite.dtype):
        if tile_m != chosen.tile_m:
            ours(f"tree M={tile_m}", place(tile_m))
    single = _core.work_list(
        plan,
        tile_rows=1,
        block_pages=work.block_tokens(d, suite.dtype) // 16,
        items=max(1, 264 // kv_heads),
        least_pages=16,
    )
    ours("ours per sequence", work.upload(single, plan, 16, suite.device))
    _attention_peers(suite, case, q, k, v, grown, exact, floor)
    for peer in peers(q, k, v, grown, prompt=prompt, dry=suite.dry, flex_too=case in FLEX) if prompt else ():
        if peer.run is None:
            suite.skip(f"{peer.name}, {case}", peer.note)
            continue
        try:
            error = None if "not checked" in peer.note else _worst(peer.run(), exact)
            suite.time("attention", case, peer.name, peer.run, **floor, error=error, note=peer.note)
        except Exception as error:  # a peer's own: it must not cost the others
            suite.skip(f"{peer.name}, {case}", f"{type(error).__name__}: {str(error)[:90]}")


def _in_whole_pages(k: Tensor, v: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """Keys and values as one layer of pages that hold all layers; see ``KVPool``."""
    room = torch.zeros((len(k), layers, 2, *k.shape[1:]), dtype=k.dtype, device=k.device)
    keys, values = room[:, layers // 2].unbind(1)
    return keys.copy_(k), values.copy_(v)


def _attention_peers(
    suite: Suite,
    case: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grown: Grown,
    exact: dict[int, Tensor],
    floor: dict,
) -> None:
    """SDPA and flash-attn on gathered, padded sequences; the gathering is not charged."""
    lengths = torch.tensor([len(s) for s in grown.slots], device=suite.device)
    longest = int(lengths.max())
    room = 2.0 * len(grown.slots) * longest * k.shape[1] * k.shape[3] * k.element_size()
    if not suite.dry and room > 0.4 * torch.cuda.mem_get_info()[0]:
        return suite.skip(f"SDPA, {case}", f"gathered keys and values need {room / 2**30:.0f} GiB")
    index = torch.zeros(len(grown.slots), longest, dtype=torch.long)
    for i, slots in enumerate(grown.slots):
        index[i, : len(slots)] = torch.from_numpy(slots)
    index = index.to(suite.device)
    keys, values = (x[index // 16, :, index % 16] for x in (k, v))  # [leaves, tokens, Hkv, d]
    seen = torch.arange(longest, device=suite.device)[None] < lengths[:, None]
    uniform = bool(seen.all())  # then no mask: SDPA's fastest kernels take none
    heads_first = [x.transpose(1, 2).contiguous() for x in (keys, values)]
    mask = None if uniform else seen[:, None, None, :]

    def sdpa() -> Tensor:
        out = F.scaled_dot_product_attention(q[:, :, None], *heads_first, attn_mask=mask, enable_gqa=True)
        return out[:, :, 0]

    group = q.shape[1] // k.shape[1]
    packed = q.view(len(q), k.shape[1], group, q.shape[2])  # the group's heads as queries: no repeated keys

    def sdpa_packed() -> Tensor:
        return F.scaled_dot_product_attention(packed, *heads_first, attn_mask=mask).flatten(1, 2)

    for name, run in (("SDPA enable_gqa", sdpa), ("SDPA, packed by hand", sdpa_packed)):
        suite.time("attention", case, name, run, **floor, error=_worst(run(), exact))
    try:
        from flash_attn import flash_attn_with_kvcache
    except ImportError:
        return suite.skip(f"flash-attn, {case}", "not installed")
    lengths32 = lengths.to(torch.int32)

    def flash() -> Tensor:
        return flash_attn_with_kvcache(q[:, None], keys, values, cache_seqlens=lengths32)[:, 0]

    suite.time("attention", case, "flash-attn", flash, **floor, error=_worst(flash(), exact))


def _rows_exactly(q: Tensor, k: Tensor, v: Tensor, grown: Grown, sample: int) -> dict[int, Tensor]:
    """Attention of a few rows in float64."""
    group, out = q.shape[1] // k.shape[1], {}
    for row in range(0, len(q), max(1, len(q) // sample)):
        slots = torch.from_numpy(grown.slots[row]).to(k.device)
        keys, values = (x[slots // 16, :, slots % 16].double() for x in (k, v))  # [n, Hkv, d]
        heads = q[row].double().view(k.shape[1], group, -1)
        weights = (torch.einsum("hgd,nhd->hgn", heads, keys) * q.shape[2] ** -0.5).softmax(-1)
        out[row] = torch.einsum("hgn,nhd->hgd", weights, values).flatten(0, 1)
    return out


def _worst(got: Tensor, exact: dict[int, Tensor]) -> float:
    error = max(float((got[row].double() - want).abs().max()) for row, want in exact.items())
    if not error < 0.05:  # also NaN
        raise AssertionError(f"error {error} against float64: not timed")
    return error


def extend(suite: Suite) -> None:
    """Reading a prompt: causal attention of all its tokens."""
    heads, kv_heads, d = SHAPES["0.5B" if suite.dry else "8B"]
    for tokens in [40] if suite.dry else [1024, 4096]:
        tree = _core.KVTree(-(-tokens // 16))
        node = tree.fork(0)
        tree.extend(node, list(range(tokens)))
        plan = _core.plan(tree, [node], [tokens])
        pages = torch.from_numpy(tree.pages(node)).long().to(suite.device)
        k, v = (
            torch.randn(len(pages), kv_heads, 16, d, device=suite.device).to(suite.dtype) for _ in range(2)
        )
        q = torch.randn(tokens, heads, d, device=suite.device).to(suite.dtype)
        placed = ops.device_plan(
            plan, suite.device, n_heads=heads, n_kv=kv_heads, head_dim=d, dtype=suite.dtype
        )
        parts = [x[pages].transpose(0, 1).flatten(1, 2)[None, :, :tokens].contiguous() for x in (k, v)]
        first = q.transpose(0, 1)[None].contiguous()

        def ours() -> Tensor:
            return ops.tree_attention(q, k.transpose(2, 3), v, placed, scale=d**-0.5, backend="triton")  # noqa: B023

        def sdpa() -> Tensor:
            return F.scaled_dot_product_attention(first, *parts, is_causal=True, enable_gqa=True)[0]  # noqa: B023

        error = float((ours() - sdpa().transpose(0, 1)).abs().max())
        assert error < 0.05, error
        flops = 2.0 * tokens * (tokens + 1) * heads * d
        suite.time("extend", f"{tokens} tokens", "tree", ours, flops=flops, error=error)
        suite.time("extend", f"{tokens} tokens", "SDPA causal", sdpa, flops=flops)


def rows(suite: Suite) -> None:
    """Kernels that read and write each number once."""
    n, width = (4, 64) if suite.dry else (4096, 4096)
    x, residual = (torch.randn(n, width, device=suite.device).to(suite.dtype) for _ in range(2))
    weight = torch.ones(width, device=suite.device)
    size = n * width * x.element_size()
    run = lambda: ops.add_rms_norm(residual, x, weight, eps=1e-6, backend="triton")  # noqa: E731
    suite.time("rows", f"add_rms_norm {n} x {width}", "triton", run, bytes=4.0 * size)
    reference = lambda: F.rms_norm(residual.add_(x), (width,), weight.to(x.dtype), 1e-6)  # noqa: E731
    suite.time("rows", f"add_rms_norm {n} x {width}", "torch", reference, bytes=4.0 * size)
    gate_up = torch.randn(n, 2 * width, device=suite.device).to(suite.dtype)
    suite.time(
        "rows",
        f"silu {n} x {width}",
        "triton",
        lambda: ops.gated_act(gate_up, backend="triton"),
        bytes=3.0 * size,
    )
    suite.time(
        "rows",
        f"silu {n} x {width}",
        "torch",
        lambda: F.silu(gate_up[:, :width]) * gate_up[:, width:],
        bytes=3.0 * size,
    )
    heads, kv_heads, d = SHAPES["0.5B" if suite.dry else "8B"]
    qkv = torch.randn(n, (heads + 2 * kv_heads) * d, device=suite.device).to(suite.dtype)
    positions = torch.zeros(n, dtype=torch.int32, device=suite.device)
    slots = torch.arange(n, dtype=torch.int32, device=suite.device)
    table = torch.ones(1, d // 2, device=suite.device)
    k, v = (torch.zeros(-(-n // 16), kv_heads, 16, d, device=suite.device).to(suite.dtype) for _ in range(2))
    suite.time(
        "rows",
        f"rope_write_kv {n} rows",
        "triton",
        lambda: ops.rope_write_kv(
            qkv,
            positions,
            slots,
            table,
            table,
            k.transpose(2, 3),
            v,
            n_heads=heads,
            n_kv_heads=kv_heads,
            backend="triton",
        ),
        bytes=2.0 * qkv.numel() * qkv.element_size(),
    )


def sample(suite: Suite) -> None:
    """Draws, and what torch does for the same."""
    n, vocab = (2, 600) if suite.dry else (1024 if suite.quick else 4096, 128_256)
    for kind in ("peaked", "flat"):
        logits = torch.randn(n, vocab, device=suite.device)
        if kind == "peaked":  # about Zipf with exponent 1.5, noisy, in scattered ids
            rank = torch.arange(1, vocab + 1, device=suite.device).log()
            logits += (-1.5 * rank)[torch.randperm(vocab, device=suite.device)]
        _sample_case(suite, f"{n} x {vocab} {kind}", logits.to(suite.dtype))


def _sample_case(suite: Suite, case: str, logits: Tensor) -> None:
    n, vocab = logits.shape
    zeros = torch.zeros(n, dtype=torch.int32, device=suite.device)
    index = torch.arange(n, dtype=torch.int32, device=suite.device)
    ones = torch.ones(n, device=suite.device)
    machine = MACHINES["h200"]
    if suite.copy_rate:
        machine = machine.measured(memory=suite.copy_rate, gemm=suite.gemm_rate)
    ways = (
        ("all", 0, 1.0, "temperature"),
        ("top-p 0.9", 0, 0.9, "top-p, flat rows" if "flat" in case else "top-p"),
        ("top-k 50", 50, 1.0, "top-p"),
    )
    for name, top_k, top_p, way in ways:
        if suite.late(f"sample, {case}, {name}"):
            continue
        arguments = (index, ones, zeros + top_k, ones * top_p, ones * 0, index.long(), zeros)
        run = lambda a=arguments: ops.sample(logits, *a, backend="triton")  # noqa: E731
        few = [a[:16].cpu() for a in arguments]
        same = (run()[0][:16].cpu() == ops.sample(logits[:16].float().cpu(), *few)[0]).all()
        note = (
            "tokens of the CPU"
            if same
            else "TOKENS DIFFER FROM THE CPU'S (rounding at a boundary, or a fault)"
        )
        size = float(logits.numel() * logits.element_size())
        row = suite.time("sample", case, f"triton, {name}", run, bytes=size, note=note)
        row.predicted_ms = None if suite.dry else sampling(machine, vocab, n, way) * 1e3

    def sort() -> Tensor:
        ranked, order = logits.float().softmax(-1).sort(-1, descending=True)
        ranked[ranked.cumsum(-1) - ranked > 0.9] = 0
        return order.gather(1, ranked.multinomial(1))

    suite.time("sample", case, "torch sort, top-p 0.9", sort)


def score(suite: Suite) -> None:
    """Scores of step ends, without and with the best 4 of groups of 64."""
    n, width = (8, 64) if suite.dry else (4096, 4096)
    x = torch.randn(n, width, device=suite.device).to(suite.dtype)
    head = torch.randn(2, width, device=suite.device) * width**-0.5
    layers = [(ops.DenseLinear(head), None)]
    index = torch.arange(n, dtype=torch.int32, device=suite.device)
    run = lambda: ops.score_steps(x, index, layers, backend="triton")  # noqa: E731
    suite.time("score", f"{n} x {width}", "triton", run, bytes=float(x.numel() * x.element_size()))
    plain = lambda: (x.float() @ head.T).softmax(-1)[:, 1]  # noqa: E731
    suite.time("score", f"{n} x {width}", "torch", plain, error=float((run()[:, 0] - plain()).abs().max()))
    count = -(-n // 64)
    groups = ops.Groups(
        torch.tensor([ops.NOBODY] * (4 * count), dtype=torch.float64, device=suite.device),
        torch.arange(0, 4 * count + 1, 4, dtype=torch.int32, device=suite.device),
        torch.zeros(count, dtype=torch.int32, device=suite.device),
        index // 64,
        index.double(),
    )
    best = lambda: ops.score_steps(x, index, layers, groups=groups, backend="triton")  # noqa: E731
    suite.time("score", f"{n} x {width}, best 4 of 64", "triton", best)


def plans(suite: Suite) -> None:
    """Host time of a work list; it is made once a step, not once a layer."""
    from wcse.kernels.triton import work

    for problems in [1] if suite.dry else [1, 16, 64]:
        grown = grow("beam", leaves=64, depth=10, trees=problems)
        seconds = []
        for _ in range(3 if suite.dry else 30):
            begin = time.perf_counter()
            work.DevicePlan(grown.plan, suite.device, 4, 8, 64).list(0)
            seconds.append(time.perf_counter() - begin)
        row = Row("plan", f"beam {grown.plan.n_rows} leaves", "work list and upload")
        if not suite.dry:
            row.ms, row.p10, row.p90 = (sorted(seconds)[len(seconds) * p // 100] * 1e3 for p in (50, 10, 90))
        suite.rows.append(row)
        print(line(row), flush=True)


PARTS: dict[str, Callable[[Suite], None]] = {
    "rates": rates,
    "attention": attention,
    "extend": extend,
    "rows": rows,
    "sample": sample,
    "score": score,
    "plan": plans,
    **gpu_model.PARTS,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="fewer shapes and trees")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which nothing new begins")
    chosen = parser.parse_args()
    if not chosen.dry_run and not torch.cuda.is_available():
        print(
            f"bench_gpu: torch {torch.__version__} finds no CUDA device; nothing was timed (--dry-run shows the parts)"
        )
        return 0
    device = torch.device("cpu" if chosen.dry_run else "cuda")
    suite = Suite(device, chosen.dry_run, chosen.quick, torch.float16 if chosen.dry_run else torch.bfloat16)
    begin = time.monotonic()
    with torch.inference_mode():
        parts = list(dict.fromkeys(["rates", *chosen.parts]))
        share = (chosen.budget - sum(SECONDS[name] for name in parts)) / len(
            parts
        )  # spare time, or what lacks
        for name in parts:
            suite.deadline = min(time.monotonic() + max(5.0, SECONDS[name] + share), begin + chosen.budget)
            if suite.late(name):
                continue
            try:
                PARTS[name](suite)
            except torch.cuda.OutOfMemoryError as error:
                suite.skip(name, f"out of memory: {str(error).splitlines()[0]}")
            except Exception as error:  # a wrong result, or a kernel that does not run: the other parts go on
                suite.fail(name, error)
                traceback.print_exc()
    if not chosen.dry_run:
        print(f"written: {write(suite)}")
        print("\nours, and how many times faster than the best other side:\n" + summary(suite))
    for failure in suite.failed:
        print(f"FAILED {failure}")
    return int(bool(suite.failed))


def test_dry_run() -> None:
    """Every part runs, at toy sizes."""
    import pytest

    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    command = [sys.executable, str(Path(__file__)), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for part in PARTS:
        assert part in done.stdout
    assert "two-level cascade" in done.stdout and "flex_attention, flattened tree" in done.stdout
    assert "DIFFER" not in done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
