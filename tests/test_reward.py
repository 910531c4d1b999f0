"""Verifiers: layouts' golden ids, incremental scores equal to a full-text forward, a head on shared states."""

from __future__ import annotations

import json
import shutil
from functools import reduce
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from wcse.engine.driver import Driver, Job, Outcome, Scorer
from wcse.engine.engine import Engine
from wcse.engine.params import SamplingParams, StepRule
from wcse.models.load import LoadedModel, load_model
from wcse.reward.families import FAMILIES
from wcse.reward.head import Head, head_from_tensors
from wcse.reward.layout import Layout, Reading
from wcse.reward.load import SHARED_FILE, load_prm, load_shared_head
from wcse.reward.scorer import ImplicitPRM, SeparatePRM
from wcse.reward.text import _Planted, score_texts
from wcse.search import STRATEGIES, SearchConfig
from wcse.types import Node, PathScores, Search, WcseError

PROBLEMS = {"a": "Anna has 12 apples and buys 7 more.", "b": "How many apples?"}
RULE = StepRule(delimiter="e", max_tokens=10)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tiny_models.build("llama", tmp_path_factory.mktemp("policy"))
    generator = torch.Generator().manual_seed(0)
    head = {"score.weight": torch.randn(1, 64, generator=generator), "score.bias": torch.zeros(1)}
    save_file(head, folder / SHARED_FILE, metadata={"default_agg": "min"})
    return load_model(folder)


@pytest.fixture(scope="module")
def prm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token-classification model with random weights, as transformers writes it."""
    folder = tiny_models.build("qwen2", tmp_path_factory.mktemp("prm"), seed=7)
    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(2, 64, generator=generator) / 8)
    model.save_pretrained(folder)
    return folder


def search(name: str, **config: object) -> object:
    def strategy(root: Node) -> Search:
        return STRATEGIES[name].run(root, SearchConfig(**({"n": 8, "beam_width": 2} | config)))  # type: ignore[arg-type]

    return strategy


def run(
    policy: LoadedModel, scorer_of: object, strategy: object, max_rows: int = 32, pages: int = 2048
) -> list[Outcome]:
    engine = Engine(policy, max_rows=max_rows, num_pages=pages)
    scorer: Scorer = scorer_of(engine)  # type: ignore[operator]
    driver = Driver(engine, scorer, params=SamplingParams(max_tokens=36), rule=RULE)
    jobs = [Job(k, policy.tokenizer.encode(v), v, strategy, seed=1) for k, v in PROBLEMS.items()]  # type: ignore[arg-type]
    outcomes = sorted(driver.run(jobs), key=lambda outcome: outcome.job.name)
    engine.step()
    engine.runner.tree.check()
    return outcomes


def read_all(layout: Layout, problem: str, steps: list[Node]) -> list[Reading]:
    texts = [step.text.removesuffix("e").strip() for step in steps]
    return [layout.read(problem, texts[: i + 1]) for i in range(len(texts))]


def scores(outcomes: list[Outcome]) -> list[dict[tuple[int, ...], float | None]]:
    return [{path: trace.score for path, trace in outcome.nodes.items()} for outcome in outcomes]


def test_incremental_scores_equal_a_full_forward(policy: LoadedModel, prm_folder: Path) -> None:
    model = AutoModelForTokenClassification.from_pretrained(prm_folder, dtype=torch.float32).eval()
    prm = load_prm(str(prm_folder), kv_memory=0.01)
    assert isinstance(prm, SeparatePRM)
    outcomes = run(policy, lambda _: prm, search("best_of_n", n=4))
    checked = 0
    for outcome in outcomes:
        for leaf in outcome.solutions:
            steps = [step for step in leaf.steps() if step.text.strip()]
            readings = read_all(prm.layout, outcome.job.problem, steps)
            ids, reads = readings[-1].ids, [reading.read for reading in readings]
            with torch.no_grad():
                expected = model(torch.tensor([ids])).logits[0, reads].softmax(-1)[:, 1]
            assert [step.score for step in steps] == pytest.approx(expected.tolist(), abs=1e-5)
            checked += len(steps)
        assert outcome.verifier.prm_computed < outcome.verifier.prm_computed + outcome.verifier.prm_reused
    assert checked > 20
    assert prm.waiting == 0


@pytest.fixture(scope="module")
def implicit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An implicit PRM: two language models with random weights, and how the first is to be read."""
    reference = tiny_models.build("llama", tmp_path_factory.mktemp("reference"), seed=3)
    folder = tiny_models.build("qwen2", tmp_path_factory.mktemp("implicit"), seed=8)
    config = json.loads((folder / "config.json").read_text())
    config["wcse"] = {"family": "implicit", "reference": str(reference), "beta": 0.05}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def sides(prm: Scorer) -> list[SeparatePRM]:
    return [prm.model, prm.reference] if isinstance(prm, ImplicitPRM) else [prm]  # type: ignore[list-item]


def test_implicit_scores_equal_a_full_forward(policy: LoadedModel, implicit_folder: Path) -> None:
    reference = json.loads((implicit_folder / "config.json").read_text())["wcse"]["reference"]
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (implicit_folder, reference)
    ]
    prm = load_prm(str(implicit_folder), kv_memory=0.02)
    assert isinstance(prm, ImplicitPRM)
    checked = []
    for outcome in run(policy, lambda _: prm, search("best_of_n", n=4)):
        prefix = prm.layout.prefix(outcome.job.problem)
        for leaf in outcome.solutions:
            steps = [step for step in leaf.steps() if step.text.strip()]
            readings = read_all(prm.layout, outcome.job.problem, steps)
            ids, ends = readings[-1].ids, [reading.read + 1 for reading in readings]
            with torch.no_grad():
                logprobs = [model(torch.tensor([ids])).logits[0].log_softmax(-1) for model in models]
            chosen = [lp[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0] for lp in logprobs]
            ratio = (chosen[0] - chosen[1])[len(prefix) - 1 :].cumsum(0)
            expected = torch.sigmoid(0.05 * ratio[[end - len(prefix) - 1 for end in ends]]).tolist()
            assert [step.score for step in steps] == pytest.approx(expected, abs=1e-5)
            checked += expected
        assert outcome.verifier.prm_computed > 0
    assert len(checked) > 20
    assert max(checked) - min(checked) > 0.01


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({}, "reference=None"), ({"beta": -1}, "beta=-1"), ({"reference": "nothing-here"}, "nothing-here")],
)
def test_an_implicit_prm_without_its_reference_is_refused(
    implicit_folder: Path, tmp_path: Path, options: dict[str, object], complaint: str
) -> None:
    folder = shutil.copytree(implicit_folder, tmp_path / "prm")
    config = json.loads((folder / "config.json").read_text())
    config["wcse"] = {"family": "implicit"} | (
        {"reference": "tiny-wc", "beta": 1} | options if options else {}
    )
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WcseError, match=complaint):
        load_prm(str(folder), kv_memory=0.01)


@pytest.mark.parametrize("name", ["beam_search", "dvts"])
@pytest.mark.parametrize("kind", ["prm_folder", "implicit_folder"])
def test_scores_do_not_depend_on_batch_or_memory(
    policy: LoadedModel, name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue(kind))
    strategy = search(name, agg_strategy="last", num_iterations=4)
    expected = scores(run(policy, lambda _: load_prm(folder, kv_memory=0.02), strategy))
    small = load_prm(folder, kv_memory=0.0015 if kind == "prm_folder" else 0.003)
    assert scores(run(policy, lambda _: small, strategy, max_rows=3, pages=40)) == expected
    for side in sides(small):
        side.step()
        side.runner.tree.check()


@pytest.mark.parametrize("kind", ["prm_folder", None])
def test_a_head_sums_up_the_paths(
    policy: LoadedModel, kind: str | None, request: pytest.FixtureRequest
) -> None:
    """Steps that wait together, and steps below scored ones, have in them what adding up their scores gives."""
    folder = None if kind is None else str(request.getfixturevalue(kind))

    def scorer_of(engine: Engine) -> Scorer:
        return load_shared_head(engine) if folder is None else load_prm(folder, kv_memory=0.01)

    summed = 0
    for outcome in run(policy, scorer_of, search("best_of_n", n=4)):
        for leaf in outcome.solutions:
            steps = [step for step in leaf.steps() if step.text.strip()]
            for depth, step in enumerate(steps):  # by the scorer itself: best-of-n never asks on the way
                scores = [above.score for above in steps[: depth + 1]]
                assert step.summed == reduce(PathScores.then, scores, PathScores())  # type: ignore[arg-type]
                summed += depth > 0
    assert summed > 20


def test_after_a_broken_step_nothing_stored_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of the step count as stored, and prompts stay cached: without a reset all later scores would be wrong."""
    problem, steps = " ".join([PROBLEMS["a"]] * 12), ["12 + 7 = 19.", "The answer is 19."]
    prm, fresh = (load_prm("tiny-wc-prm", kv_memory=0.05) for _ in range(2))
    assert isinstance(prm, ImplicitPRM)
    planted = _Planted(prm, problem)
    planted.grow(steps, complete=True)
    for side in (prm.model, prm.reference):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken"):
            patch.setattr(side.runner, "run", _broken)
            side.step()
    prm.abort(planted.root)
    prm.reset()
    del planted
    for other in (PROBLEMS["b"], PROBLEMS["a"]):  # settles what was in flight
        score_texts(prm, other, [steps])
        assert score_texts(prm, problem, [steps]) == score_texts(fresh, problem, [steps])
    prm.model.runner.memory.check()


def _broken(*_: object, **__: object) -> None:
    raise RuntimeError("broken")


def test_a_shared_head_reads_the_policys_states(policy: LoadedModel) -> None:
    heads: list[Head] = []

    def scorer_of(engine: Engine) -> Scorer:
        scorer = load_shared_head(engine)
        heads.append(scorer.head)
        assert scorer.default_agg == "min"
        return scorer

    outcomes = run(policy, scorer_of, search("beam_search", agg_strategy="last", num_iterations=4))
    weight, bias = heads[0].layers[0]
    for outcome in outcomes:
        assert outcome.verifier.prm_computed == 0
        for leaf in outcome.solutions[:3]:
            engine = Engine(policy)
            root = engine.open(
                [*outcome.job.prompt_ids, *leaf.completion_ids],
                seed=0,
                problem="",
                params=SamplingParams(),
                rule=RULE,
            )
            states: list[torch.Tensor] = []
            engine.fill(root, root.node, states.append)
            engine.step()
            expected = torch.sigmoid(weight @ states[0] + bias).item()
            assert leaf.score == pytest.approx(expected, abs=1e-5)


def test_trl_layout_golden(prm_folder: Path) -> None:
    tokenizer = load_model(prm_folder).tokenizer
    layout = Layout(FAMILIES["token_classification"], tokenizer)
    ids = layout.read("12 apples", ["First add 12 and 7."]).ids
    pieces = [tokenizer.encode(t) for t in ("12 apples", "First add 12 and 7.", "\n\n")]
    assert ids == pieces[0] + pieces[1] + pieces[2]


def test_heads_that_do_not_fit_are_refused(policy: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(WcseError, match=r"no classification head among its tensors \(none\)"):
        head_from_tensors({}, 64, source="m")
    with pytest.raises(WcseError, match=r"head weight is \(2, 32\), expected \[\*, 64\]"):
        head_from_tensors({"score.weight": torch.zeros(2, 32)}, 64, source="m")
    with pytest.raises(WcseError, match="its head has 5 outputs and 1 or 2 are needed"):
        head_from_tensors({"score.weight": torch.zeros(5, 64)}, 64, source="m")
    bare = tiny_models.build("llama", tmp_path / "bare")
    with pytest.raises(WcseError, match="set prm_family"):
        load_prm(str(bare), kv_memory=0.01)
    with pytest.raises(WcseError, match="does not exist; this policy has no shared head"):
        load_shared_head(Engine(load_model(bare)))
    (bare / SHARED_FILE).write_bytes(json.dumps({}).encode())
    with pytest.raises(WcseError, match="not a whole safetensors file"):
        load_shared_head(Engine(load_model(bare)))


def test_two_layer_head_and_extremes() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(8, 4, generator=generator), torch.randn(2, 8, generator=generator)
    head = head_from_tensors({"score.0.weight": first, "score.2.weight": second}, 4, source="m")
    hidden = torch.randn(5, 4, generator=generator)
    expected = (torch.relu(hidden @ first.T) @ second.T).softmax(-1)[:, 1]
    assert torch.allclose(head(hidden), expected, atol=1e-6)
    assert torch.equal(head(hidden)[2:3], head(hidden, [2]))
    sure = Head([(torch.tensor([[-40.0], [40.0]]), None)])
    assert torch.isfinite(sure(torch.tensor([[1.0], [-1.0]]))).all()
