"""GGUF: files written as llama.cpp writes them give transformers' logits, the same tokens, and clear errors."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_gguf
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wcse import _core
from wcse.models.decoder import Batch, Decoder
from wcse.models.gguf import open_gguf, spec_from_gguf
from wcse.models.gguf_file import GgufFile
from wcse.models.gguf_tokenizer import gguf_eos_ids, gguf_tokenizer
from wcse.models.kv_pool import KVPool
from wcse.models.load import load_model
from wcse.types import WcseError

Kind = gguf.GGMLQuantizationType
# What a GGUF does not store, llama.cpp knows by heart: layer patterns and Gemma's query scale.
FIELDS: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3": {"query_pre_attn_scalar": 32, "sliding_window_pattern": 6, "num_hidden_layers": 7},
    "smollm3": {"no_rope_layer_interval": 4, "num_hidden_layers": 5},
    "mistral": {"sliding_window": None},
}
VARIANTS = [name for name in tiny_models.VARIANTS if name != "qwen2-window"]  # GGUF has no key for it


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """transformers' OpenMP regions stall for a second each on a machine with more work than cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.build("llama", tmp_path_factory.mktemp("llama"))
    path = folder / "llama.gguf"
    tiny_gguf.write(folder, path)
    return path


def logits(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    tree = _core.KVTree(32)
    node = tree.fork(0)
    slots = tree.extend(node, np.array(tokens, np.int32))
    plan = _core.plan(tree, np.array([node], np.int32), np.array([len(tokens)], np.int32))
    positions, rows = torch.tensor(plan.positions), torch.arange(len(tokens))
    batch = Batch(torch.tensor(tokens), positions, torch.tensor(slots), plan, rows)
    return decoder.logits(decoder.forward(batch, KVPool(decoder.spec, 32)))


def check_against_transformers(folder: Path, path: Path, held: dict[str, np.ndarray]) -> None:
    """Our logits from ``path`` against transformers' with the values that the file holds."""
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    reference.load_state_dict({name: torch.tensor(value) for name, value in held.items()}, strict=False)
    tokens = torch.randint(0, 384, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        want = reference(torch.tensor([tokens])).logits[0]
    got = logits(load_model(path).decoder, tokens)
    assert float((got - want).abs().max() / want.abs().max()) < 1e-4
    assert torch.equal(got.argmax(-1), want.argmax(-1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture(variant: str, tmp_path: Path) -> None:
    folder = tiny_models.build(variant, tmp_path / "hf", **FIELDS.get(variant, {}))
    held = tiny_gguf.write(folder, tmp_path / "model.gguf")
    check_against_transformers(folder, tmp_path / "model.gguf", held)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_every_format_that_gguf_can_write(kind: Kind, tmp_path: Path) -> None:
    folder = tiny_models.build("llama", tmp_path / "hf")
    held = tiny_gguf.write(folder, tmp_path / "model.gguf", kind)
    check_against_transformers(folder, tmp_path / "model.gguf", held)


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_XS])
def test_blocks_of_256_reach_the_dequantiser_whole(kind: Kind, tmp_path: Path) -> None:
    """gguf cannot write these: random blocks, so only the bytes' way through is checked here."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (6, 2 * size), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_tensor("before", np.zeros(3, np.float32))
    writer.add_tensor("matrix", raw, raw_dtype=kind)
    tiny_gguf._finish(writer)
    read = GgufFile(tmp_path / "k.gguf").tensor("matrix")
    assert read.shape == (6, 2 * block)
    np.testing.assert_array_equal(read.numpy(), gguf.dequantize(raw, kind))


@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_the_tokenizer_survives(variant: str, tmp_path: Path) -> None:
    folder = tiny_models.build(variant, tmp_path / "hf", **FIELDS.get(variant, {}))
    tiny_gguf.write(folder, tmp_path / "model.gguf")
    ours, theirs = load_model(tmp_path / "model.gguf"), AutoTokenizer.from_pretrained(folder)
    texts = [*tiny_models.CORPUS, "<|im_start|>user\nhi<step>  é à 42<|im_end|>", "", "   "]
    for text in texts:
        assert ours.tokenizer.encode(text) == theirs.encode(text)
        assert ours.tokenizer.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
    chat = [{"role": "user", "content": "2 + 2?"}]
    assert ours.tokenizer.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(
        chat, tokenize=False
    )
    assert ours.eos_ids == {0, theirs.convert_tokens_to_ids("<|im_end|>")}
    assert (ours.context, ours.name) == (512, "model.gguf")


SPLITS = {
    "gpt-2": ["x", " ", " ab", " ", " 123", "!?", "\n", "\n", "Don", "'t"],
    "smollm": ["x", " ", " ab", "  ", "1", "2", "3", "!?", "\n", "\n", "Don", "'t"],
    "llama-bpe": ["x", " ", " ab", " ", " ", "123", "!?\n\n", "Don", "'t"],
    "qwen2": ["x", " ", " ab", " ", " ", "1", "2", "3", "!?\n\n", "Don", "'t"],
    "tekken": ["x", " ", " ab", " ", " ", "1", "2", "3", "!?\n\n", "Don", "'t"],
}


@pytest.mark.parametrize("pre", SPLITS)
def test_pre_tokenizers_by_name(pre: str) -> None:
    metadata = byte_metadata() | {"tokenizer.ggml.pre": pre}
    backend = gguf_tokenizer(metadata, "f").backend_tokenizer
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("x  ab  123!?\n\nDon't")]
    assert [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece in pieces] == SPLITS[pre]


def byte_metadata() -> dict[str, Any]:
    tokens = [*sorted(tiny_models.byte_level().get_vocab())[:3], "<s>", "</s>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1, 1, 1, 3, 3],
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 4,
    }


def test_bos_is_added_where_the_file_or_its_family_says_so() -> None:
    metadata = byte_metadata()
    said = metadata | {"tokenizer.ggml.add_bos_token": True}
    llama3 = metadata | {"tokenizer.ggml.pre": "llama-bpe"}
    assert [gguf_tokenizer(m, "f").encode("<s>") for m in (metadata, said, llama3)] == [[3], [3, 3], [3, 3]]
    refused = llama3 | {"tokenizer.ggml.add_bos_token": False}
    assert gguf_tokenizer(refused, "f").encode("<s>") == [3]


def test_layer_patterns_may_be_listed(file: Path) -> None:
    opened = GgufFile(file)
    opened.metadata |= {key.replace("llama.", "gemma3."): value for key, value in opened.metadata.items()}
    listed = {
        "general.architecture": "gemma3",
        "gemma3.attention.sliding_window": 7,
        "gemma3.attention.sliding_window_pattern": [True, False, True],
    }
    opened.metadata |= listed
    assert [layer.window for layer in spec_from_gguf(opened).layers] == [7, 0, 7]


def test_ends_of_a_turn() -> None:
    metadata = byte_metadata() | {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 2}
    assert gguf_eos_ids(metadata) == {1, 2, 4}  # </s> by its name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer.ggml.tokens": None}, "f: holds no tokenizer"),
        ({"tokenizer.ggml.model": "rwkv"}, "f: tokenizer model 'rwkv' is not supported; known: gpt2, llama"),
        ({"tokenizer.ggml.pre": "viking"}, "f: pre-tokenizer 'viking' is not known"),
    ],
)
def test_unknown_tokenizers_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(WcseError, match=message):
        gguf_tokenizer(byte_metadata() | changed, "f")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "cannot be read"),
        (lambda data: b"PK\x03\x04" + data[4:], "does not start with 'GGUF'"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "version 1; 2 and 3 are known"),
        (lambda data: data[:200], "not a whole GGUF file"),
        (lambda data: data[:16] + struct.pack("<Q", 2**60) + data[24:], "not a whole GGUF file"),
        (lambda data: data[:24] + struct.pack("<Q", 2**40) + data[32:], "reaches beyond the end"),
        (lambda data: data[:-1000], r"cut off inside tensor .*; download it again"),
    ],
)
def test_damaged_files(file: Path, damage: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(damage(file.read_bytes()))
    with pytest.raises(WcseError, match=message) as caught:
        load_model(tmp_path / "bad.gguf")
    assert "bad.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_byte_of_the_header_can_crash_the_reader(file: Path, tmp_path: Path) -> None:
    """Any single wrong byte gives a model or a WcseError, nothing else."""
    data, path = file.read_bytes(), tmp_path / "bad.gguf"
    header = GgufFile(file).tensors["token_embd.weight"].offset
    for at in np.random.default_rng(0).integers(0, header, 300):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            opened = GgufFile(path)
            spec = spec_from_gguf(opened)
            open_gguf(opened, spec)
            gguf_tokenizer(opened.metadata, "f")
            gguf_eos_ids(opened.metadata)
        except WcseError:
            continue


def test_a_missing_tensor_and_an_unknown_type_are_named(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    (tmp_path / "missing.gguf").write_bytes(data.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(WcseError, match=r"missing\.gguf: tensor layers\.1\.mlp\.up_proj\.weight is missing"):
        load_model(tmp_path / "missing.gguf")
    at = data.index(b"blk.1.ffn_up.weight") + len(b"blk.1.ffn_up.weight") + 4 + 2 * 8
    for kind, message in ((200, "unknown quantisation type 200"), (Kind.I8, "quantised as I8, which cannot")):
        (tmp_path / "type.gguf").write_bytes(data[:at] + struct.pack("<I", kind) + data[at + 4 :])
        with pytest.raises(WcseError, match=message):
            load_model(tmp_path / "type.gguf")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "general.architecture",
            "mamba",
            "architecture 'mamba' is not supported; known: gemma2, gemma3, llama",
        ),
        ("llama.expert_count", 8, "mixture-of-experts models are not supported"),
        ("llama.block_count", 0, "num_hidden_layers must be a positive integer, not 0"),
        ("llama.rope.dimension_count", 16, "rotating only a part of each head is not supported"),
        ("llama.rope.scaling.type", "yarn", "rope scaling 'yarn' is not supported"),
    ],
)
def test_metadata_that_cannot_be_done(file: Path, key: str, value: Any, message: str) -> None:
    opened = GgufFile(file)
    opened.metadata[key] = value
    with pytest.raises(WcseError, match=message):
        spec_from_gguf(opened)
