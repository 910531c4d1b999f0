"""A student for knowledge distillation: an embedded model with some of its layers left out.

``python -m wcse.zoo.prune tiny-wc --keep 0,2,4 --out DIR`` writes an ordinary Hugging Face folder. It still has the
vocabulary and half of the circuits, and answers next to nothing until it is fine-tuned.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wcse.models.load import find_model


def prune(source: str, keep: Sequence[int], out: Path) -> Any:
    """The causal model ``source`` with the layers ``keep`` alone, in this order, saved in ``out``.

    Raises:
        ValueError: a layer that is not there.
        WcseError: there is no such model.
    """
    from transformers import AutoModelForCausalLM

    folder = find_model(source)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layers = model.model.layers
    if not keep or not all(0 <= index < len(layers) for index in keep):
        raise ValueError(f"keep={list(keep)}: {source} has the layers 0 .. {len(layers) - 1}")
    model.model.layers = torch.nn.ModuleList([layers[index] for index in keep])
    model.config.num_hidden_layers = len(keep)
    model.save_pretrained(out)
    for path in folder.iterdir():
        if path.name.startswith(("tokenizer", "chat_template", "special_tokens")):
            shutil.copyfile(path, out / path.name)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--keep", required=True, help="indices of layers, such as 0,2,4")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    model = prune(args.source, [int(index) for index in args.keep.split(",")], args.out)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
