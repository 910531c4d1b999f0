"""Whole decode steps and verifier rounds on random weights of real shapes, beside other ways to do the same.

The time of a step does not depend on what the weights are. Each lever is a side of its own: rounds without the host,
attention over the tree, scores of new tokens only. Parts of ``bench_gpu.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_timing import Suite
from gpu_trees import Grown, grow
from roofline import MACHINES, attention, decode_step, list_of
from roofline import SHAPES as MODEL_SHAPES

from wcse import _core
from wcse.engine.device_loop import MACHINES as MACHINE_COUNT
from wcse.engine.device_loop import DeviceLoop, RoundRows
from wcse.engine.spans import opened_pages
from wcse.models.decoder import Batch, Decoder
from wcse.models.spec import spec_from_hf
from wcse.models.weights import Weights

TOKENS = 8  # of a round
READ = 16  # sequences that full re-scoring reads at a time


class RandomWeights(Weights):
    """Tensors of any name and shape, made on the device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__("random weights", {})
        self.device = device

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        kind = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        if len(shape) == 1:
            return torch.ones(shape, device=self.device, dtype=kind)
        return torch.empty(shape, device=self.device, dtype=kind).normal_(0, 0.02)


def config(name: str, *, layers: int | None = None) -> dict[str, Any]:
    """A Llama of the shape ``roofline.SHAPES[name]``; "dry" is a toy."""
    shape = MODEL_SHAPES.get(name)
    sizes = (2, 4, 2, 16, 32, 64, 256)
    if shape is not None:
        sizes = (
            shape.layers,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            shape.hidden,
            shape.inner,
            shape.vocab,
        )
    names = (
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
    )
    found = dict(zip(names, sizes, strict=True))
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        **found,
    }


def decoder_of(suite: Suite, name: str, **options: Any) -> Decoder:
    spec = spec_from_hf(config("dry" if suite.dry else name))
    weights = RandomWeights(suite.device)
    dtype = torch.float32 if suite.dry else torch.bfloat16
    return Decoder(spec, weights, backend="triton", device=suite.device, dtype=dtype, **options)


def decode(suite: Suite) -> None:
    """A decode step of all leaves: what the device loop takes a token, and the same engine on single sequences."""
    cases = (
        [("1B", "beam", 1)]
        if suite.dry
        else [("1B", "beam", p) for p in (1, 4, 16)] + [("1B", "best-of-n", 4)]
    )
    if not suite.dry and not suite.quick:
        cases += [("8B", "beam", 4)]
    decoders: dict[str, Decoder] = {}
    for model, kind, problems in cases:
        if suite.late(f"decode, {model} {kind} {64 * problems} leaves"):
            continue
        if model not in decoders:
            decoders.clear()
            decoders[model] = decoder_of(suite, model)
        leaves, depth, prompt = (4, 1, 20) if suite.dry else (64, 10, 512)
        grown = grow(kind, leaves=leaves, depth=depth, prompt=prompt, trees=problems, spare=leaves * problems)
        _decode_case(suite, decoders[model], model, kind, grown)


def _decode_case(suite: Suite, decoder: Decoder, model: str, kind: str, grown: Grown) -> None:
    rows, machine, shape = grown.plan.n_rows, MACHINES["h200"], MODEL_SHAPES[model]
    pool = decoder.pool(grown.pages)
    count = 2 if suite.dry else TOKENS
    ahead = opened_pages(np.asarray(grown.tree.extend_ahead(grown.nodes, count - 1)).reshape(rows, count - 1))
    order = np.argsort(np.asarray(grown.plan.order))  # from rows to segments
    ints = lambda x: np.full(rows, x, np.int32)  # noqa: E731
    floats = lambda x: np.full(rows, x, np.float32)  # noqa: E731
    given = RoundRows(
        tokens=np.arange(rows, dtype=np.int64) % decoder.spec.vocab_size,
        slots=np.asarray([slots[-1] for slots in grown.slots], np.int32),
        counters=ints(0),
        left=ints(count),
        keys=np.arange(rows, dtype=np.int64),
        temperature=floats(0.8),
        top_k=ints(0),
        top_p=floats(1.0),
        min_p=floats(0.0),
        machines=np.zeros((rows, MACHINE_COUNT), np.int32),
    )
    table = torch.zeros((1, decoder.spec.vocab_size), dtype=torch.int16, device=suite.device)
    layer = attention(machine, shape, list_of(machine, shape, grown.plan)).seconds
    predicted = decode_step(machine, shape, layer, rows).total
    for side, tile_rows in (("tree", None), ("per sequence", 1)):
        loop = DeviceLoop(decoder, pool, tokens=count, tile_rows=tile_rows)

        def run(loop: DeviceLoop = loop) -> Any:
            return loop.run(grown.plan, given.take(order), ahead[order], table, count=count)

        run()
        row = suite.time("decode", f"{model} {kind} {rows} leaves", f"{side}, {count} tokens a round", run)
        row.predicted_ms = predicted * count if tile_rows is None and not suite.dry else None
        if row.ms:
            row.note = f"{rows * count / row.ms * 1e3:,.0f} tokens/s"


def generate(suite: Suite) -> None:
    """transformers' own generation, the prompt's keys and values computed once and repeated."""
    try:
        from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        return suite.skip("transformers generate", str(error))
    about = config("dry" if suite.dry else "1B")
    prompt, rows, tokens = (8, 2, 2) if suite.dry else (512, 256, 32)
    model = LlamaForCausalLM(LlamaConfig(**about)).to(
        suite.device, torch.float32 if suite.dry else torch.bfloat16
    )
    ids = torch.arange(prompt, device=suite.device)[None] % about["vocab_size"]

    def run() -> Any:
        cache = DynamicCache()
        model(ids[:, :-1], past_key_values=cache)
        cache.batch_repeat_interleave(rows)
        return model.generate(
            ids.repeat(rows, 1),
            past_key_values=cache,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=True,
            pad_token_id=0,
        )

    run()
    row = suite.time("generate", f"1B best-of-n {rows} leaves, {tokens} tokens", "transformers", run)
    if row.ms:
        row.note = f"{rows * tokens / row.ms * 1e3:,.0f} tokens/s, prompt included"


def prm(suite: Suite) -> None:
    """A verifier's round on 64 beams: new tokens over the tree, or every conversation from its first token."""
    names = ["1B"] if suite.dry or suite.quick else ["1B", "8B"]
    leaves, depth, prompt = (4, 1, 20) if suite.dry else (64, 10, 512)
    for name in names:
        if suite.late(f"prm, {name}"):
            continue
        decoder = decoder_of(suite, name, lm_head=False)
        grown = grow("beam", leaves=leaves, depth=depth, prompt=prompt)
        new = 4 if suite.dry else 24  # the tips are what is new
        pool = decoder.pool(grown.pages)
        plan = _core.plan(grown.tree, grown.nodes, [new] * leaves)
        slots = np.concatenate([s[-new:] for s in grown.slots])
        batch = _batch(decoder, plan, slots, rows=leaves * new)
        run = lambda d=decoder, b=batch, p=pool: d.forward(d.place(b), p)  # noqa: E731
        suite.time("prm", f"{name} beam {leaves} rows", f"incremental, {new} tokens each", run)
        length = len(grown.slots[0])
        few = min(READ, leaves)
        pages = -(-length // 16) * few
        tree, whole = _core.KVTree(pages), decoder.pool(pages)
        nodes = [tree.fork(0) for _ in range(few)]
        chains = np.concatenate([np.asarray(tree.extend(node, range(length))) for node in nodes])
        full = _batch(decoder, _core.plan(tree, nodes, [length] * few), chains, rows=few * length)

        def reread(d: Decoder = decoder, b: Batch = full, p: Any = whole, times: int = leaves // few) -> None:
            for _ in range(times):
                d.forward(d.place(b), p)

        suite.time("prm", f"{name} beam {leaves} rows", f"full text, {length} tokens each", reread)
        del decoder, pool, whole


def _batch(decoder: Decoder, plan: _core.Plan, slots: np.ndarray, *, rows: int) -> Batch:
    """New tokens of segments in order; their ids do not matter."""
    return Batch(
        torch.arange(rows) % decoder.spec.vocab_size,
        torch.from_numpy(np.asarray(plan.positions)),
        torch.from_numpy(slots.astype(np.int32)),
        plan,
        torch.from_numpy(np.asarray(plan.row_start).astype(np.int64)),
    )


PARTS: dict[str, Callable[[Suite], None]] = {"decode": decode, "generate": generate, "prm": prm}
