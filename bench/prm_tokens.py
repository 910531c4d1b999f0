"""Tokens that a verifier reads in a real search, beside full re-scoring of every candidate in every round.

    python bench/prm_tokens.py POLICY --problems FILE.jsonl --limit 3 --n 64 --depth 10 --delimiter '\\n'

The verifier has the form of Qwen2.5-Math-PRM800K, the policy's tokenizer and random weights, which decide what is kept
and nothing else: a step costs its tokens. Floor: the prompt and each different step once, which is what ours reads.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from wcse.cli.arguments import unescaped
from wcse.engine.driver import Driver, Job
from wcse.engine.engine import Engine
from wcse.engine.params import SamplingParams, StepRule
from wcse.models.load import load_model
from wcse.problems import load_problems
from wcse.prompts import render_problem
from wcse.reward.load import load_prm
from wcse.reward.scorer import SeparatePRM
from wcse.search import STRATEGIES, SearchConfig

WIDTH = 64
CONTROL = ("<|im_start|>", "<|im_end|>", "<extra_0>")
"""Tokens of the family's layout that the policy's tokenizer may lack."""


def write_prm(tokenizer: Any, folder: Path) -> Path:
    """A random verifier of one layer whose family is ``qwen_prm800k``."""
    tokenizer = copy.deepcopy(tokenizer)
    missing = [token for token in CONTROL if token not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"additional_special_tokens": missing})
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    for layer, outputs in (("0", WIDTH), ("2", 2)):
        tensors[f"score.{layer}.weight"] = torch.randn(outputs, WIDTH) / WIDTH**0.5
        tensors[f"score.{layer}.bias"] = torch.zeros(outputs)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"wcse": {"family": "qwen_prm800k"}}))
    return folder


def count(prm: SeparatePRM, problem: str, texts: list[tuple[str, ...]]) -> dict[str, Any]:
    """Tokens of all candidates read whole, and of their different steps. ``texts``: the steps of each candidate."""
    prefix = len(prm.layout.prefix(problem))

    def length(steps: tuple[str, ...]) -> int:
        return len(prm.layout.read(problem, list(steps)).ids) if steps else prefix

    different = set(texts)
    added = [length(steps) - length(steps[:-1]) for steps in different]
    full = sum(map(length, texts))
    return {
        "prompt": prefix,
        "tokens_of_a_step": sum(added) / len(added),
        "candidates": dict(sorted(Counter(map(len, texts)).items())),
        "different_steps": len(different),
        "full_text": full,
        "read_once": prefix + sum(added),
        "times_fewer_tokens": full / (prefix + sum(added)),
    }


def searches(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """One search a problem: the counts of its first ``depth`` rounds, and what the ledger says was read to its end."""
    model = load_model(args.policy, quantization=args.quantization)
    cut = unescaped(args.delimiter)
    config = SearchConfig(n=args.n, num_iterations=args.depth, agg_strategy="last")
    for problem in load_problems(args.problems)[: args.limit]:
        prm = load_prm(str(write_prm(model.tokenizer, folder)), kv_memory=0.5)
        assert isinstance(prm, SeparatePRM)
        params = SamplingParams(max_tokens=args.max_tokens, temperature=args.temperature)
        driver = Driver(Engine(model, num_pages=8192), prm, params=params, rule=StepRule(cut))
        ids = render_problem(model.tokenizer, problem.prompt)
        run = partial(STRATEGIES[args.strategy].run, config=config)
        driver.submit(Job(problem.id, ids, problem.prompt, run, seed=args.seed))
        while driver.advance():
            pass
        (outcome,) = driver.take_finished()
        steps = {path: node.text.removesuffix(cut) for path, node in outcome.nodes.items()}
        texts = [
            tuple(steps[path[: i + 1]] for i in range(len(path)))
            for path, node in outcome.nodes.items()
            if node.score is not None and len(path) <= args.depth
        ]
        ledger = outcome.verifier
        yield {"problem": problem.id} | count(prm, problem.prompt, texts) | {"ledger": ledger.prm_computed}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy", help="folder, .gguf file or embedded name")
    parser.add_argument("--problems", required=True, help="as in wcse solve")
    parser.add_argument("--limit", type=int, default=3)
    parser.add_argument("--quantization", default=None)
    parser.add_argument("--strategy", default="beam_search")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--delimiter", default="\\n\\n")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        for row in searches(args, Path(folder)):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
