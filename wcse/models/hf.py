"""Hugging Face folders: ``config.json`` and safetensors, whole or sharded.

Only ``safetensors`` and JSON are read: no pickle, no remote code. Tensors are read on demand from the mapped
file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from wcse.models.weights import Weights, canonical_names
from wcse.types import WcseError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        WcseError: no such file, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WcseError(f"{path}: no such file; a Hugging Face model folder must hold {path.name}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WcseError(f"{path}: cannot be read as JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise WcseError(f"{path}: must hold a JSON object, not {type(content).__name__}")
    return content


def open_hf(folder: Path) -> Weights:
    """The tensors of a Hugging Face folder.

    Raises:
        WcseError: no safetensors files, a corrupt or truncated one, or an index that names files elsewhere.
    """
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for file in _weight_files(folder):
        try:
            handle = safe_open(file, framework="pt")
            names = list(handle.keys())
        except (OSError, SafetensorError) as error:
            raise WcseError(f"{file}: not a whole safetensors file ({error}); download it again") from None
        readers |= {name: partial(handle.get_tensor, name) for name in names}
    renamed = canonical_names(list(readers), str(folder))
    return Weights(str(folder), {renamed[name]: reader for name, reader in readers.items()})


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        advice = (
            "convert the .bin/.pt weights with safetensors" if pickled else "give a folder with the weights"
        )
        raise WcseError(f"{folder}: neither {_SINGLE} nor {_INDEX}; {advice}")
    shards = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WcseError(f"{folder / _INDEX}: weight_map is missing or empty; download it again")
    files = []
    for name in sorted({str(shard) for shard in shards.values()}):
        # A downloaded index must not make us read files outside its folder.
        if name != Path(name).name or name in ("", ".", ".."):
            raise WcseError(f"{folder / _INDEX}: shard {name!r} is not a plain file name in this folder")
        if not (folder / name).is_file():
            raise WcseError(f"{folder / name}: this shard of the index is missing; download it again")
        files.append(folder / name)
    return files
