"""What quantising costs: relative error of the logits, perplexity, and pass@1 on embedded problems.

    python bench/quant_accuracy.py [MODEL ...] [--text FILE] [--problems K]

MODEL is a folder, a .gguf file or an embedded name (default: tiny-wc, and SmolLM2-135M where its package is there).
Perplexity is over FILE (default: this project's README), for tiny-wc over its own float32 solutions, since it knows
nothing else; errors are against the same model in float32. pass@1 is greedy, for tiny-wc.

A GGUF file is itself quantised: what is measured is the second rounding, and weights that lie on a 4-bit grid already
lose little more; take a float checkpoint to judge int4.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import models
import numpy as np
import pytest
import torch

from wcse import Recipe, _core, load_problems, solve_all
from wcse.data.record import SolveRecord
from wcse.models.decoder import Batch
from wcse.models.kv_pool import KVPool
from wcse.models.load import LoadedModel, load_model
from wcse.prompts import render_problem

ROOT = Path(__file__).parent.parent
WINDOW = 512
FORMATS = ("int8", "int4", "w8a8", "w4a8")


def logits(model: LoadedModel, tokens: list[int]) -> torch.Tensor:
    """Logits [tokens, V] of a text."""
    pages = -(-len(tokens) // 16)
    tree = _core.KVTree(pages)
    node = tree.fork(0)
    slots = tree.extend(node, np.array(tokens, np.int32))
    plan = _core.plan(tree, np.array([node], np.int32), np.array([len(tokens)], np.int32))
    rows = torch.arange(len(tokens))
    batch = Batch(torch.tensor(tokens), torch.tensor(plan.positions), torch.tensor(slots), plan, rows)
    return model.decoder.logits(model.decoder.forward(batch, KVPool(model.spec, pages)))


def text_windows(model: LoadedModel, text: str) -> list[list[int]]:
    ids = model.tokenizer.encode(text)[: 4 * WINDOW]
    return [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW) if len(ids) - i > 1]


def solution_windows(model: LoadedModel, records: list[SolveRecord]) -> list[list[int]]:
    """Problems as the model sees them, with solutions that it wrote itself in float32."""
    return [
        render_problem(model.tokenizer, record.problem.prompt, None)
        + [token for node in record.nodes for token in node.token_ids]
        for record in records
    ]


def compare(name: str, exact: LoadedModel, windows: list[list[int]]) -> None:
    """Print one line per format."""
    want = [logits(exact, window) for window in windows]
    base = perplexity(want, windows)
    print(f"{name}: float32, {exact.decoder.weight_bytes / 2**20:.0f} MiB, perplexity {base:.3f}")
    formats = (*FORMATS, "gguf", "gguf_a8") if exact.path.suffix == ".gguf" else FORMATS
    for quantization in formats:
        model = load_model(name, quantization=quantization)
        got = [logits(model, window) for window in windows]
        pairs = list(zip(got, want, strict=True))
        error = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))
        size = math.sqrt(sum(float((b - b.mean(-1, keepdim=True)).square().sum()) for _, b in pairs))
        same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs) / sum(map(len, windows))
        found = perplexity(got, windows)
        print(
            f"  {quantization}: {model.decoder.weight_bytes / 2**20:.0f} MiB, relative logit error {error / size:.4f}, "
            f"same greedy token {same:.1%}, perplexity {found:.3f} ({found / base - 1:+.2%})"
        )


def perplexity(scores: list[torch.Tensor], windows: list[list[int]]) -> float:
    total = count = 0.0
    for rows, ids in zip(scores, windows, strict=True):
        losses = torch.nn.functional.cross_entropy(rows[:-1], torch.tensor(ids[1:]), reduction="sum")
        total, count = total + float(losses), count + len(ids) - 1
    return math.exp(total / count)


def pass_at_1(count: int) -> list[SolveRecord]:
    """Greedy answers of tiny-wc to problems that its training never drew; returns those in float32."""
    found = {}
    spec = f"gsm_symbolic:size={count},seed=20261122"
    problems = load_problems(spec)
    for quantization in (None, *FORMATS):
        recipe = Recipe.parse(
            {"policy": "tiny-wc", "problems": spec, "strategies": ("greedy",), "max_tokens": 256}
            | ({"quantization": quantization} if quantization else {})
        )
        found[quantization] = solve_all(recipe, problems)
        right = sum(record.correct is True for record in found[quantization])
        print(f"tiny-wc pass@1, greedy, {quantization or 'float32'}: {right} of {count}")
    return found[None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*")
    parser.add_argument("--text", type=Path, default=ROOT / "README.md")
    parser.add_argument("--problems", type=int, default=100)
    options = parser.parse_args()
    names = list(options.models) or ["tiny-wc"]
    if not options.models:
        try:
            names.append(str(models.smollm2()))
        except pytest.skip.Exception as missing:
            print(missing)
    for name in names:
        exact = load_model(name)
        if name == "tiny-wc":
            windows = solution_windows(exact, pass_at_1(options.problems))
        else:
            windows = text_windows(exact, options.text.read_text(encoding="utf-8"))
        compare(name, exact, windows)


if __name__ == "__main__":
    main()
