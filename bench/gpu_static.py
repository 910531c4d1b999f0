"""Static checks of the Triton kernels, without a GPU: compile ahead of time and read the machine code.

``python bench/gpu_static.py [--arch 80 90 100] [--kernels NAME ...]`` prints a table (``--json`` for machines,
``--write`` for ``results/static/``) of registers, shared memory, spills, resident blocks, and which matrix instructions
there are. For NVIDIA it uses the ``cuobjdump`` of the triton wheel; for AMD (``--arch gfx942``) it says only that the
kernel compiles. It cannot see latency, overlap or bank conflicts. A number here is a count, never a speed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault(
    "TRITON_DEFAULT_FP_FUSION", "1"
)  # the default will change; counts assume fused multiply-add

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wcse.kernels.triton import advance, attention, rows, sampler, score, wide_rows, work

RESULTS = Path(__file__).parent / "results" / "static"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
SHARED_LIMIT = {"80": 163, "90": 227, "100": 227}  # KiB a block may have


@dataclass(frozen=True)
class Case:
    """One kernel with its constants, as the launcher would compile it."""

    name: str
    kernel: Any
    types: Mapping[str, str]  # of arguments that are not int32; "*x" is a pointer
    constants: Mapping[str, object]
    warps: int
    tensor_core: bool = False
    shape: str = ""

    def source(self) -> ASTSource:
        """The signature, with pointers and strides divisible by 16 as the launcher sees them."""
        names = self.kernel.arg_names
        signature = {
            name: "constexpr"
            if name in self.constants
            else self.types.get(name, "*i32" if "_ptr" in name else "i32")
            for name in names
        }
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if signature[name].startswith("*") or name.startswith("stride") or name == "V"
        }
        constants = {(names.index(name),): value for name, value in self.constants.items()}
        return ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=aligned)


def attention_case(
    tile_m: int,
    group: int,
    head_dim: int,
    dtype: torch.dtype,
    *,
    window: int = 0,
    softcap: float = 0.0,
    scaled: bool = False,
) -> Case:
    options = attention.tile_options(
        tile_m, group, head_dim, dtype, window, softcap, 8 * group, scaled=scaled
    )
    warps = int(str(options.pop("num_warps")))
    kind = f"*{NAMES[dtype]}"
    types = {name: kind for name in ("q_ptr", "k_ptr", "v_ptr", "out_ptr")}
    if scaled:
        types |= {"k_ptr": "*fp8e4nv", "v_ptr": "*fp8e4nv"}
    types |= {name: "*fp32" for name in ("part_ptr", "part_lse_ptr", "k_scale_ptr", "v_scale_ptr")}
    types |= {"scale_log2": "fp32", "cap_log2": "fp32"}
    extra = " window" * bool(window) + " softcap" * bool(softcap) + " fp8" * scaled
    shape = f"M{tile_m} G{group} d{head_dim} {NAMES[dtype]}{extra}"
    tensor_core = dtype is not torch.float32
    return Case("tree_attention", attention.tree_attention_kernel, types, options, warps, tensor_core, shape)


def cases() -> Iterator[Case]:
    """Every kernel at the shapes of the models that it is made for."""
    half, single = torch.bfloat16, torch.float32
    for tile_m in (16, 32, 64, 128):
        yield attention_case(tile_m, 4, 64, half)
    yield attention_case(64, 4, 128, half)
    yield attention_case(128, 4, 128, half)
    yield attention_case(64, 7, 64, half)
    yield attention_case(64, 4, 128, half, window=1024)
    yield attention_case(64, 2, 256, half, window=1024, softcap=50.0)
    yield attention_case(64, 4, 96, half)
    yield attention_case(64, 1, 64, half)
    yield attention_case(64, 4, 64, torch.float16)
    yield attention_case(16, 4, 64, single)
    yield attention_case(16, 4, 32, half)
    for tile_m, d in ((16, 64), (32, 64), (64, 64), (128, 64), (64, 128)):
        yield attention_case(tile_m, 4, d, half, scaled=True)
    parts = {"part_ptr": "*fp32", "part_lse_ptr": "*fp32", "out_ptr": "*bf16"}
    for d in (64, 256):
        constants = {"D": d, "DP": d, "HQ": 32, "BH": 16}
        yield Case("merge", attention.merge_kernel, parts, constants, 4, shape=f"d{d} bf16")
    yield from row_cases()
    yield from sampler_cases()
    yield from score_cases()
    yield from loop_cases()


def loop_cases() -> Iterator[Case]:
    """What stands between two tokens of the device loop."""
    types = {"drawn_logprob_ptr": "*fp32", "logprob_ptr": "*fp32", "token_ptr": "*i64", "table_ptr": "*i16"}
    constants = {"K": 8, "MACHINES": 3, "BLOCK": advance.BLOCK}
    yield Case("advance", advance.advance_kernel, types, constants, 4, shape="3 machines")
    yield Case("grow", advance.grow_kernel, {}, {"BLOCK": advance.BLOCK}, 4)


def row_cases() -> Iterator[Case]:
    half = "*bf16"
    for width in (2048, 4096):
        types = {n: half for n in ("x_ptr", "residual_ptr", "weight_ptr", "out_ptr")} | {
            "eps": "fp32",
            "offset": "fp32",
        }
        constants = {"N": width, "BLOCK": width, "ADD": True}
        yield Case(
            "add_rms_norm", rows.rms_norm_kernel, types, constants, width // 512, shape=f"{width} bf16"
        )
    for gelu in (False, True):
        constants = {"F": 8192, "BLOCK": 1024, "GELU": gelu}
        types = {"x_ptr": half, "out_ptr": half}
        yield Case("gated_act", rows.gated_act_kernel, types, constants, 4, shape="gelu" if gelu else "silu")
    pointers = ("qkv_ptr", "k_ptr", "v_ptr", "q_ptr", "q_norm_ptr", "k_norm_ptr")
    types = {n: half for n in pointers} | {
        "cos_ptr": "*fp32",
        "sin_ptr": "*fp32",
        "eps": "fp32",
        "offset": "fp32",
    }
    types |= {"k_scale_ptr": "*fp32", "v_scale_ptr": "*fp32"}
    eight = {"k_ptr": "*fp8e4nv", "v_ptr": "*fp8e4nv"}
    for half_dim, norm, scaled in (
        (32, False, False),
        (64, True, False),
        (48, False, False),
        (64, False, True),
    ):
        constants = {"HQ": 32, "HK": 8, "HALF": half_dim, "HP": triton.next_power_of_2(half_dim)}
        constants |= {"Q_NORM": norm, "K_NORM": norm, "SCALED": scaled}
        shape = f"d{2 * half_dim}" + " fp8" * scaled
        kinds = types | (eight if scaled else {})
        yield Case("rope_write_kv", rows.rope_write_kv_kernel, kinds, constants, 1, shape=shape)


def sampler_cases() -> Iterator[Case]:
    """Of a vocabulary of 128k."""
    floats = ("temperature", "top_p", "min_p", "chunk_top", "chunk_raw", "chunk_sum", "logprob")
    types = {f"{name}_ptr": "*fp32" for name in floats} | {"key_ptr": "*i64"}
    kernels = (sampler.scan_kernel, sampler.pick_kernel, wide_rows.wide_kernel)
    for kind in (torch.bfloat16, torch.float32):
        for kernel, options in zip(kernels, sampler.constants(128_256, kind), strict=True):
            kinds = types | {"logits_ptr": f"*{NAMES[kind]}"}
            constants = {name: value for name, value in options.items() if name != "num_warps"}
            name = f"sample {kernel.__name__.removesuffix('_kernel')}"
            yield Case(name, kernel, kinds, constants, options["num_warps"], shape=NAMES[kind])


def score_cases() -> Iterator[Case]:
    types = {n: "*bf16" for n in ("x_ptr", "weight_ptr", "bias_ptr")}
    types |= {"known_ptr": "*fp64", "out_ptr": "*fp64"}
    constants = {"N": 4096, "BLOCK": 4096, "COLUMNS": 2, "BIAS": False, "RELU": False, "BOUNDED": True}
    yield Case("score_steps", score.score_kernel, types, constants, 8, shape="4096 -> 2")
    types = {n: "*fp64" for n in ("path_ptr", "order_ptr", "best_ptr", "out_ptr")}
    yield Case("enter_groups", score.enter_kernel, types, {"BLOCK": 128}, 1, shape="16 places, 64 steps")


def runs_on(case: Case, arch: str) -> bool:
    """Numbers of 8 bits need compute capability 8.9, and the AMD device has another kind of them; wide tiles of large
    heads need warp-group matrix instructions, and the planner gives other devices none of them.
    """
    if arch in ("80", "gfx942") and "fp8" in case.shape:
        return False
    if arch != "80" or case.name != "tree_attention":
        return True
    tile, group, d = (int(str(case.constants[name])) for name in ("M", "G", "D"))
    return tile in work.tile_sizes(
        group, d, torch.float32 if "fp32" in case.shape else torch.bfloat16, major=8
    )


def compile_case(case: Case, arch: str) -> dict[str, Any]:
    """Compile, and read what there is to read."""
    amd = arch.startswith("gfx")
    if amd and case.constants.get("PRECISION") == "tf32x3":
        case = replace(case, constants=dict(case.constants) | {"PRECISION": "ieee"})
    target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch), 32)
    stages = int(str(case.constants.get("STAGES", 3)))
    options = {"num_warps": case.warps, "num_stages": stages}
    compiled = triton.compile(case.source(), target=target, options=options)
    out: dict[str, Any] = {"kernel": case.name, "shape": case.shape, "arch": arch, "warps": case.warps}
    out |= {"shared": compiled.metadata.shared, "tensor_core": case.tensor_core}
    return out if amd else out | inspect(compiled.asm["cubin"], case.warps, compiled.metadata.shared)


def inspect(cubin: bytes, warps: int, shared: int) -> dict[str, int]:
    """Registers, spills, resident blocks and the instructions of the longest loop, from a cubin."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dump(flag: str) -> str:
            return subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout

        usage, sass = dump("--dump-resource-usage"), dump("--dump-sass")
    code = [(int(m[1], 16), m[2]) for m in re.finditer(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.M)]
    loop: list[str] = []
    for address, text in code:
        back = re.search(r"BRA.*?0x([0-9a-f]+)", text)
        if back and int(back[1], 16) < address:
            loop = max(loop, [t for a, t in code if int(back[1], 16) <= a <= address], key=len)

    def count(op: str, where: list[str]) -> int:
        return sum(bool(re.search(rf"\b{op}\b", t)) for t in where)

    everything = [text for _, text in code]
    registers = int(re.search(r"REG:(\d+)", usage)[1])  # type: ignore[index]
    blocks = min(
        65536 // (-(-registers * 32 // 256) * 256 * warps), 228 * 1024 // (shared + 1024), 64 // warps
    )
    return {
        "registers": registers,
        "spills": count("STL", everything) + count("LDL", everything),
        "blocks": blocks,
        "hgmma": count("HGMMA", everything) + count("UTCHMMA", everything),
        "hmma": count("HMMA", everything),
        "async_copies": count("LDGSTS", loop),
        "loop": len(loop),
        "instructions": len(code),
    }


def failures(row: Mapping[str, Any]) -> list[str]:
    """Which gates a compiled kernel misses."""
    bad = []
    if row["shared"] > SHARED_LIMIT.get(row["arch"], 64) * 1024:
        bad.append(f"{row['shared']} bytes of shared memory")
    if "registers" in row and row["spills"]:
        bad.append(f"{row['spills']} spills")
    if "registers" in row and row["tensor_core"]:
        if not row["hgmma"] + row["hmma"]:
            bad.append("no tensor core instruction")
        if not row["async_copies"]:
            bad.append("no asynchronous copy in the loop")
        if row["arch"] == "90" and row["shape"].startswith(("M64", "M128")) and not row["hgmma"]:
            bad.append("no warp-group matrix instruction")
    return bad


def write(table: list[dict[str, Any]]) -> None:
    """``results/static/kernels.json`` and, to be read, ``kernels.md``; rows of other cases in there are kept."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "kernels.json"

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return row["arch"], row["kernel"], row["shape"]

    old = json.loads(path.read_text())["table"] if path.exists() else []
    table = sorted(({key(row): row for row in old} | {key(row): row for row in table}).values(), key=key)
    path.write_text(json.dumps({"triton": triton.__version__, "table": table}, indent=1) + "\n")
    names = (
        "arch",
        "kernel",
        "shape",
        "warps",
        "registers",
        "shared",
        "blocks",
        "spills",
        "hgmma",
        "hmma",
        "loop",
    )
    lines = [
        f"Counted in machine code, Triton {triton.__version__} (`python bench/gpu_static.py --arch 80 90 100 gfx942 "
        "--write`). Shared memory in bytes; blocks: that one processor holds; loop: instructions of the longest loop "
        "of one warp. Of gfx942 it is known that kernels compile and how much shared memory they take.",
        "",
        "| " + " | ".join(names) + " |",
        "| " + " | ".join("---" for _ in names) + " |",
    ]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in table]
    (RESULTS / "kernels.md").write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["90"])
    parser.add_argument("--kernels", nargs="*", default=[])
    parser.add_argument("--shapes", nargs="*", default=[], help="only these, as they stand in the table")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="to results/static/")
    chosen = parser.parse_args()
    table = []
    for arch in chosen.arch:
        for case in cases():
            if (
                (chosen.kernels and case.name not in chosen.kernels)
                or (chosen.shapes and case.shape not in chosen.shapes)
                or not runs_on(case, arch)
            ):
                continue
            row = compile_case(case, arch)
            row["failures"] = failures(row)
            table.append(row)
            if chosen.write:  # at once: compilation is slow, and may be stopped and gone on with
                write([row])
            if not chosen.json:
                print(*(f"{key}={value}" for key, value in row.items()), flush=True)
    if chosen.json:
        print(json.dumps({"triton": triton.__version__, "table": table}))
    return int(any(row["failures"] for row in table))


if __name__ == "__main__":
    raise SystemExit(main())
