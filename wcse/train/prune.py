"""A small student for knowledge distillation: a model with some of its layers left out.

It still has the vocabulary and part of the circuits, and answers next to nothing until it is fine-tuned.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from wcse.models.load import find_model
from wcse.train.train import copy_tokenizer, load_student
from wcse.types import WcseError


def prune(source: str, keep: Sequence[int], out: Path) -> None:
    """Save the causal model ``source`` with the layers ``keep`` alone, in this order, as the folder ``out``.

    Raises:
        WcseError: there is no such model or layer, or its layers are not a list that can be shortened.
    """
    folder = find_model(source)
    model, _ = load_student(folder)
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None:
        raise WcseError(
            f"{source!r}: layers of {type(model).__name__} cannot be left out; give a decoder-only model"
        )
    if not keep or not all(0 <= index < len(layers) for index in keep):
        raise WcseError(f"layers={list(keep)}: {source} has the layers 0 .. {len(layers) - 1}")
    model.model.layers = type(layers)(layers[index] for index in keep)
    model.config.num_hidden_layers = len(keep)
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[index] for index in keep]
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    copy_tokenizer(folder, part)
    part.rename(out)
