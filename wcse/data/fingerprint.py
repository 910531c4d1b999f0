"""Fingerprints of a run's inputs, so that a resumed run notices a changed problem or model file.

Knows where models lie, nothing of what the files mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from wcse.models.load import find_model
from wcse.recipe import OWN, SHARED
from wcse.types import Problem

_EDGE = 1 << 20
"""Bytes read at each end of a file: training touches every tensor, so any two checkpoints differ here."""


def fingerprint_problems(problems: Iterable[Problem]) -> str:
    """Hex SHA-256 over ids, prompts and gold answers, in order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.prompt, problem.answer]).encode() + b"\n")
    return digest.hexdigest()


def fingerprint_models(names: Mapping[str, str | None]) -> dict[str, str]:
    """Fingerprints of models on this machine, under the same keys ("policy", "prm").

    Raises:
        WcseError: one of them cannot be found.
    """
    return {
        field: fingerprint_path(find_model(name))
        for field, name in names.items()
        # A shared head lies in the policy's folder; a measure of the policy needs no file.
        if name is not None and name != SHARED and not name.startswith(OWN)
    }


def fingerprint_path(path: Path) -> str:
    """Hex SHA-256 over the names, sizes and both ends of a file or of all files below a directory.

    Small files count whole. Of large ones only the ends do, so a model of 100 GB costs milliseconds.

    Raises:
        OSError: it does not exist or cannot be read.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(
            json.dumps([str(file.relative_to(path)) if file != path else "", size]).encode() + b"\n"
        )
        with file.open("rb") as data:
            digest.update(data.read(_EDGE))
            if size > _EDGE:
                data.seek(max(_EDGE, size - _EDGE))
                digest.update(data.read(_EDGE))
    return digest.hexdigest()
