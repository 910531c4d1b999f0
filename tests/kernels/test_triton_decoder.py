"""The decoder and the engine on Triton kernels: logits and tokens of the native ones.

Without a GPU the kernels are interpreted and the rest is torch on the CPU, so all that is device-independent runs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
import torch

from wcse import _core
from wcse.engine.graphs import StepGraphs
from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams
from wcse.kernels import ops
from wcse.models.decoder import Batch, Decoder
from wcse.models.hf import open_hf, read_json
from wcse.models.load import load_model
from wcse.models.spec import spec_from_hf
from wcse.types import WcseError

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def decoders(folder: Path) -> tuple[Decoder, Decoder]:
    spec = spec_from_hf(read_json(folder / "config.json"))
    return (
        Decoder(spec, open_hf(folder)),
        Decoder(spec, open_hf(folder), backend="triton", device=DEVICE),
    )


def logits(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    """Of a prompt in two pieces, the second below the first."""
    tree, pool = _core.KVTree(32), decoder.pool(32)
    found, node = [], 0
    for part in (tokens[:32], tokens[32:]):
        node = tree.fork(node)
        slots = tree.extend(node, part)
        plan = _core.plan(tree, [node], [len(part)])
        batch = Batch(
            torch.tensor(part),
            torch.from_numpy(plan.positions),
            torch.from_numpy(slots),
            plan,
            torch.arange(len(part)),
        )
        found.append(decoder.logits(decoder.forward(decoder.place(batch), pool)))
        tree.settle()
        tree.seal(node)
    return torch.cat(found).cpu()


@pytest.mark.parametrize("variant", ["llama-biased", "mistral", "qwen3", "gemma2"])
def test_logits_are_those_of_the_native_kernels(tmp_path: Path, variant: str) -> None:
    folder = tiny_models.build(variant, tmp_path, num_hidden_layers=2)
    tokens = torch.randint(0, 384, (46,), generator=torch.Generator().manual_seed(3)).tolist()
    native, ours = (logits(decoder, tokens) for decoder in decoders(folder))
    assert float((ours - native).abs().max() / native.abs().max()) < 1e-4


def test_generation_gives_the_tokens_of_the_cpu(tmp_path: Path) -> None:
    """The same engine, greedy and drawn, with rows that share a prompt."""
    folder = tiny_models.build("qwen2", tmp_path, num_hidden_layers=2)
    model = load_model(folder)
    ours = replace(model, decoder=decoders(folder)[1])
    for params in (
        SamplingParams(temperature=0.0, max_tokens=6),
        SamplingParams(n=3, temperature=0.9, top_p=0.9, max_tokens=5),
    ):
        found = [
            [
                c.token_ids
                for r in llm.generate(["12 + 7 =", "Anna"], params, use_tqdm=False)
                for c in r.outputs
            ]
            for llm in (LLM(model, kv_memory=0.01), LLM(ours, kv_memory=0.01))
        ]
        assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # rows of padding see nothing: 0 / 0
def test_a_padded_step_gives_what_the_plain_one_gives(tmp_path: Path) -> None:
    """Leaves below one prompt, three steps: the second fills the memory of the first."""
    _, decoder = decoders(tiny_models.build("gemma2", tmp_path, num_hidden_layers=2))
    tree, pool, other = _core.KVTree(64), decoder.pool(64), decoder.pool(64)
    graphs = StepGraphs(decoder, pool)
    prompt = tree.fork(0)
    slots = tree.extend(prompt, list(range(20)))
    plan = _core.plan(tree, [prompt], [20])
    positions = torch.from_numpy(plan.positions)
    first = Batch(torch.arange(20), positions, torch.from_numpy(slots), plan, torch.tensor([19]))
    for each in (pool, other):
        decoder.forward(decoder.place(first), each)
    tree.settle()
    tree.seal(prompt)
    leaves = [tree.fork(prompt) for _ in range(6)]
    for step, count in enumerate((6, 6, 4)):
        nodes = leaves[:count]
        slots = tree.extend_rows(nodes, [7 + step] * count)
        plan = _core.plan(tree, nodes, [1] * count)
        batch = Batch(
            torch.arange(count) + 50 * step,
            torch.from_numpy(plan.positions),
            torch.from_numpy(slots)[torch.from_numpy(plan.order).long()],
            plan,
            torch.tensor([3, 0]),
        )
        got = graphs.forward(batch)
        torch.testing.assert_close(got, decoder.forward(decoder.place(batch), other), rtol=1e-4, atol=1e-5)
        tree.settle()
        assert len(graphs._slots) == 1 or step == 2
    assert graphs.captures == (len(graphs._slots) if DEVICE == "cuda" else 0)
    for ours, plain in ((pool.k, other.k), (pool.v, other.v)):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.build("llama", tmp_path)
    with pytest.raises(WcseError, match="device='mps' is not supported; use 'cpu' or 'cuda'"):
        load_model(folder, device="mps")
    if DEVICE == "cpu":
        with pytest.raises(WcseError, match="finds no CUDA device; use 'cpu'"):
            load_model(folder, device="cuda")
    with pytest.raises(WcseError, match="the weight is a DenseLinear"):
        ops.linear(torch.zeros(1, 4), ops.DenseLinear(torch.zeros(3, 4)), backend="cpp")
