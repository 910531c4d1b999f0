"""Whole trees of every strategy against stored ones. ``python test_search_golden.py`` writes them anew."""

import json
from pathlib import Path

import pytest
from fakes import FakePolicy, make_root, run

from wcse.search import STRATEGIES, SearchConfig

GOLDEN = Path(__file__).parent / "golden" / "search.json"
CASES = [(name, n) for name in STRATEGIES if name != "auto" for n in (1, 4, 16)]


def dotted(path: tuple[int, ...]) -> str:
    return ".".join(map(str, path))


def grow(name: str, n: int) -> dict[str, object]:
    """Every step in path order, as 'path finish word score', and the paths returned."""
    policy = FakePolicy(seed=2024, problem="golden", eos=0.25, cut=0.03)
    leaves = run(STRATEGIES[name].run(make_root(), SearchConfig(n=n, agg_strategy="min")), policy)
    steps = [
        f"{dotted(path)} {finish} {text.split()[1]} {'-' if score is None else f'{score:.6f}'}"
        for path, (finish, text, score) in sorted(policy.tree.items())
    ]
    return {"steps": steps, "returned": [dotted(leaf.path) for leaf in leaves]}


@pytest.mark.parametrize(("name", "n"), CASES)
def test_golden_tree(name, n):
    assert grow(name, n) == json.loads(GOLDEN.read_text())[f"{name} n={n}"]


def test_nothing_else_is_stored():
    assert set(json.loads(GOLDEN.read_text())) == {f"{name} n={n}" for name, n in CASES}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({f"{name} n={n}": grow(name, n) for name, n in CASES}, indent=1) + "\n")
