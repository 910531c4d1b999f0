"""Writes a model as the checkpoints that the peers load: the policy, and a verifier of the same size.

``python checkpoint.py MODEL FOLDER`` makes ``FOLDER/policy`` (fp32 safetensors of every tensor, from a GGUF file or a
Hugging Face folder), and ``FOLDER/verifier`` and ``FOLDER/classifier``: the same body with a random head of two
outputs, for token and for sequence classification. Their scores mean nothing; their cost is a real one's. Runs in
wcse's environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from wcse.models.load import LoadedModel, load_model

CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def write(source: Path, folder: Path) -> None:
    """Make the checkpoints.

    Raises:
        WcseError: the model cannot be loaded.
        KeyError: transformers has no verifier class that we know for this kind of model.
    """
    model = load_model(source)
    body, head = _tensors(model)
    torch.manual_seed(0)
    score = {"score.weight": torch.randn(2, model.spec.dim) / model.spec.dim**0.5}
    heads = {
        "policy": ("ForCausalLM", head),
        "verifier": ("ForTokenClassification", score | {"score.bias": torch.zeros(2)}),
        "classifier": ("ForSequenceClassification", score),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(body, folder / "body.safetensors", metadata={"format": "pt"})
    for name, (kind, tensors) in heads.items():
        part = folder / name
        part.mkdir(exist_ok=True)
        model.tokenizer.save_pretrained(part)
        (part / "body.safetensors").unlink(missing_ok=True)
        (part / "body.safetensors").symlink_to(Path("..") / "body.safetensors")  # one copy serves all
        if tensors:
            save_file(tensors, part / "head.safetensors", metadata={"format": "pt"})
        files = dict.fromkeys(body, "body.safetensors") | dict.fromkeys(tensors, "head.safetensors")
        index = {"metadata": {"total_size": 0}, "weight_map": files}
        (part / "model.safetensors.index.json").write_text(json.dumps(index))
        _config(model, kind, part)
    (folder / "whole").touch()


def _tensors(model: LoadedModel) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Body and output matrix, under transformers' names, fp32."""
    body, head = {}, {}
    for name in model.weights.names():
        tensor = model.weights.tensor(name).float().contiguous()
        if name.startswith("lm_head."):
            if not model.spec.tied:
                head[name] = tensor
        elif name.startswith(("embed_tokens.", "layers.", "norm.")):
            body[f"model.{name}"] = tensor
    return body, head


def _config(model: LoadedModel, kind: str, folder: Path) -> None:
    """The config of one class of the model's family."""
    path = model.path
    config = (
        AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        if path.suffix == ".gguf"
        else AutoConfig.from_pretrained(path)
    )
    config.tie_word_embeddings = model.spec.tied
    config.dtype = "float32"
    config.architectures = [CLASSES[config.model_type] + kind]
    if kind != "ForCausalLM":
        config.num_labels = 2
        config.id2label, config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    config.save_pretrained(folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
