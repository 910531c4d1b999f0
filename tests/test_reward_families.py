"""Every PRM family: incremental scores equal a full-text forward of transformers over an independent rendering."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import prm_models
import pytest
import tiny_models
from prm_models import CASES, FullText
from transformers import AutoTokenizer

from wcse.engine.growth import Root
from wcse.engine.params import SamplingParams, StepRule
from wcse.engine.runner import Runner
from wcse.reward.check import SAMPLE, check
from wcse.reward.families import FAMILIES, family_of
from wcse.reward.layout import Layout
from wcse.reward.load import load_prm
from wcse.reward.scorer import ImplicitPRM, SeparatePRM
from wcse.reward.text import score_texts
from wcse.types import Finish, Node, WcseError

PROBLEM = "Anna has 12 apples and buys 7 more. How many apples does she have now?"
TEXT = "12 + 7 = 19 apples, so First add. Then $x$ \\boxed{19} naïve 日本 a-b (ii) Step"
WORDS = [*TEXT.split(), "p\tq"]

WHOLE_ANSWER = ("rlhflow_orm", "orm", "genrm", "eurus_prm", "er_prm")
"""Their full text shows one score, or (ER-PRM) the next step may change the tokens of the tag before it."""
MERGES = ("er_prm",)


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    return {}


@pytest.fixture(params=CASES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(family: str, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if family not in folders:
        folders[family] = prm_models.build(family, tmp_path_factory.mktemp(family))
    return folders[family]


def sides(prm: SeparatePRM | ImplicitPRM) -> list[SeparatePRM]:
    return [prm.model, prm.reference] if isinstance(prm, ImplicitPRM) else [prm]


def random_tree(rng: random.Random, nodes: int) -> list[Node]:
    """Parents before children; leaves have ended. Some steps are short, some longer than a page."""
    root = Node(None, (), ())
    tree = [root]
    while len(tree) < nodes:
        parent = rng.choice([node for node in tree if node.finish is not Finish.EOS])
        text = " ".join(rng.choices(WORDS, k=rng.choice((1, 3, 30))))
        finish = Finish.EOS if rng.random() < 0.3 else Finish.DELIM
        tree.append(
            Node(parent, (*parent.path, len(tree)), (), text + "\n\n" * (finish is Finish.DELIM), finish)
        )
    return tree


def texts(node: Node) -> list[str]:
    return [step.text.removesuffix("\n\n").strip() for step in node.steps()]


def run(
    prm: SeparatePRM | ImplicitPRM, tree: Sequence[Node], rng: random.Random | None = None
) -> dict[tuple[int, ...], float | None]:
    """Score the tree, parents before children; with ``rng`` in batches cut at random places."""
    root = Root(tree[0], 0, PROBLEM, SamplingParams(), StepRule(), 0)
    found: dict[tuple[int, ...], float | None] = {}
    for node in tree[1:]:
        prm.submit(root, PROBLEM, node, lambda score, path=node.path: found.__setitem__(path, score))  # type: ignore[misc]
        while rng is not None and prm.waiting and rng.random() < 0.4:
            prm.step()
    while prm.waiting:
        prm.step()
    return found


def test_incremental_scores_equal_a_full_text_forward(family: str, folder: Path) -> None:
    prm = load_prm(str(folder), kv_memory=0.01, family=family)
    full = FullText(family, folder, AutoTokenizer.from_pretrained(folder))
    tree = random_tree(random.Random(1), 14)
    found = run(prm, tree)
    assert len(found) == len(tree) - 1
    for node in tree[1:]:
        if family == "eurus_prm" and node.live:  # its documentation shows finished solutions only
            continue
        expected = full.scores(PROBLEM, texts(node))
        assert found[node.path] == pytest.approx(expected[-1], abs=1e-4)
        if family not in WHOLE_ANSWER:
            assert [found[step.path] for step in node.steps()] == pytest.approx(expected, abs=1e-4)
    assert len({round(score or 0.0, 4) for score in found.values()}) > 5


@pytest.mark.parametrize("seed", [2, 3])
def test_scores_do_not_depend_on_batches_or_eviction(family: str, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    tree = random_tree(rng, 40)
    large = load_prm(str(folder), kv_memory=0.02, family=family)
    small = load_prm(str(folder), kv_memory=0.02, family=family)
    readings = [large.layout.read(PROBLEM, texts(node), ended=not node.live) for node in tree[1:]]
    longest = max(reading.read for reading in readings if reading.read < large.context)
    for side in sides(small):
        side.runner = Runner(side.runner.decoder, num_pages=longest // 16 + 10)
    assert run(small, tree, rng) == pytest.approx(run(large, tree), abs=0, nan_ok=True)
    for side, roomy in zip(sides(small), sides(large), strict=True):
        assert side.runner.computed > roomy.runner.computed  # something was evicted and read again
        side.runner.tree.check()


def test_each_new_token_is_read_once(family: str, folder: Path) -> None:
    prm = load_prm(str(folder), kv_memory=0.02, family=family)
    for side in sides(prm):
        side.context = 4096
    tree = random_tree(random.Random(4), 20)
    run(prm, tree)
    total = len(prm.layout.prefix(PROBLEM))
    ends = {tree[0].path: total}
    for node in tree[1:]:
        reading = prm.layout.read(PROBLEM, texts(node), ended=not node.live)
        ends[node.path] = len(reading.ids)
        total += reading.read + 1 - ends[node.path[:-1]]
    if family not in MERGES:
        assert [side.runner.computed for side in sides(prm)] == [total] * len(sides(prm))


@pytest.mark.parametrize("name", ["token_classification", "genrm", "eurus_prm"])
def test_equal_texts_are_read_once(name: str, tmp_path: Path) -> None:
    folder = prm_models.build(name, tmp_path / "model")
    root = Node(None, (), ())

    def below(parent: Node, child: int, text: str) -> Node:
        return Node(parent, (*parent.path, child), (), f"{text}\n\n", Finish.DELIM)

    twins = [below(root, i, "12 + 7 = 19") for i in range(3)]
    last = [below(twin, 0, text) for twin, text in zip(twins, ("so 19", "so 19", "no"), strict=True)]
    alone = [below(twins[0], 0, "so 19"), below(twins[0], 1, "no")]
    one, many = (load_prm(str(folder), kv_memory=0.01, family=name) for _ in range(2))
    expected, found = run(one, [root, twins[0], *alone]), run(many, [root, *twins, *last])
    assert [found[node.path] for node in twins] == [expected[0,]] * 3
    assert [found[node.path] for node in last] == [expected[0, 0], expected[0, 0], expected[0, 1]]
    for mine, other in zip(sides(many), sides(one), strict=True):
        assert mine.runner.computed == other.runner.computed
    again = run(many, [root, *reversed(twins)])  # another search: it shares the cached prompt, no step
    assert list(again.values()) == [expected[0,]] * 3


def test_control_strings_and_tags_in_a_text_stay_text_or_are_refused(family: str, folder: Path) -> None:
    layout = Layout(FAMILIES[family], AutoTokenizer.from_pretrained(folder))
    control = [layout.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|im_start|>", "<|end|>")]
    tame, wild = (
        layout.read(f"How {x}many?", [f"a {x}b", "c"]) for x in ("", "<|im_end|><|im_start|><|end|>")
    )
    count = [sum(token in control for token in reading.ids + reading.tail) for reading in (tame, wild)]
    assert count[0] == count[1]
    tag = (FAMILIES[family].tag or "").strip()
    if tag:
        for problem, step in ((f"How {tag} many?", "a"), ("How many?", f"a {tag} b")):
            with pytest.raises(WcseError, match=f"holds {re.escape(repr(tag))}, which ends a step"):
                layout.read(problem, [step])
    prm = load_prm(str(folder), kv_memory=0.01, family=family)
    if tag:
        root = Node(None, (), ())
        (score,) = run(prm, [root, Node(root, (0,), (), f"a {tag} b\n\n", Finish.DELIM)]).values()
        assert score is not None and math.isnan(score)


def test_texts_are_scored_one_to_one(family: str, folder: Path) -> None:
    prm = load_prm(str(folder), kv_memory=0.01, family=family)
    solutions = [["12 + 7 = 19", "so 19"], ["12 + 7 = 19"], ["no", "so 19", "12"]]
    scores = score_texts(prm, PROBLEM, solutions)
    assert [len(row) for row in scores] == [2, 1, 3]
    for solution, row in zip(solutions, scores, strict=True):
        assert score_texts(prm, PROBLEM, [solution]) == [row]
    with pytest.raises(WcseError, match="step 2 of 2 is blank"):
        score_texts(prm, PROBLEM, [["a", " \n"]])
    with pytest.raises(WcseError, match="tokens and the verifier reads 512"):
        score_texts(prm, PROBLEM, [["12 " * 600]])


def test_the_check_passes_and_sees_a_wrong_score(family: str, folder: Path) -> None:
    prm = load_prm(str(folder), kv_memory=0.01, family=family)
    rows = check(prm, str(folder), *SAMPLE)
    assert all(row.passed for row in rows)
    assert len(rows) == len(SAMPLE[1])
    assert [replace(rows[0], score=bad).passed for bad in (rows[0].score + 0.001, math.nan)] == [False, False]


def test_the_family_is_found_by_class_or_name() -> None:
    named = {
        "Qwen/Qwen2.5-Math-PRM-7B": "qwen_prm",
        "Qwen/Qwen2.5-Math-7B-PRM800K": "qwen_prm800k",
        "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B": "skywork_o1",
        "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data": "rlhflow",
        "RLHFlow/Llama3.1-8B-ORM-Mistral-Data": "rlhflow_orm",
        "peiyi9979/math-shepherd-mistral-7b-prm": "math_shepherd",
        "HanningZhang/Llama3.1-Math-PRM": "er_prm",
        "openreasoner/Math-psa": "math_psa",
        "Windy0822/PQM": "pqm",
        "tkitsers/Llemma-reward-model": "llemma_rm",
        "PRIME-RL/EurusPRM-Stage2": "eurus_prm",
        "HuggingFaceH4/Qwen2.5-Math-7B-Instruct-PRM-0.2": "token_classification",
    }
    assert {path: family_of(path, {}).name for path in named} == named
    assert family_of("mine", {"architectures": ["LlamaForSequenceClassification"]}).name == "orm"
    assert family_of("pqm", {"wcse": {"family": "implicit"}}).name == "implicit"
    with pytest.raises(WcseError, match="set prm_family"):
        family_of("mine", {"architectures": ["LlamaForCausalLM"]})


def test_every_family_has_a_case_or_its_own_tests() -> None:
    # tests/test_reward.py, tests/test_reward_generative.py
    assert set(FAMILIES) - set(CASES) == {"implicit", "genrm_cot", "critic"}


def test_a_model_of_another_family_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    causal, value = prm_models.build("math_psa", tmp_path / "a"), prm_models.build("pqm", tmp_path / "b")
    with pytest.raises(
        WcseError, match=r"no classification head .* give a model with score.0.weight with score.2"
    ):
        load_prm(str(causal), kv_memory=0.01, family="qwen_prm")
    with pytest.raises(WcseError, match="reads the language-model head and the checkpoint has none"):
        load_prm(str(value), kv_memory=0.01, family="math_psa")
    with pytest.raises(WcseError, match="1 outputs and 2 are needed"):
        one = prm_models.build("orm", tmp_path / "c")
        load_prm(str(one), kv_memory=0.01, family="token_classification")
    plain = AutoTokenizer.from_pretrained(tiny_models.build("llama", tmp_path / "d"))
    with pytest.raises(WcseError, match=r"needs '<extra_0>' to be one token .* makes \d"):
        Layout(FAMILIES["qwen_prm"], plain)
    with pytest.raises(WcseError, match=r"needs the control token '<\|start_header_id\|>'"):
        Layout(FAMILIES["rlhflow"], plain)
    tokenizer = AutoTokenizer.from_pretrained(value)
    with pytest.raises(WcseError, match="the model has only 300 rows; its vocabulary was not resized"):
        Layout(FAMILIES["pqm"], tokenizer, vocab_size=300)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [f"<extra_{i}>" for i in range(1, 40)] + ["[STEP]"]}
    )
    tokenizer.save_pretrained(value)
    later = replace(FAMILIES["pqm"], tag="[STEP]", close=(" [STEP]",))
    with pytest.raises(WcseError, match=r"'\[STEP\]' is token \d+ and the model has only 384 rows"):
        Layout(later, AutoTokenizer.from_pretrained(value), vocab_size=384)
