"""The embedded models: how their data are written, what their files hold, what they can do."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wcse import zoo
from wcse.zoo.arithmetic import Unwritable, reduce_expression
from wcse.zoo.tiny_llama import TinyConfig, TinyLlama, load_weights, save_weights
from wcse.zoo.tokenizer import load_tokenizer, prompt_text

BINARY = re.compile(r"(-?[\d.]+) ([-+*/]) (-?[\d.]+)")


def value_of(side: str) -> Fraction:
    """What a side of a written equation is worth."""

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(str(node.value))
        if isinstance(node, ast.UnaryOp):
            return -walk(node.operand)
        assert isinstance(node, ast.BinOp)
        a, b = walk(node.left), walk(node.right)
        match node.op:
            case ast.Add():
                return a + b
            case ast.Sub():
                return a - b
            case ast.Mult():
                return a * b
        return a / b

    return walk(ast.parse(side, mode="eval").body)


@st.composite
def expressions(draw: Any, depth: int = 2) -> str:
    if depth == 0 or draw(st.booleans()):
        return str(draw(st.integers(0, 9999) | st.sampled_from(["0.25", "1.5", "12.75"])))
    left, right = draw(expressions(depth=depth - 1)), draw(expressions(depth=depth - 1))
    return f"( {left} {draw(st.sampled_from('+-*/'))} {right} )"


@given(expressions())
def test_every_written_line_is_true_and_the_value_is_exact(text: str) -> None:
    try:
        value, lines = reduce_expression(text)
    except Unwritable:
        return
    assert value == value_of(text)
    for line in lines:
        sides = [value_of(side) for side in line.split(" = ")]
        assert len(set(sides)) == 1, line


def test_long_products_are_split() -> None:
    assert reduce_expression("57 * 34")[1] == ["57 * 34 = 34 * 50 + 34 * 7 = 1700 + 238 = 1938"]
    assert reduce_expression("0.2 * 150")[1] == ["150 * 20 = 3000", "3000 / 100 = 30"]
    assert reduce_expression("1/4 * 20")[1] == ["20 / 4 = 5"]


def test_nothing_but_arithmetic_is_read() -> None:
    for text in ("__import__('os')", "2 ** 9", "x + 1", "1 +", "1 / 0"):
        with pytest.raises(Unwritable):
            reduce_expression(text)


# corpus


@pytest.fixture
def corpus() -> Any:
    pytest.importorskip("reasoning_gym")
    from wcse.zoo import corpus

    return corpus


def test_almost_every_trained_template_can_be_written(corpus: Any) -> None:
    for template in corpus.training_templates():
        written = 0
        for seed in range(12):
            try:
                example = corpus.gsm_example(template, seed)
            except Unwritable:
                continue
            written += 1
            assert example.steps[-1] == corpus.final_step(example.answer)
            assert not any(corpus.SEPARATOR in step or not step.strip() for step in example.steps)
        assert written >= 3, template


def test_held_out_templates_are_never_trained_on(corpus: Any) -> None:
    assert set(corpus.HELD_OUT_TEMPLATES) <= set(corpus.templates())
    assert not set(corpus.HELD_OUT_TEMPLATES) & set(corpus.training_templates())


def test_evaluation_refuses_training_seeds(corpus: Any) -> None:
    with pytest.raises(ValueError, match="training data"):
        corpus.evaluation_problems("gsm_symbolic", 1, seed=7)


def test_answers_agree_with_reasoning_gym(corpus: Any) -> None:
    import reasoning_gym

    data = reasoning_gym.create_dataset("gsm_symbolic", size=30, seed=corpus.EVAL_SEED)
    for item in data:
        assert data.score_answer(corpus.final_step(item["answer"]), item) == 1.0


def test_training_examples_are_reproducible(corpus: Any) -> None:
    weights = {"gsm_symbolic": 1.0, "chain_sum": 1.0, "basic_arithmetic": 1.0, "drill": 1.0}
    first, second = (
        [corpus.training_example(rng, weights) for _ in range(20)] for rng in (Random(5), Random(5))
    )
    assert first == second


# batches


def test_targets_cover_the_solution_and_nothing_else() -> None:
    from wcse.zoo.train_policy import collate

    inputs, targets = collate([([5, 6, 7, 8, 9], 3), ([5, 6, 7], 2)], pad=0)
    assert inputs.tolist() == [[5, 6, 7, 8], [5, 6, 0, 0]]
    assert targets.tolist() == [[-100, -100, 8, 9], [-100, 7, -100, -100]]


# the compact Llama and the files


def tiny() -> TinyLlama:
    torch.manual_seed(3)
    config = TinyConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    return TinyLlama(config).eval()


def test_the_compact_llama_is_transformers_llama(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    save_weights(tiny(), tmp_path, pad=0, bos=None, eos=3)
    ours, theirs = load_weights(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(4, 64, (3, 21))
    with torch.inference_mode():
        torch.testing.assert_close(ours.logits(ours.hidden(ids)), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_batched_sampling_does_not_depend_on_padding(tmp_path: Path) -> None:
    from wcse.zoo.sample import generate

    prompts = [[1, 9, 8, 7, 6, 5], [1, 9], [1, 30, 31]]
    together = generate(tiny(), prompts, end=3, pad=0, max_new=12)
    assert together == [generate(tiny(), [p], end=3, pad=0, max_new=12)[0] for p in prompts]


def test_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="tiny-wc"):
        zoo.path("gpt-5")


def test_tokenizer_keeps_digits_separators_and_every_text() -> None:
    from transformers import AutoTokenizer

    folder = zoo.path("tiny-wc")
    tokenizer, bare = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert len(tokenizer("\n\n").input_ids) == 1
    assert len(tokenizer("120459").input_ids) == 6
    for text in ("a\n\nb", "é漢🙂\x00\t\r\n 12.5 + 3 = 4\n\n\nx ", "\\boxed{-4}"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == prompt_text("What is 2 + 2?")
    assert tokenizer(rendered, add_special_tokens=False).input_ids == bare.encode(rendered).ids
    assert not tokenizer.apply_chat_template(messages, tokenize=False).endswith("<|assistant|>")


@pytest.mark.parametrize(("name", "least"), [("tiny-wc", 6), ("tiny-se", 12)])
def test_the_policy_solves_some_fresh_problems_step_by_step(corpus: Any, name: str, least: int) -> None:
    from wcse.zoo.sample import is_correct, solve

    folder = zoo.path(name)
    problems = corpus.evaluation_problems("gsm_symbolic", 24, corpus.EVAL_SEED + 900_000)
    texts = solve(load_weights(folder), load_tokenizer(folder), [q for q, _ in problems])
    assert sum(is_correct(text, answer) for text, (_, answer) in zip(texts, problems, strict=True)) >= least
    assert sum(corpus.SEPARATOR in text and "\\boxed{" in text for text in texts) >= 20


# the verifiers


RECORD = {
    "prompt": "What is 2 + 3 + 4?",
    "completions": ["2 + 3 = 5.", "5 + 4 = 9.", "The answer is \\boxed{9}."],
    "labels": [1.0, None, 0.25],
}


def test_a_step_of_the_policys_stream_is_read_at_its_last_token() -> None:
    from transformers import AutoTokenizer

    from wcse.reward.training import encode_records, stream_layout

    folder = zoo.path("tiny-wc")
    (row,), _ = encode_records(stream_layout(AutoTokenizer.from_pretrained(folder), "\n\n"), [RECORD], 1024)
    tokenizer = load_tokenizer(folder)
    stream = prompt_text(RECORD["prompt"]) + "\n\n".join(RECORD["completions"]) + "<|end|>"
    assert row.ids == tokenizer.encode(stream).ids
    assert row.labels == [1.0, 0.25]
    assert [tokenizer.id_to_token(row.ids[r]) for r in row.reads] == ["ĊĊ", "<|end|>"]


def test_training_problems_are_the_same_for_a_seed_and_no_evaluations(corpus: Any) -> None:
    from wcse.zoo.problems import training_problems

    problems = list(training_problems(20, 3))
    assert problems == list(training_problems(20, 3))
    assert len({problem["problem"] for problem in problems}) == 20


def test_a_grown_model_begins_as_the_shallower_one() -> None:
    from wcse.zoo.train_policy import grow

    config = TinyConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    old, new = TinyLlama(config), TinyLlama(replace(config, num_hidden_layers=5))
    grow(old, new)
    ids = torch.randint(40, (2, 9))
    torch.testing.assert_close(new.hidden(ids), old.hidden(ids))
    assert sum(p.abs().sum() > 0 for p in new.layers.parameters() if p.dim() == 2) == 2 * 7 + 3 * 5
    with pytest.raises(ValueError, match="more than depth"):
        grow(TinyLlama(replace(config, hidden_size=64)), new)
    with pytest.raises(ValueError, match="can't grow 5 layers to 2"):
        grow(new, old)
