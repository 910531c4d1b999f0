"""Quantised models: GGUF codes kept in memory give the bits of the floats, and quantising a checkpoint is close."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gguf
import tiny_models
import torch

from wcse import LLM, SamplingParams, _core
from wcse.kernels import ops
from wcse.models.decoder import Batch, Decoder
from wcse.models.gguf_blocks import decode
from wcse.models.kv_pool import KVPool
from wcse.models.load import LoadedModel, load_model
from wcse.models.weights import Weights
from wcse.recipe import Recipe
from wcse.types import WcseError

Kind = gguf.GGMLQuantizationType
KEPT = {
    Kind.Q8_0: (8, 32),
    Kind.Q4_0: (4, 32),
    Kind.Q4_1: (4, 32),
    Kind.Q5_0: (8, 32),
    Kind.Q5_1: (8, 32),
    Kind.Q4_K: (4, 32),
    Kind.Q5_K: (8, 32),
    Kind.Q6_K: (8, 16),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2", tmp_path_factory.mktemp("qwen2") / "hf", tie_word_embeddings=False)


def hidden(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    tree = _core.KVTree(32)
    node = tree.fork(0)
    slots = tree.extend(node, np.array(tokens, np.int32))
    plan = _core.plan(tree, np.array([node], np.int32), np.array([len(tokens)], np.int32))
    rows = torch.arange(len(tokens))
    batch = Batch(torch.tensor(tokens), torch.tensor(plan.positions), torch.tensor(slots), plan, rows)
    return decoder.forward(batch, KVPool(decoder.spec, 32))


def logits(model: LoadedModel) -> torch.Tensor:
    tokens = torch.randint(0, 384, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    return model.decoder.logits(hidden(model.decoder, tokens))


@pytest.mark.parametrize("kind", KEPT)
def test_blocks_are_the_weights_that_gguf_gives(kind: Kind) -> None:
    _, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (6, 2, size), np.uint8)
    halves = {Kind.Q6_K: (208,)}.get(kind, (0,) if kind in (Kind.Q8_0, Kind.Q4_0, Kind.Q5_0) else (0, 2))
    for at in halves:  # random bytes would be NaN now and then
        raw[:, :, at : at + 2] = random.normal(size=(6, 2, 1)).astype(np.float16).view(np.uint8)
    raw = raw.reshape(6, -1)
    weight = decode(raw, kind.name, size)
    assert weight is not None and (weight.bits, weight.group) == KEPT[kind]
    want = torch.from_numpy(gguf.dequantize(raw, kind))
    assert torch.equal(weight.weight(), want)
    assert torch.equal(ops.pack_quantized(weight).weight(), want)


def test_other_formats_are_left_to_the_dequantiser() -> None:
    assert decode(np.zeros((1, 136), np.uint8), "IQ4_XS", 136) is None


@pytest.mark.parametrize("variant", ["llama", "llama-tied", "qwen2", "gemma2"])
@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1, Kind.Q5_0])
def test_a_gguf_file_gives_the_same_bits_quantised_or_not(variant: str, kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    fields = {"query_pre_attn_scalar": 32} if variant == "gemma2" else {}
    tiny_gguf.write(tiny_models.build(variant, tmp_path / "hf", **fields), path, kind)
    floats, codes = load_model(path), load_model(path, quantization="gguf")
    assert torch.equal(logits(codes), logits(floats))
    assert codes.decoder.weight_bytes < 0.45 * floats.decoder.weight_bytes
    ids = torch.tensor([0, 383, 7])
    assert torch.equal(codes.decoder.embed(ids), floats.decoder.embed(ids))


def test_floats_of_a_gguf_file_stay_floats(folder: Path, tmp_path: Path) -> None:
    tiny_gguf.write(folder, tmp_path / "f16.gguf", Kind.F16)
    kept = load_model(tmp_path / "f16.gguf", quantization="gguf")
    assert torch.equal(logits(kept), logits(load_model(tmp_path / "f16.gguf")))


@pytest.mark.parametrize(("quantization", "share"), [("int8", 0.3), ("int4", 0.27)])
def test_a_checkpoint_is_that_of_its_rounded_weights(folder: Path, quantization: str, share: float) -> None:
    exact, model = load_model(folder), load_model(folder, quantization=quantization)
    rounded = {}
    for name in exact.weights.names():
        tensor = exact.weights.tensor(name)
        if tensor.dim() == 2:
            vocabulary = name in ("embed_tokens.weight", "lm_head.weight")  # never of 4 bits
            tensor = ops.quantize(tensor, 8 if vocabulary or quantization == "int8" else 4).weight()
        rounded[name] = tensor
    same = replace(exact, decoder=Decoder(exact.spec, Weights.of(rounded)))
    assert torch.equal(logits(model), logits(same))
    assert model.decoder.quantization == quantization
    assert model.decoder.weight_bytes < share * exact.decoder.weight_bytes


@pytest.mark.parametrize(("quantization", "weights"), [("w8a8", "int8"), ("w4a8", "int4")])
def test_inputs_of_8_bits_are_close_to_floats(folder: Path, quantization: str, weights: str) -> None:
    model, floats = load_model(folder, quantization=quantization), load_model(folder, quantization=weights)
    assert model.decoder.weight_bytes == floats.decoder.weight_bytes
    error = (logits(model) - logits(floats)).norm() / logits(floats).norm()
    assert 0 < error < 0.08  # as much as that of 8-bit weights here


def test_a_gguf_file_with_inputs_of_8_bits(folder: Path, tmp_path: Path) -> None:
    tiny_gguf.write(folder, tmp_path / "q8.gguf", Kind.Q8_0)
    model, floats = (load_model(tmp_path / "q8.gguf", quantization=q) for q in ("gguf_a8", "gguf"))
    error = (logits(model) - logits(floats)).norm() / logits(floats).norm()
    assert 0 < error < 0.08  # as much as that of 8-bit weights here
    assert model.decoder.weight_bytes == floats.decoder.weight_bytes


@pytest.mark.parametrize("quantization", ["int8", "int4", "w8a8", "w4a8"])
def test_a_row_has_the_same_bits_in_any_batch(folder: Path, quantization: str) -> None:
    decoder = load_model(folder, quantization=quantization).decoder
    tokens = list(range(3, 80))
    whole = decoder.logits(hidden(decoder, tokens))
    for length in (1, 5, 20):
        assert torch.equal(decoder.logits(hidden(decoder, tokens[:length])), whole[:length])


def test_llm_takes_vllms_name(folder: Path) -> None:
    llm = LLM(folder, quantization="int8", kv_memory=0.05)
    (output,) = llm.generate("Anna has", SamplingParams(n=2, max_tokens=5), use_tqdm=False)
    assert len(output.outputs) == 2
    LLM(llm.model, quantization="int8", kv_memory=0.05)
    with pytest.raises(WcseError, match="quantization='int4': give it to load_model"):
        LLM(llm.model, quantization="int4")


def test_bad_options_are_refused(folder: Path) -> None:
    with pytest.raises(
        WcseError, match=r"quantization='int3' is unknown; use 'int8', .*, 'gguf_a8', 'fp8' or None"
    ):
        load_model(folder, quantization="int3")  # type: ignore[arg-type]
    with pytest.raises(
        WcseError, match=r"quantization='gguf': .* is not a \.gguf file; use 'int8' or 'int4'"
    ):
        load_model(folder, quantization="gguf")


def test_it_is_part_of_the_recipe() -> None:
    options = {"policy": "tiny-wc", "problems": "p.jsonl"}
    plain, packed = Recipe.parse(options), Recipe.parse(options | {"quantization": "int8"})
    assert packed.diff(plain) == ["quantization"] and packed.digest != plain.digest
    with pytest.raises(WcseError, match="quantization='fp4'"):
        Recipe.parse(options | {"quantization": "fp4"})
    with pytest.raises(WcseError, match="prm_quantization=int8 needs a verifier of its own; prm is shared"):
        Recipe.parse(options | {"prm": "shared", "prm_quantization": "int8"})
