"""The match: how many samples each side gets, what they cost, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synth_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from wcse.synth.cost import Charge, Size, check_order, price_of
from wcse.synth.match import Planner
from wcse.synth.recipe import SamplerSpec, SynthRecipe, load_recipe
from wcse.synth.record import Unit
from wcse.synth.run import synthesize
from wcse.types import WcseError


def run(recipe: SynthRecipe, folder: Path, count: int = 100, sizes: Any = synth_runs.SIZES) -> Any:
    problems = synth_runs.problems(count)
    with synth_runs.open_journal(folder, recipe, problems) as journal:
        return synthesize(recipe, problems, journal, synth_runs.FakeExecutor(recipe), sizes)


@pytest.mark.parametrize("match", ["flops", "money", "seconds", "params", "samples"])
def test_the_match_holds_within_one_percent(tmp_path: Path, match: str) -> None:
    samplers = {"wc": {"model": "weak", "price": [1, 2]}, "se": {"model": "strong", "price": [4, 10]}}
    totals, (balance,) = run(synth_runs.recipe(match=match, samplers=samplers), tmp_path)
    assert balance.held and abs(balance.gap) <= 0.01 and "match held" in balance.explain()
    assert totals.of("se").samples == 300
    expected = {"samples": 300, "params": 900}.get(match)
    assert expected is None or totals.of("wc").samples == expected
    if match == "flops":  # three times the parameters, and the prompt is read once a call
        assert totals.of("wc").samples > 900
        tokens = {name: totals.of(name).read + totals.of(name).written for name in ("wc", "se")}
        assert 100 * tokens["wc"] == pytest.approx(300 * tokens["se"], rel=0.01)


def test_a_match_that_one_sample_breaks_says_so(tmp_path: Path) -> None:
    _, (balance,) = run(synth_runs.recipe(n=1), tmp_path, count=2)
    assert balance.held or "give more problems or a larger n" in balance.explain()
    _, (loose,) = run(synth_runs.recipe(n=1, tolerance=0.5), tmp_path, count=2)  # derived, so the run goes on
    assert loose.held and loose.cost == balance.cost


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(20, 120), n=st.integers(1, 12), weak=st.integers(20, 300), seed=st.integers(0, 10**6)
)
def test_any_ratio_and_budget_is_met_to_half_a_sample(count: int, n: int, weak: int, seed: int) -> None:
    recipe = synth_runs.recipe(n=n, seed=seed)
    problems = synth_runs.problems(count)
    planner = Planner(recipe, [p.id for p in problems], {"wc": Size(weak), "se": Size(300)})
    by_id = {p.id: p for p in problems}
    charges: dict[tuple[str, int], dict[str, Charge]] = {}
    for sampler in recipe.order:
        block = 0
        while units := planner.units(sampler, block, charges):
            assert len({unit.problem for unit in units}) == len(units)
            records = [synth_runs.fake_record(recipe, unit, by_id[unit.problem]) for unit in units]
            spec = recipe.samplers[sampler]
            charges[sampler, block] = {r.unit.problem: Charge.of(r, spec) for r in records}
            block += 1
        assert block < 40
    balance = planner.balance("wc", charges)
    one = 2 * weak * 80 / balance.budget  # no sample is longer than 60 tokens and a prompt of 20
    assert abs(balance.gap) <= max(0.01, one), balance


def test_the_paper_ratio() -> None:
    for sizes, n, expected in (((9, 27), 1, 3), ((9, 27), 10, 30), ((2, 5), 3, 7)):
        recipe = synth_runs.recipe(match="params", n=n)
        planner = Planner(recipe, ["p"], {"wc": Size(sizes[0]), "se": Size(sizes[1])})
        assert planner.units("wc", 0, {}) == [Unit("wc", 0, "p", expected)]


def test_the_prompt_is_charged_once_a_call_and_verifiers_too() -> None:
    charge = Charge(samples=4, calls=1, read=800, written=200, checked=1000)
    spec = SamplerSpec.parse({"model": "m", "price": [1.0, 3.0], "prm_price": 0.5})
    assert price_of("flops", charge, spec, Size(9, 2)) == 2 * 9 * 1000 + 2 * 2 * 1000
    assert price_of("money", charge, spec, Size(9)) == pytest.approx((800 + 600 + 500) / 1e6)
    assert price_of("params", charge, spec, Size(9)) == 36 and price_of("samples", charge, spec, Size(9)) == 4


def test_what_a_verifier_writes_is_charged_and_planned_with_the_samples() -> None:
    verifier = {"strategy": "best_of_n", "prm": "judge", "prm_family": "critic"}
    recipe = synth_runs.recipe(samplers={"wc": {"model": "weak"} | verifier, "se": {"model": "strong"}})
    unit, spec = Unit("wc", 0, "p0", 3), recipe.samplers["wc"]
    record = synth_runs.fake_record(recipe, unit, synth_runs.problem(0))
    assert record.solved is not None
    ledger = replace(record.solved.ledger, prm_asked=500)
    charge = Charge.of(replace(record, solved=replace(record.solved, ledger=ledger)), spec)
    assert charge.checked == charge.read + charge.written + 500
    planner = Planner(recipe, ["p0", "p1"], {"wc": Size(100, 10), "se": Size(300)})
    call, sample, _ = planner._estimate("wc", 1, {("wc", 0): {"p0": charge}})
    assert call == 2 * (100 + 10) * charge.read
    assert sample == pytest.approx(2 * (100 * charge.written + 10 * (charge.written + 500)) / 3)


def test_sizes_are_those_that_the_ledger_charges() -> None:
    from wcse.synth.generate import sizes_of

    tiny = 6 * (192 * (2 * 192 + 2 * 64) + 3 * 192 * 512) + 1280 * 192
    searching = {"model": "tiny-wc", "strategy": "best_of_n", "prm": "tiny-wc-prm"}
    recipe = synth_runs.recipe(samplers={"wc": {"model": "tiny-wc"}, "se": searching})
    implicit = 2 * tiny  # the verifier and the model that it is compared with
    assert sizes_of(recipe) == {"wc": Size(tiny), "se": Size(tiny, implicit)}
    writing = searching | {"prm": "tiny-wc", "prm_family": "critic"}
    assert sizes_of(synth_runs.recipe(samplers={"wc": writing})) == {"wc": Size(tiny, tiny)}
    given = synth_runs.recipe(samplers={"wc": {"model": "tiny-wc", "parameters": 7}})
    assert sizes_of(given) == {"wc": Size(7)}


def test_searches_are_drawn_in_whole_groups(tmp_path: Path) -> None:
    samplers = {
        "wc": {"model": "weak", "prm": "shared", "strategy": "beam", "beam_width": 4},
        "se": {"model": "strong"},
    }
    recipe = synth_runs.recipe(samplers=samplers, n=6)
    problems = synth_runs.problems(30)
    executor = synth_runs.FakeExecutor(recipe)
    with synth_runs.open_journal(tmp_path, recipe, problems) as journal:
        synthesize(recipe, problems, journal, executor, synth_runs.SIZES)
    assert all(unit.n % 4 == 0 for unit in executor.units if unit.sampler == "wc")


def test_grids_overlap() -> None:
    assert synth_runs.recipe(n=27).sizes == (1, 3, 9, 27)
    assert synth_runs.recipe(n=9).sizes == (1, 3, 9)
    assert synth_runs.recipe(n=10).sizes == (1, 3, 9, 10)
    assert synth_runs.recipe(n=9, grid=(9, 3, 9)).sizes == (3, 9)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown match": ({"match": "flop"}, "match='flop': unknown match 'flop' (did you mean 'flops'?); use flops,"),
    "missing price": ({"match": "money"}, "match=money: sampler wc has no price; set price"),
    "no samplers": ({"samplers": {}}, "no samplers; give at least one"),
    "reference": ({"reference": "xl"}, "reference 'xl' is no sampler; there are wc, se"),
    "format": ({"export": ["sftt"]}, "unknown format 'sftt' (did you mean 'sft'?)"),
    "grid": ({"grid": [5]}, "grid=[5] must lie in 1..n=3"),
    "typo": ({"samplers": {"wc": {"model": "m", "temprature": 1}}}, "unknown option 'samplers.wc.temprature'"),
    "no model": ({"samplers": {"wc": {}}}, "samplers.wc.model is missing"),
    "verifier": ({"samplers": {"wc": {"model": "m", "strategy": "dvts"}}}, "strategy dvts needs a verifier; set prm"),
    "strategy": ({"samplers": {"wc": {"model": "m", "strategy": "dtvs"}}}, "unknown strategy 'dtvs' (did you mean"),
    "greedy": ({"samplers": {"wc": {"model": "m", "temperature": 0}}}, "is deterministic and would repeat itself"),
    "n": ({"n": 0}, "n=0: Input should be greater than or equal to 1"),
    "prices": ({"samplers": {"wc": {"model": "m", "price": [-1, 2]}}}, "give two prices of at least 0"),
    "filter": ({"filters": {"dedupe": "txt"}}, "filters.dedupe='txt'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_recipes_are_refused_in_one_line(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(WcseError) as caught:
        synth_runs.recipe(**options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_reference_cheaper_than_the_weak_model_is_refused() -> None:
    with pytest.raises(
        WcseError, match=r"reference=se: it is cheaper than wc \(parameters 100 against 300\)"
    ):
        check_order(synth_runs.recipe(), {"wc": Size(300), "se": Size(100)})
    samplers = {"wc": {"model": "a", "price": [1, 9]}, "se": {"model": "b", "price": [1, 3]}}
    with pytest.raises(WcseError, match="price of a written token 3 against 9"):
        check_order(synth_runs.recipe(match="money", samplers=samplers), synth_runs.SIZES)


def test_recipe_files(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("problems: p\nsamplers:\n  wc: {model: tiny-wc}\nn: 2\n")
    assert SynthRecipe.parse(load_recipe(path)).order == ("wc",)
    for content, message in (("- 1\n", "must hold options"), ("a: [\n", "not valid YAML")):
        path.write_text(content)
        with pytest.raises(WcseError, match=message):
            load_recipe(path)
    with pytest.raises(WcseError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


def test_derived_and_runtime_fields_do_not_change_the_samples() -> None:
    base = synth_runs.recipe()
    for options in ({"grid": [1]}, {"filters": {"dedupe": "steps"}}, {"workers": 3}, {"export": ["dpo"]}):
        assert synth_runs.recipe(**options).generation() == base.generation()
    assert synth_runs.recipe(seed=1).generation() != base.generation()
    assert (
        base.unit_recipe("wc", 0, 3).seed
        != base.unit_recipe("wc", 1, 3).seed
        != base.unit_recipe("se", 0, 3).seed
    )
