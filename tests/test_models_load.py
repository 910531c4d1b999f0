"""Loading: folders, shards, names; what belongs to a model; and one clear line for everything that is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification

from wcse import zoo
from wcse.models.hf import open_hf
from wcse.models.load import find_model, load_model
from wcse.types import WcseError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2", tmp_path_factory.mktemp("models") / "qwen2", tie_word_embeddings=False)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def reshard(folder: Path, names: Callable[[str], str]) -> None:
    """Split ``model.safetensors`` into shards, each tensor into the one that ``names`` gives."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {name: names(name) for name in tensors}
    for shard in set(index.values()):
        save_file({name: tensors[name] for name in tensors if index[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_a_folder(folder: Path) -> None:
    model = load_model(str(folder))
    assert (model.name, model.path, model.context, model.spec.arch) == ("copy", folder, 512, "qwen2")
    assert model.architecture == "Qwen2ForCausalLM"
    assert model.tokenizer.decode(model.tokenizer.encode("Anna has")) == "Anna has"
    assert model.extras == {}
    assert model.extra_tensors() == {}
    tensors = load_file(folder / "model.safetensors")
    torch.testing.assert_close(model.output_rows([5, 2]), tensors["lm_head.weight"][[5, 2]])


def test_shards_hold_the_same_tensors(original: Path, folder: Path) -> None:
    reshard(folder, lambda name: f"model-{'1' if 'layers.1' in name else '2'}-of-2.safetensors")
    whole, sharded = open_hf(original), open_hf(folder)
    assert whole.names() == sharded.names()
    assert all(torch.equal(whole.tensor(name), sharded.tensor(name)) for name in whole.names())
    load_model(folder)


@pytest.mark.parametrize("prefix", ["", "model.", "model.language_model.", "language_model.model."])
def test_the_backbone_is_found_under_any_prefix(original: Path, folder: Path, prefix: str) -> None:
    tensors = load_file(original / "model.safetensors")
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    assert open_hf(folder).names() == open_hf(original).names()


def test_end_tokens_of_every_file_count(folder: Path) -> None:
    end = load_model(folder).tokenizer.convert_tokens_to_ids("<|end|>")
    edit(folder / "config.json", eos_token_id=7)
    edit(folder / "generation_config.json", eos_token_id=[8, 9])
    assert load_model(folder).eos_ids == {end, 7, 8, 9}
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=None)
    assert load_model(folder).eos_ids == {end}


def test_a_token_classifier_gives_its_head(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "prm")
    classifier = AutoModelForTokenClassification.from_pretrained(original, num_labels=2)
    classifier.save_pretrained(tmp_path / "prm")
    edit(tmp_path / "prm" / "config.json", wcse={"separator": "\n\n"})
    model = load_model(tmp_path / "prm", lm_head=False)
    assert model.architecture == "Qwen2ForTokenClassification"
    assert model.extras == {"separator": "\n\n"}
    head = model.extra_tensors()
    assert {name: tuple(tensor.shape) for name, tensor in head.items()} == {
        "score.weight": (2, 64),
        "score.bias": (2,),
    }
    assert model.output_rows([0]) is None
    with pytest.raises(WcseError, match=r"tensor lm_head\.weight is missing"):
        load_model(tmp_path / "prm")


def test_embedded_names_lead_to_the_zoo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "path", lambda name: {"tiny-wc": folder}[name])
    assert find_model("tiny-wc") == folder
    assert load_model("tiny-wc").name == "tiny-wc"


def test_hub_ids_are_downloaded_without_code_or_pickles(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert load_model("org/model").name == "org/model"
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in asked["org/model"])


def test_without_the_hub_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, **_: object) -> str:
        raise LocalEntryNotFoundError("no network\nlong story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(
        WcseError, match=r"'org/model': no such folder.*\(no network\); give the path of a local"
    ):
        load_model("org/model")


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "nothing.gguf", "~/nothing"])
def test_paths_that_do_not_exist(name: str) -> None:
    with pytest.raises(WcseError, match="no such file or folder"):
        find_model(name)


def test_unknown_names_list_what_is_embedded() -> None:
    with pytest.raises(WcseError, match=r"model 'tiny-xx': no such folder or \.gguf file, and .*tiny-wc"):
        load_model("tiny-xx")


def test_a_file_of_another_kind(folder: Path) -> None:
    with pytest.raises(WcseError, match=r"config\.json' is neither a folder nor a \.gguf file"):
        load_model(folder / "config.json")
    with pytest.raises(WcseError, match="dtype='bfloat16' is not supported on the CPU; use 'float32'"):
        load_model(folder, dtype="bfloat16")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without(path: Path, tensor: str) -> None:
    save_file({name: value for name, value in load_file(path).items() if name != tensor}, path)


def with_tensor(path: Path, name: str, tensor: torch.Tensor) -> None:
    save_file(load_file(path) | {name: tensor}, path)


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.layers.1.input_layernorm.weight"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: no such file"),
    "config is not JSON": (
        lambda f: (f / "config.json").write_text("{"),
        r"config\.json: cannot be read as JSON",
    ),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object, not list"),
    "unknown architecture": (
        lambda f: edit(f / "config.json", model_type="mamba"),
        r"copy/config\.json: model_type 'mamba' is not supported; known: gemma2",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), rf"neither {WEIGHTS} nor {INDEX}; give a folder with"),
    "pickled weights": (
        lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
        "convert the .bin/.pt weights with safetensors",
    ),
    "truncated weights": (lambda f: truncate(f / WEIGHTS), rf"{WEIGHTS}: not a whole safetensors file"),
    "weights are text": (lambda f: (f / WEIGHTS).write_text("not weights"), "not a whole safetensors file"),
    "missing tensor": (
        lambda f: without(f / WEIGHTS, NORM),
        r"tensor layers\.1\.input_layernorm\.weight is missing",
    ),
    "no embedding": (
        lambda f: without(f / WEIGHTS, "model.embed_tokens.weight"),
        "no tensors named ...embed_tok",
    ),
    "wrong shape": (
        lambda f: with_tensor(f / WEIGHTS, NORM, torch.zeros(3)),
        r"layers\.1\.input_layernorm\.weight has shape \[3\], the config asks for \[64\]",
    ),
    "integer weights": (
        lambda f: with_tensor(f / WEIGHTS, NORM, torch.zeros(64, dtype=torch.int8)),
        r"is torch\.int8; only float weights can be read",
    ),
    "shard outside": (lambda f: reshard_outside(f), r"shard '\.\./x\.safetensors' is not a plain file name"),
    "shard missing": (lambda f: shard_missing(f), r"b\.safetensors: this shard of the index is missing"),
    "empty index": (
        lambda f: ((f / WEIGHTS).unlink(), (f / INDEX).write_text("{}")),
        "weight_map is missing or empty",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        r"no tokenizer \(none of tokenizer\.json, tokenizer\.model, vocab\.json\)",
    ),
    "corrupt tokenizer": (
        lambda f: (f / "tokenizer.json").write_text('{"model": 1}'),
        "the tokenizer cannot be loaded",
    ),
    "tokenizer of another model": (
        lambda f: edit(f / "config.json", vocab_size=100),
        "the tokenizer has 337 tokens, the model 100: not of one model",
    ),
    "strange end token": (
        lambda f: edit(f / "generation_config.json", eos_token_id="</s>"),
        "eos_token_id must be integers, not ",
    ),
    "only a GGUF file": (
        lambda f: ((f / "config.json").unlink(), (f / "a.gguf").touch()),
        r"give the GGUF file itself, such as .*a\.gguf",
    ),
}


def reshard_outside(folder: Path) -> None:
    reshard(folder, lambda name: "x.safetensors")
    edit(folder / INDEX, weight_map={"model.norm.weight": "../x.safetensors"})


def shard_missing(folder: Path) -> None:
    reshard(folder, lambda name: "b.safetensors" if "norm" in name else "a.safetensors")
    (folder / "b.safetensors").unlink()


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(folder: Path, damage: str) -> None:
    apply, message = DAMAGE[damage]
    apply(folder)
    with pytest.raises(WcseError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert "copy" in str(caught.value)
