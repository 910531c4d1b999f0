"""The table of a bench run: ``python -m bench.table bench/results/latest.json``, Markdown on stdout.

Reads what ``make bench`` wrote. A line whose bench did not run, or failed, is left out. Knows names and figures, not
how they are measured.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Info = Mapping[str, Any]


def median(value: Any) -> float:
    """A number, or the median of a spread."""
    return float(value["median"] if isinstance(value, dict) else value)


def short(value: float) -> str:
    """Two digits, or whole numbers."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def many(count: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def times(key: str) -> Callable[[Sequence[Info]], str]:
    """``key`` of one bench or several: "2.4x", "1.9 - 2.3x"."""

    def cell(found: Sequence[Info]) -> str:
        low, high = (short(pick(median(info[key]) for info in found)) for pick in (min, max))
        return f"{low}x" if low == high else f"{low} - {high}x"

    return cell


def shares(**names: str) -> Callable[[Sequence[Info]], str]:
    """Medians over the benches of the keys that ``names`` give words for."""

    def cell(found: Sequence[Info]) -> str:
        return "; ".join(
            f"{words.replace('_', ' ')} {statistics.median(median(info[key]) for info in found):.1%}"
            for words, key in names.items()
        )

    return cell


LINES: list[tuple[str, str, str, Callable[[Sequence[Info]], str]]] = [
    *(
        (
            rf"test_leaves_below_a_prompt\[{threads}thread.*-{leaves}\]",
            f"tree attention, {leaves} leaves of 64 tokens below 512, {many(threads, 'thread')}",
            "torch SDPA, packed GQA",
            times("times_peer"),
        )
        for threads in (1, 2)
        for leaves in (64, 256)
    ),
    *(
        (
            rf"test_linear\[135M-(qkv|o|gate_up|down)-T{rows}-{threads}thread.*\]",
            f"fp32 linear, SmolLM2-135M's layers, {many(rows, 'row')}, {many(threads, 'thread')}",
            "torch linear",
            times("times_peer"),
        )
        for threads in (1, 2)
        for rows in (1, 64, 256)
    ),
    *(
        (
            rf"test_quantised_linear\[.*-(gate_up|down)-{rows}-{threads}thread.*\]",
            f"{form} linear, MLPs of SmolLM2-135M and Qwen2.5-0.5B, {many(rows, 'row')}, {many(threads, 'thread')}",
            "our fp32 linear",
            times(f"{form}_times_fp32"),
        )
        for form in ("int8", "w8a8", "w4a8")
        for threads in (1, 2)
        for rows in (1, 64, 256)
    ),
    (r"test_top_p\[.*1thread\]", "top-p 0.95 sampling, 1 thread", "torch, sorted", times("times_peer")),
    (
        r"test_kv_pages_of_a_wide_tree",
        "KV pages, 256 leaves of 64 tokens below 512",
        "a cache for each sequence",
        times("times_less"),
    ),
    *(
        (
            rf"test_generate_smollm2\[{n}\]",
            f"`LLM.generate`, SmolLM2-135M, prompt of 400, 128 new, n = {n}",
            "transformers `generate`",
            times("times_transformers"),
        )
        for n in (1, 16)
    ),
    *(
        (
            rf"test_generation_scales\[{n}\]",
            f"two threads, SmolLM2-135M, n = {n}",
            "one thread",
            times("times_one_thread"),
        )
        for n in (1, 64)
    ),
    *(
        (
            rf"test_decode_step\[{n}\]",
            f"a decode step, SmolLM2-135M, N = {n}, 1 thread",
            "measured peaks",
            shares(of_torch_GEMM="gemm_share", of_multiply_adds="fma_share", host="host_share"),
        )
        for n in (64, 256)
    ),
    (
        r"test_sampler_share_of_a_step",
        "sampler in a decode step of Qwen2.5-0.5B's shape, 256 rows",
        "the whole step",
        shares(share="sampler_share"),
    ),
    (
        r"test_share_of_a_policy_step",
        "shared head in a decode step, 256 rows",
        "the whole step",
        shares(share="score_share"),
    ),
]
"""Names of benches (a pattern), what they time, beside what, and the cell for their figures."""


def table(benches: Sequence[Mapping[str, Any]]) -> str:
    """Lines of Markdown for the ``benchmarks`` of a pytest-benchmark file."""
    text = "| what | beside | result |\n| --- | --- | --- |\n"
    for pattern, what, peer, cell in LINES:
        found = [b["extra_info"] for b in benches if re.fullmatch(pattern, b["name"])]
        if found:
            text += f"| {what} | {peer} | {cell(found)} |\n"
    return text


def main(arguments: Sequence[str]) -> int:
    """Print the table of one file."""
    if len(arguments) != 1:
        print("usage: python -m bench.table RESULT.json", file=sys.stderr)
        return 2
    data = json.loads(Path(arguments[0]).read_text())
    commit = data["commit_info"].get("id", "unknown")[:7]
    print(
        f"{data['machine_info']['cpu'].get('brand_raw', 'CPU')}; {data['datetime'][:10]}, commit {commit}\n"
    )
    print(table(data["benchmarks"]), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
