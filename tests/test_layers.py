"""Imports point downwards only, the base stays light, and ``wcse --help`` answers at once."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import wcse
from wcse.search import STRATEGIES

ROOT = Path(wcse.__file__).parent
LAYERS = (
    (
        "types",
        "names",
        "tokens",
        "rng",
        "ledger",
        "votes",
        "metrics",
        "flops",
        "budget",
        "prompts",
        "shots",
        "progress",
        "profile",
        "answers",
        "search",
        "kernels",
    ),
    ("problems", "recipe", "models", "compat"),
    ("engine", "data", "report"),
    ("reward", "replay"),
    ("optimal",),
    ("solve", "replay_rows", "evaluate", "serve"),
    ("adapters",),
    ("synth",),
    ("train",),
    ("audit",),
    ("cli",),
)
FREE = {"zoo", "_core"}  # models and their training scripts use every layer; only path() is used from below
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "transformers", "pyarrow", "numpy", "pydantic"}


def test_imports_point_downwards() -> None:
    wrong = []
    for file in ROOT.rglob("*.py"):
        top = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if top in FREE or top == "__init__":
            continue
        for name in _imported(file):
            if name not in FREE and name != top and LEVEL[name] > LEVEL[top]:
                wrong.append(f"{file.relative_to(ROOT)} imports wcse.{name}")
    assert not wrong


def test_search_imports_no_engine() -> None:
    for file in (ROOT / "search").glob("*.py"):
        assert _imported(file) <= {"types", "names", "votes", "search"}, file


def test_strategies_are_short() -> None:
    for file in (ROOT / "search").glob("*.py"):
        if file.stem in STRATEGIES or file.stem in ("rollout", "compat", "auto"):
            assert _code_lines(file) <= 65, file


def _code_lines(file: Path) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    text = file.read_text(encoding="utf-8")
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.split("#")[0].strip()) and number not in prose for number, line in lines)


def _imported(file: Path) -> set[str]:
    """Names of the modules directly under wcse that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "wcse":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wcse."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("wcse.")}
    return found


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from wcse.cli import main; main([]); print(*sorted(sys.modules))"
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert time.perf_counter() - start < 60
    assert not HEAVY & set(out.stdout.split())


def test_the_name_kernels_is_not_taken() -> None:
    assert not (ROOT.parent / "kernels" / "__init__.py").exists()
    code = "import wcse.kernels.ops, sys; assert 'kernels' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
