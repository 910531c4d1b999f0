"""Verifiers that write: verdicts as a plain greedy loop of transformers gives them, each token counted."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import prm_models
import pytest
import tiny_models
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

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
SOLUTIONS = (
    STEPS,
    ("12 + 7 = 19", "The answer is \\boxed{19}.", "Done."),
    ("Wie heißt das?",),
    ("x * x", "First add.", "So 20.", "The answer is \\boxed{20}."),
    ("12 - 7 = 5.", "So 5."),
)
WRITES = 12
VERDICTS = ("\\boxed{-1}", "\\boxed{0}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model."""
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


@pytest.fixture(scope="module")
def critic(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A critic in the proper words: it writes one of ``VERDICTS`` and ends, and which one all before it decides.

    The output matrix spells: the row of each letter is the embedding of the letter before it. Behind the brace two
    rows differ by a random direction, so the state that attention made there decides.
    """
    critic = tmp_path_factory.mktemp("critic")
    shutil.copytree(folder, critic, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(critic)
    tensors = load_file(critic / "model.safetensors")
    embedding = F.normalize(tensors["model.embed_tokens.weight"], dim=1)
    rows = torch.zeros_like(embedding)
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    spelled = [[tokenizer.convert_tokens_to_ids(letter) for letter in verdict] for verdict in VERDICTS]
    for before, after in {p for v in spelled for p in pairwise([newline, *v, tokenizer.eos_token_id])}:
        rows[after] += embedding[before]
    minus, zero, brace = (tokenizer.convert_tokens_to_ids(letter) for letter in "-0{")
    direction = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0)) / 8
    direction -= (direction @ embedding[brace]) * embedding[brace]
    rows[minus] += direction
    rows[zero] -= direction
    tensors |= {
        "lm_head.weight": rows,
        "model.embed_tokens.weight": 20 * embedding,
        "model.norm.weight": torch.ones(rows.shape[1]),
    }
    save_file(tensors, critic / "model.safetensors", metadata={"format": "pt"})
    return critic


class Plain:
    """The verdicts of transformers over a conversation that is written out here, with nothing of ``wcse``."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def chat(self, content: str) -> str:
        turn = [{"role": "user", "content": content}]
        return str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def written(self, ids: list[int]) -> list[int]:
        """What the model goes on with, without the end token."""
        found = self.model.generate(torch.tensor([ids]), max_new_tokens=WRITES, do_sample=False)
        return [token for token in found[0, len(ids) :].tolist() if token != self.tokenizer.eos_token_id]

    def genrm_cot(self, problem: str, steps: Sequence[str]) -> float:
        ids = self.ids(self.chat(problem) + "\n\n".join(steps) + "\nLet's verify step by step.")
        ids += self.written(ids) + self.ids("\nIs the answer correct (Yes/No)?")
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0, -1]
        yes, no = (self.ids(answer)[-1] for answer in (" Yes", " No"))
        return float(logits[[yes, no]].softmax(0)[0])

    def critic(self, problem: str, steps: Sequence[str]) -> float:
        paragraphs = [f"<paragraph_{i}>\n{step}\n</paragraph_{i}>" for i, step in enumerate(steps)]
        content = (
            f"[Problem]\n{problem}\n\n[Solution in numbered paragraphs]\n\n"
            + "\n\n".join(paragraphs)
            + "\n\n"
            "Examine the paragraphs in order. Close with the number of the first one that holds an error, or -1 if "
            "none does, as \\boxed{}."
        )
        text = self.tokenizer.decode(self.written(self.ids(self.chat(content))))
        assert text in VERDICTS
        return float(text == "\\boxed{-1}")


@pytest.mark.parametrize("family", ["genrm_cot", "critic"])
def test_verdicts_equal_those_of_transformers_over_the_full_text(
    folder: Path, critic: Path, family: str
) -> None:
    path = critic if family == "critic" else folder
    prm = load_prm(str(path), kv_memory=0.02, family=family)
    assert isinstance(prm, GenerativePRM)
    plain = Plain(path)
    scores = score_texts(prm, PROBLEM, SOLUTIONS)
    assert [len(row) for row in scores] == [len(steps) for steps in SOLUTIONS]
    for steps, row in zip(SOLUTIONS, scores, strict=True):
        expected = [getattr(plain, family)(PROBLEM, steps[: i + 1]) for i in range(len(steps))]
        assert row == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 4) for row in scores for score in row}) == (2 if family == "critic" else 12)
    rows = check(prm, str(path), PROBLEM, STEPS)
    assert all(row.passed for row in rows)
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
def test_scores_of_a_search_do_not_depend_on_batch_or_memory(folder: Path, critic: Path, family: str) -> None:
    policy = load_model(folder)

    def scores(outcomes: list[Outcome]) -> list[dict[tuple[int, ...], float | None]]:
        return [{path: trace.score for path, trace in outcome.nodes.items()} for outcome in outcomes]

    verifier = critic if family == "critic" else folder
    calm = grow(verifier, policy, family, Memory.gib(0.05), 32)
    roomy = scores(calm)
    page = Engine(policy, num_pages=8).runner.page_bytes
    rough = grow(verifier, policy, family, Memory(60 * page), 3)
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


def test_a_server_counts_what_it_may_write_before_it_lets_a_search_in(folder: Path, critic: None) -> None:
    pytest.importorskip("fastapi")
    from live_server import serving

    from wcse.serve.admission import Limits
    from wcse.serve.service import ServeConfig

    limits = Limits(verdict_tokens=8 * 20 * WRITES)
    config = ServeConfig(model="tiny-wc", prm=str(folder), prm_family="critic", kv_memory=0.05, limits=limits)
    with serving(config) as live:
        before = live.settle()
        body = {"model": "tiny-wc@best_of_n-n8", "prompt": "Calculate 1 + 2.", "max_tokens": 21}
        status, reply = live.post("/v1/completions", body)
        assert (
            status == 400
            and reply["error"]["param"] == "max_tokens"
            and str(8 * 21 * WRITES) in reply["error"]["message"]
        )
        assert live.settle() == before
        assert live.post("/v1/completions", body | {"max_tokens": 20})[0] == 200
        assert live.post("/v1/completions", body | {"model": "tiny-wc@majority-n8"})[0] == 200


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
