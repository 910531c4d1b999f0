"""The engine: greedy parity with transformers, invariance to batch and memory, ends of nodes, exact accounts."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from wcse.engine.driver import Driver, Job, Outcome
from wcse.engine.engine import Engine
from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams, StepRule
from wcse.engine.runner import KVMemoryError
from wcse.models import decoder
from wcse.models.load import LoadedModel, load_model
from wcse.search import STRATEGIES, SearchConfig
from wcse.types import Expand, Finish, Node, Search, WcseError

PROMPTS = ["Anna has 12 apples", "How many apples does she have now?" * 6, "x"]
STEP = StepRule(delimiter="e", max_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_model(str(folder))


def whole(n: int) -> object:
    def strategy(root: Node) -> Search:
        leaves = yield Expand(root, n, to_end=True)
        return leaves

    return strategy


def run(
    model: LoadedModel,
    *,
    max_rows: int = 64,
    num_pages: int = 4096,
    strategy: object = None,
    **params: object,
) -> list[Outcome]:
    engine = Engine(model, max_rows=max_rows, num_pages=num_pages)
    sampling = SamplingParams(**({"temperature": 1.0, "max_tokens": 40} | params))  # type: ignore[arg-type]
    driver = Driver(engine, None, params=sampling, rule=STEP)
    jobs = [
        Job(f"p{i}", model.tokenizer.encode(text), text, strategy or whole(6), seed=3)  # type: ignore[arg-type]
        for i, text in enumerate(PROMPTS)
    ]
    outcomes = sorted(driver.run(jobs), key=lambda outcome: outcome.job.name)
    engine.step()
    assert not engine.busy
    engine.runner.tree.check()
    return outcomes


def trees(outcomes: list[Outcome]) -> list[dict[tuple[int, ...], tuple[object, ...]]]:
    return [
        {path: (trace.token_ids, trace.finish, trace.logprob) for path, trace in outcome.nodes.items()}
        for outcome in outcomes
    ]


def test_greedy_equals_transformers(folder: Path) -> None:
    llm = LLM(str(folder), max_num_seqs=4)
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True, logprobs=0)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids = torch.tensor([llm.get_tokenizer().encode(prompt)])
        expected = reference.generate(
            ids, do_sample=False, max_new_tokens=64, min_new_tokens=64, eos_token_id=None
        )
        assert output.outputs[0].token_ids == expected[0, ids.shape[1] :].tolist()
        assert output.outputs[0].finish_reason == "length"
        logits = reference(expected).logits[0, ids.shape[1] - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(1, expected[0, ids.shape[1] :, None])[:, 0]
        written = output.outputs[0]
        assert written.logprobs is not None
        found = [top[token].logprob for token, top in zip(written.token_ids, written.logprobs, strict=True)]
        assert found == pytest.approx(logprobs.tolist(), abs=1e-4)


def calls_of_a_step(model: LoadedModel, rows: int) -> int:
    """Calls that Python makes in a step in which no row comes or goes."""
    engine = Engine(model, max_rows=rows)
    driver = Driver(engine, None, params=SamplingParams(ignore_eos=True, max_tokens=40), rule=StepRule("", 0))
    driver.submit(Job("p", model.tokenizer.encode("Anna"), "Anna", whole(rows), seed=3))  # type: ignore[arg-type]
    for _ in range(8):
        engine.step()
    assert len(engine.rows) == rows
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    engine.step()
    sys.setprofile(None)
    assert len(engine.rows) == rows
    return calls


def test_python_does_nothing_for_each_row(model: LoadedModel) -> None:
    assert calls_of_a_step(model, 40) == calls_of_a_step(model, 3)


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"repetition_penalty": 1.3}])
def test_logits_in_parts_change_nothing(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, params: dict[str, float]
) -> None:
    expected = trees(run(model, **params))
    monkeypatch.setattr(decoder, "LOGIT_ROWS", 4)
    assert trees(run(model, **params)) == expected


def test_likely_tokens_of_logits_in_parts(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def written() -> list[object]:
        plain = SamplingParams(n=3, max_tokens=6, ignore_eos=True, seed=1, logprobs=2)
        ruled = SamplingParams(n=4, max_tokens=6, ignore_eos=True, seed=1, logit_bias={17: 3.0})
        outputs = LLM(model).generate(PROMPTS, [plain, ruled, plain], use_tqdm=False)
        return [(part.token_ids, part.logprobs) for output in outputs for part in output.outputs]

    expected = written()
    monkeypatch.setattr(decoder, "LOGIT_ROWS", 2)
    assert written() == expected


@pytest.mark.parametrize("max_rows", [1, 5])
def test_the_batch_changes_nothing(model: LoadedModel, max_rows: int) -> None:
    assert trees(run(model, max_rows=max_rows)) == trees(run(model, max_rows=64))


def test_little_memory_changes_nothing(model: LoadedModel) -> None:
    expected = trees(run(model))
    for num_pages in (34, 40, 60):
        assert trees(run(model, num_pages=num_pages)) == expected


def test_too_little_memory_is_an_error_that_says_so(model: LoadedModel) -> None:
    with pytest.raises(KVMemoryError, match="kv_memory"):
        run(model, num_pages=4)


def test_path_keyed_samples_do_not_depend_on_n(model: LoadedModel) -> None:
    few, many = trees(run(model, strategy=whole(2))), trees(run(model, strategy=whole(6)))
    for small, large in zip(few, many, strict=True):
        assert small == {path: node for path, node in large.items() if path[0] < 2}


@pytest.mark.parametrize("name", ["beam_search", "dvts"])
def test_searches_run_and_keep_their_budget(model: LoadedModel, name: str) -> None:
    def strategy(root: Node) -> Search:
        search = STRATEGIES[name].run(
            root, SearchConfig(n=8, beam_width=2, num_iterations=6, agg_strategy="last")
        )
        request = next(search)
        while True:
            result = yield request
            for node in _nodes(result):
                node.score = (sum(node.token_ids) % 97) / 97
            try:
                request = search.send(result)
            except StopIteration as stop:
                return stop.value

    expected = trees(run(model, strategy=strategy))
    assert trees(run(model, strategy=strategy, max_rows=3)) == expected
    assert trees(run(model, strategy=strategy, num_pages=40)) == expected
    for outcome in run(model, strategy=strategy):
        assert 0 < len(outcome.solutions) <= 8


def _nodes(result: object) -> Iterator[Node]:
    if isinstance(result, Node):
        yield result
    elif isinstance(result, list):
        yield from itertools.chain.from_iterable(map(_nodes, result))


def test_every_finish_reason(model: LoadedModel) -> None:
    finishes = {trace.finish for outcome in run(model) for trace in outcome.nodes.values()}
    assert {Finish.DELIM, Finish.STEP_CAP, Finish.PATH_CAP} <= finishes
    for outcome in run(model):
        for path, trace in outcome.nodes.items():
            assert trace.finish is not Finish.STEP_CAP or len(trace.token_ids) == STEP.max_tokens
            if trace.finish in (Finish.DELIM, Finish.STEP_CAP):
                assert (*path, 0) in outcome.nodes
            if trace.finish is Finish.DELIM:
                assert "e" in trace.text
        for leaf in outcome.solutions:
            assert len(leaf.completion_ids) <= 40
            assert (leaf.finish is Finish.PATH_CAP) == (len(leaf.completion_ids) == 40 and not leaf.complete)


def test_accounts_count_each_token_once(model: LoadedModel) -> None:
    for outcome in run(model, ignore_eos=True):
        written = sum(len(trace.token_ids) for trace in outcome.nodes.values())
        # The last token of each of the 6 solutions is never read; all else is computed once.
        assert outcome.policy.policy_computed == len(outcome.job.prompt_ids) + written - 6
        assert outcome.policy.policy_sampled == written
        assert outcome.policy.policy_reused == 6 * len(outcome.job.prompt_ids)


def test_equal_prompts_share_their_prefix(model: LoadedModel) -> None:
    llm = LLM(model)
    prompt = PROMPTS[1]
    params = SamplingParams(n=2, max_tokens=4)
    first = llm.generate(prompt, params, use_tqdm=False)[0]
    again = llm.generate(prompt, params, use_tqdm=False)[0]
    assert first.num_cached_tokens == 0
    assert again.num_cached_tokens == len(again.prompt_token_ids) // 64 * 64 > 0


def test_stop_strings_cut_text_ids_and_logprobs_together(model: LoadedModel) -> None:
    free = LLM(model, seed=1).generate(
        [PROMPTS[0]], SamplingParams(max_tokens=60, ignore_eos=True), use_tqdm=False
    )
    text = free[0].outputs[0].text
    # Two characters of plain text from different tokens, so that the stop string spans tokens.
    stop = next(
        text[i : i + 2] for i in range(8, len(text)) if text[i : i + 2].isascii() and text[i : i + 2].strip()
    )
    params = SamplingParams(max_tokens=60, ignore_eos=True, stop=stop, logprobs=0)
    cut = LLM(model, seed=1).generate([PROMPTS[0]], params, use_tqdm=False)[0].outputs[0]
    assert cut.finish_reason == "stop" and cut.stop_reason == stop
    assert stop not in cut.text and text.startswith(cut.text)
    assert cut.token_ids == free[0].outputs[0].token_ids[: len(cut.token_ids)]
    assert cut.logprobs is not None and len(cut.logprobs) == len(cut.token_ids)


def test_chat_renders_the_template(model: LoadedModel) -> None:
    output = LLM(model).chat(
        [{"role": "user", "content": "hi"}], SamplingParams(max_tokens=2), use_tqdm=False
    )[0]
    assert (
        model.tokenizer.decode(output.prompt_token_ids)
        == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_seed_for_each_request(model: LoadedModel) -> None:
    llm = LLM(model)
    a, b = (
        llm.generate("x", SamplingParams(max_tokens=20, seed=seed, n=2), use_tqdm=False)[0].outputs
        for seed in (5, 6)
    )
    assert [o.token_ids for o in a] != [o.token_ids for o in b]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": -1.0}, r"temperature=-1.0: give a number in \[0, 2\]"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"n": 0}, "n=0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"logprobs": -2}, "logprobs=-2"),
        ({"stop": ("",)}, "stop="),
    ],
)
def test_bad_parameters_are_named(bad: dict[str, object], message: str) -> None:
    with pytest.raises(WcseError, match=message):
        SamplingParams(**bad)  # type: ignore[arg-type]


def test_bad_prompts_are_named(model: LoadedModel) -> None:
    llm = LLM(model)
    with pytest.raises(WcseError, match="the model's context is 512"):
        llm.generate([[1] * 600], use_tqdm=False)
    with pytest.raises(WcseError, match="999999 is not an id"):
        llm.generate([[1, 999999]], use_tqdm=False)
    with pytest.raises(WcseError, match="no tokens"):
        llm.generate([""], use_tqdm=False)
    assert not llm.engine.busy
