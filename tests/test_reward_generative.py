"""Verifiers that write: verdicts as a plain greedy loop of transformers gives them, each token counted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import prm_models
import pytest
import tiny_models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from wcse.engine.driver import Driver, Job, Outcome
from wcse.engine.engine import Engine
from wcse.engine.memory import Memory
from wcse.engine.params import SamplingParams, StepRule
from wcse.models.load import LoadedModel, load_model
from wcse.recipe import Recipe
from wcse.reward.check import check
from wcse.reward.families import FAMILIES
from wcse.reward.generative import GenerativePRM
from wcse.reward.layout import Layout
from wcse.reward.load import load_prm
from wcse.reward.processbench import UNKNOWN, first_error
from wcse.reward.text import score_texts
from wcse.search import STRATEGIES, SearchConfig
from wcse.solve import solve_all
from wcse.types import Node, Problem, Search, WcseError

PROBLEM, STEPS = "Anna has 12 apples and buys 7 more.", ("First add 12 and 7.", "So 19.")
WRITES = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.build("llama", tmp_path_factory.mktemp("judge"), seed=5)
    PreTrainedTokenizerFast(
        tokenizer_object=prm_models.byte_level(),
        eos_token="<|end|>",
        pad_token="<|end|>",
        chat_template=tiny_models.CHAT_TEMPLATE,
    ).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"wcse": {"writes": WRITES}}))
    return folder


@pytest.fixture
def critic(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a random model writes is no verdict; here any letter is one."""
    letters = replace(FAMILIES["critic"], verdict=r"([a-zA-Z])", right=tuple("aeioulnr"))
    monkeypatch.setitem(FAMILIES, "critic", letters)


@pytest.mark.parametrize("family", ["genrm_cot", "critic"])
def test_verdicts_equal_a_greedy_loop_over_the_full_text(folder: Path, critic: None, family: str) -> None:
    prm = load_prm(str(folder), kv_memory=0.02, family=family)
    assert isinstance(prm, GenerativePRM)
    rows = check(prm, str(folder), PROBLEM, STEPS)
    assert len(rows) == len(STEPS)
    assert all(row.passed for row in rows)
    assert not any(math.isnan(row.score) for row in rows)
    assert not replace(rows[0], score=rows[0].score + 0.5).passed


def test_the_critic_reads_indexed_paragraphs_inside_the_users_turn(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    layout = Layout(FAMILIES["critic"], tokenizer)
    reading = layout.read(PROBLEM, STEPS)
    solution = "\n\n".join(f"<paragraph_{i}>\n{step}\n</paragraph_{i}>" for i, step in enumerate(STEPS))
    asked = tokenizer.decode(reading.ids + reading.tail)
    assert solution in asked
    content = asked[asked.index("[Problem]") : asked.index("boxed{}.") + len("boxed{}.")]
    assert content.startswith(f"[Problem]\n{PROBLEM}\n\n")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.encode(chat, add_special_tokens=False) == reading.ids + reading.tail
    again = layout.read(PROBLEM, (*STEPS, "More."))
    assert again.ids[: len(reading.ids)] == reading.ids


def grow(folder: Path, policy: LoadedModel, family: str, memory: Memory, rows: int) -> list[Outcome]:
    engine = Engine(policy, max_rows=rows, memory=memory)
    prm = load_prm(str(folder), kv_memory=memory, family=family)
    assert isinstance(prm, GenerativePRM)
    driver = Driver(engine, prm, params=SamplingParams(max_tokens=24), rule=StepRule("e", 8))

    def search(root: Node) -> Search:
        return STRATEGIES["beam_search"].run(
            root, SearchConfig(n=4, beam_width=2, num_iterations=3, agg_strategy="last")
        )

    jobs = [Job(name, policy.tokenizer.encode(PROBLEM), PROBLEM, search, seed=1) for name in "ab"]
    outcomes = sorted(driver.run(jobs), key=lambda outcome: outcome.job.name)
    assert prm.waiting == 0
    assert sum(outcome.verifier.prm_computed for outcome in outcomes) == prm.engine.runner.computed
    written = sum(trace.score is not None for outcome in outcomes for trace in outcome.nodes.values())
    assert prm.engine.runner.computed > written * WRITES / 2  # verdicts are counted
    assert all(outcome.verifier.prm_flops > 0 for outcome in outcomes)
    memory.check()
    return outcomes


@pytest.mark.parametrize("family", ["genrm_cot", "critic"])
def test_scores_of_a_search_do_not_depend_on_batch_or_memory(folder: Path, critic: None, family: str) -> None:
    policy = load_model(folder)

    def scores(outcomes: list[Outcome]) -> list[dict[tuple[int, ...], float | None]]:
        return [{path: trace.score for path, trace in outcome.nodes.items()} for outcome in outcomes]

    calm = grow(folder, policy, family, Memory.gib(0.05), 32)
    roomy = scores(calm)
    page = Engine(policy, num_pages=8).runner.page_bytes
    rough = grow(folder, policy, family, Memory(60 * page), 3)
    assert scores(rough) == roomy
    asked = [outcome.verifier.prm_asked for outcome in calm]
    assert asked == [outcome.verifier.prm_asked for outcome in rough]  # evicted or not
    assert all(0 < n < outcome.verifier.prm_computed for n, outcome in zip(asked, calm, strict=True))
    assert len({score for tree in roomy for score in tree.values()}) > 1


def test_a_verdict_that_cannot_be_parsed_is_no_score(folder: Path) -> None:
    prm = load_prm(str(folder), kv_memory=0.02, family="critic")
    ((first, second),) = score_texts(prm, PROBLEM, [STEPS])
    assert math.isnan(first)
    assert math.isnan(second)
    assert first_error([1.0, math.nan, 0.0], 0.5) == UNKNOWN
    assert first_error([0.0, math.nan], 0.5) == 0
    assert isinstance(prm, GenerativePRM)
    assert prm._parsed("\\boxed{-1} no: \\boxed{ 2 }") == 0.0
    assert prm._parsed("\\boxed{2}, rather \\boxed{-1}") == 1.0


def test_a_budget_by_token_is_refused_with_a_verifier_that_writes(folder: Path) -> None:
    recipe = Recipe(
        policy=str(folder),
        prm=str(folder),
        prm_family="genrm_cot",
        problems="x",
        strategies=("best_of_n",),
        n=2,
        budget="tokens=5000",
    )
    with pytest.raises(WcseError, match=r"writes verdicts .* limit seconds or solutions"):
        solve_all(recipe, [Problem("a", PROBLEM, "19")])
