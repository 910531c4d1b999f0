"""Few-shot examples: solved problems that are shown to a model before the one that it is to solve.

The sets that come with wcse are files beside this one, ``few_shot/NAME.jsonl``; any JSONL file with ``problem`` and
``solution`` will do. Knows no tokenizer.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from wcse.names import suggest
from wcse.types import WcseError

Shot = tuple[str, str]
"""A problem and its worked solution."""

FOLDER = Path(__file__).parent / "few_shot"


def shot_sets() -> tuple[str, ...]:
    """Names of the sets that come with wcse."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.jsonl")))


def shots_path(spec: str) -> Path:
    """The file of a set's name, or of a path.

    Raises:
        WcseError: it is neither.
    """
    path = FOLDER / f"{spec}.jsonl" if spec in shot_sets() else Path(spec)
    if not path.is_file():
        known = shot_sets()
        raise WcseError(
            f"few_shot={spec!r}: neither a set nor a file{suggest(spec, known)}; sets: {', '.join(known)}"
        )
    return path


@lru_cache(maxsize=8)
def load_shots(spec: str, limit: int | None = None) -> tuple[Shot, ...]:
    """The examples that ``spec`` names, in their order, at most ``limit``.

    Raises:
        WcseError: the file is missing, or a line is not understood; the message names the line.
    """
    path = shots_path(spec)
    shots: list[Shot] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WcseError(f"few_shot={spec!r}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            shots.append(_shot(line, f"few_shot={spec!r} line {number}"))
    if not shots:
        raise WcseError(f"few_shot={spec!r}: no examples in it")
    return tuple(shots[:limit])


def _shot(line: str, where: str) -> Shot:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise WcseError(f"{where}: not valid JSON: {error}") from error
    pair = (row.get("problem"), row.get("solution")) if isinstance(row, dict) else (None, None)
    if not all(isinstance(text, str) and text.strip() for text in pair):
        raise WcseError(f"{where}: needs problem and solution, both text")
    return str(pair[0]), str(pair[1])
