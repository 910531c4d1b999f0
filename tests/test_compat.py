"""search-and-learn's recipes: translated, completed with its defaults, refused where they cannot be honoured."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from doc_examples import DOCS, examples

from wcse.cli import main
from wcse.compat import read_recipe
from wcse.recipe import Recipe
from wcse.types import WcseError

RECIPE = """
# refer to src/sal/config.py for more options
approach: beam_search
model_path: policies/small
prm_path: prms/small
n: 16
lookahead: 1
filter_duplicates: true
search_batch_size: 1
num_samples: 10
temperature: 0.7
output_dir: data/run
"""


def write(folder: Path, text: str) -> str:
    (folder / "recipe.yaml").write_text(text)
    return str(folder / "recipe.yaml")


def test_a_recipe_becomes_options(tmp_path: Path) -> None:
    options = read_recipe(write(tmp_path, RECIPE))
    assert options["strategies"] == ("beam_search(lookahead=1)",)
    recipe = Recipe.parse(options)
    assert (recipe.policy, recipe.prm, recipe.n, recipe.temperature) == (
        "policies/small",
        "prms/small",
        16,
        0.7,
    )
    assert recipe.problems == "HuggingFaceH4/MATH-500:split=test" and recipe.limit == 10
    assert (recipe.agg_strategy, recipe.max_tokens, recipe.seed, recipe.out) == ("last", 2048, 42, "data/run")


def test_exact_rules(tmp_path: Path) -> None:
    path = write(tmp_path, RECIPE)
    (strategy,) = Recipe.parse(read_recipe(path, exact=True)).strategies
    assert strategy == (
        "beam_search(lookahead=1,compat=search-and-learn,filter_duplicates=True,sort_completed=False)"
    )
    (strategy,) = read_recipe(write(tmp_path, "approach: dvts\n"), exact=True)["strategies"]
    assert strategy == "dvts(compat=search-and-learn)"
    assert read_recipe(write(tmp_path, "n: 8\n"), exact=True)["strategies"] == ("weighted_best_of_n",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("approach: beem_search", r"approach='beem_search' is unknown \(did you mean 'beam_search'\?\)"),
        ("modelpath: x", r"unknown key 'modelpath' \(did you mean 'model_path'\?\)"),
        ("dataset_start: 5", "only a start at 0"),
        ("custom_chat_template: '{{ messages }}'", "rendered by the model's own template"),
        ("- a\n- b", "not a recipe"),
        ("a: [", "not YAML"),
        ("!!python/object:os.system x", "not YAML"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(WcseError, match=reason):
        read_recipe(write(tmp_path, text))
    with pytest.raises(WcseError, match="No such file"):
        read_recipe(str(tmp_path / "none.yaml"))


def test_command_line_options_come_after_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, RECIPE)
    assert main(["solve", f"--sal-recipe={path}", "--policy=./nowhere", "--n=6"]) == 2
    assert "n=6 is not divisible by beam_width=4" in capsys.readouterr().err
    assert (
        main(["solve", f"--sal-recipe={path}", "--policy=./nowhere", "--problems=gsm_symbolic:size=1"]) == 2
    )
    assert "model './nowhere': no such" in capsys.readouterr().err
    assert main(["solve", "--sal-compat", "--policy=x"]) == 2
    assert "--sal-compat goes with --sal-recipe" in capsys.readouterr().err


def test_the_pages_script_runs_on_the_shim(tmp_path: Path) -> None:
    """The way search-and-learn drives vLLM: rendered prompts, steps, continued messages, a greedy look ahead."""
    (script,) = examples("search-and-learn.md")
    (tmp_path / "beams.py").write_text(script)
    command = [sys.executable, "-m", "wcse.adapters.vllm_shim", str(tmp_path / "beams.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("text ")] == lines[-4:], done.stderr
    for line in lines[-4:]:
        kind, *_, reason, count = line.split(" ")
        assert kind == "text" and int(count) >= 1 and reason in (r"'\n\n'", "EOS")


def test_the_pages_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe,) = examples("search-and-learn.md", "yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvts.yaml").write_text(recipe)
    text = (DOCS / "search-and-learn.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^wcse (solve .*)$", text, re.MULTILINE)
    assert main([*shlex.split(command), "--quiet"]) == 0
    assert list((tmp_path / "runs" / "dvts").glob("*.parquet"))
