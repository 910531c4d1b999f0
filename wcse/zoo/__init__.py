"""Small models that ship with wcse, and the scripts that made them.

``path("tiny-wc")`` is an ordinary Hugging Face folder: load it with ``transformers`` or hand it to wcse as a
policy. Nothing heavy is imported here.
"""

from __future__ import annotations

from pathlib import Path

MODELS = ("tiny-wc", "tiny-se", "tiny-wc-prm")


def path(name: str) -> Path:
    """The folder of an embedded model."""
    folder = Path(__file__).parent / name
    if name not in MODELS:
        raise ValueError(f"no embedded model {name!r}; there are: {', '.join(MODELS)}")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"the embedded model {name!r} is not in this installation (looked in {folder})"
        )
    return folder
