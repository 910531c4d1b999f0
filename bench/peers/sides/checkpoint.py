"""Writes a model as the checkpoints that the peers load: the policy, and a verifier of the same size.

``python checkpoint.py MODEL FOLDER`` makes ``FOLDER/policy`` (fp32 safetensors of every tensor, from a GGUF file or a
Hugging Face folder) and ``FOLDER/verifier``: the same body with a random head of two outputs for token
classification. Its scores mean nothing; its cost is a real one's. Runs in wcse's environment.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from wcse.models.load import LoadedModel, load_model

CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def write(source: Path, folder: Path) -> None:
    """Make both checkpoints.

    Raises:
        WcseError: the model cannot be loaded.
        KeyError: transformers has no verifier class that we know for this kind of model.
    """
    model = load_model(source)
    policy, verifier = folder / "policy", folder / "verifier"
    for part in (policy, verifier):
        part.mkdir(parents=True, exist_ok=True)
        model.tokenizer.save_pretrained(part)
    body, head = _tensors(model)
    save_file(body, verifier / "body.safetensors", metadata={"format": "pt"})
    if head:
        save_file(head, policy / "head.safetensors", metadata={"format": "pt"})
    _link(verifier / "body.safetensors", policy / "body.safetensors")
    torch.manual_seed(0)
    score = {
        "score.weight": torch.randn(2, model.spec.dim) / model.spec.dim**0.5,
        "score.bias": torch.zeros(2),
    }
    save_file(score, verifier / "score.safetensors", metadata={"format": "pt"})
    for part, extra in ((policy, head), (verifier, score)):
        name = "head.safetensors" if part is policy else "score.safetensors"
        files = dict.fromkeys(body, "body.safetensors") | dict.fromkeys(extra, name)
        index = {"metadata": {"total_size": 0}, "weight_map": files}
        (part / "model.safetensors.index.json").write_text(json.dumps(index))
    _configs(source, model, policy, verifier)


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


def _configs(source: Path, model: LoadedModel, policy: Path, verifier: Path) -> None:
    path = model.path
    config = (
        AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        if path.suffix == ".gguf"
        else AutoConfig.from_pretrained(path)
    )
    stem = CLASSES[config.model_type]
    config.tie_word_embeddings = model.spec.tied
    config.dtype = "float32"
    config.architectures = [f"{stem}ForCausalLM"]
    config.save_pretrained(policy)
    config.architectures = [f"{stem}ForTokenClassification"]
    config.num_labels = 2
    config.save_pretrained(verifier)


def _link(source: Path, target: Path) -> None:
    """One copy on the disk serves both."""
    target.unlink(missing_ok=True)
    target.symlink_to(os.path.relpath(source, target.parent))


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
