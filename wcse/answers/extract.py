"""The final answer in a solution's text: the last box, else the last line that announces an answer.

There is no fallback to "the last number": unfinished or rambling text must not vote.
"""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SIMPLE_BOX = re.compile(r"\\boxed\s+([^\s{}$]+)")
_HASHES = re.compile(r"^\s*####\s*(.+)$")
_ANNOUNCED = re.compile(r"\banswer\b(?:\s+is\b\s*[:=]?|\s*[:=])\s*(.+)$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.\s")


def extract_answer(text: str) -> str | None:
    r"""The answer that a finished solution states, None if it states none.

    The content of the last balanced ``\boxed{...}``; without a box, the last line of the form ``#### X``,
    ``The answer is X`` or ``Answer: X``. An empty box or line is no answer. Only ever ask this about text that
    ended by itself.
    """
    box = _last_box(text)
    if box is None:
        box = next((_strip(m[1]) for m in reversed(list(_SIMPLE_BOX.finditer(text)))), None)
    answer = box if box is not None else _last_line(text)
    return answer or None


def _last_box(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}`` whose braces balance."""
    for match in reversed(list(_BOX.finditer(text))):
        end = _closing_brace(text, match.end())
        if end is not None:
            return text[match.end() : end].strip()
    return None


def _closing_brace(text: str, start: int) -> int | None:
    r"""Index of the brace that closes the one before ``start``; ``\{`` and ``\}`` are text, not braces."""
    depth, index = 1, start
    while index < len(text):
        if text[index] == "\\":
            index += 1
        elif text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
        index += 1
    return None


def _last_line(text: str) -> str | None:
    for line in reversed(text.splitlines()):
        match = _HASHES.search(line) or _ANNOUNCED.search(line.replace("**", ""))
        if match:
            return _strip(match[1])
    return None


def _strip(answer: str) -> str:
    """Without the rest of the sentence, markdown emphasis and a full stop."""
    answer = _SENTENCE_END.split(answer.strip(), maxsplit=1)[0]
    return answer.strip().strip("*").strip().removesuffix(".").strip()
