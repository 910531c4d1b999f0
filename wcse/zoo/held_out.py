"""Writes problems of the gsm_symbolic templates that no embedded model was trained on, for ``wcse audit --held-out``.

``python -m wcse.zoo.held_out --count 100 --out FILE.jsonl``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .corpus import HELD_OUT_TEMPLATES, template_problems


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    problems = template_problems(HELD_OUT_TEMPLATES, args.count)
    rows = (json.dumps({"problem": question, "answer": answer}) + "\n" for question, answer in problems)
    args.out.write_text("".join(rows), encoding="utf-8")
    print(f"{args.out}: {len(problems)} problems of {len(HELD_OUT_TEMPLATES)} templates")


if __name__ == "__main__":
    main()
