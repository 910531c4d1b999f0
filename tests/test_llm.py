"""vLLM's surface: parameters, prompts, outputs, log-probabilities, rules on logits, reading, tenants, aborts."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from wcse.engine.generate import Generation, Prompt
from wcse.engine.llm import LLM
from wcse.engine.outputs import Draft, RequestOutput, Vocabulary
from wcse.engine.params import FieldError, SamplingParams
from wcse.models.load import LoadedModel, load_model
from wcse.types import Finish, Node, WcseError

PROMPT = "Anna has 12 apples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_model(str(folder))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)


def complete(model: LoadedModel, prompt: Any = PROMPT, **params: Any) -> RequestOutput:
    options = {"max_tokens": 24, "ignore_eos": True} | params
    return LLM(model, kv_memory=0.1).generate(prompt, SamplingParams(**options), use_tqdm=False)[0]


def true_logprobs(reference: Any, ids: list[int]) -> torch.Tensor:
    return reference(torch.tensor([ids])).logits[0].log_softmax(-1)


def test_prompts_as_text_ids_and_dict(model: LoadedModel) -> None:
    ids = model.tokenizer.encode(PROMPT)
    forms = [PROMPT, ids, {"prompt": PROMPT}, {"prompt_token_ids": ids}]
    outputs = [complete(model, form, seed=1) for form in forms]
    assert len({tuple(o.outputs[0].token_ids) for o in outputs}) == 1
    assert [o.prompt for o in outputs] == [PROMPT, None, PROMPT, None]
    assert all(o.prompt_token_ids == ids and o.finished for o in outputs)


def test_a_request_seed_does_not_depend_on_what_ran_before(model: LoadedModel) -> None:
    llm = LLM(model, kv_memory=0.1)
    params = SamplingParams(seed=9, n=2, max_tokens=12)
    first = llm.generate(PROMPT, params, use_tqdm=False)[0]
    other, again = llm.generate(["x", PROMPT], [SamplingParams(n=5), params], use_tqdm=False)
    assert [o.token_ids for o in first.outputs] == [o.token_ids for o in again.outputs]
    assert len(other.outputs) == 5


def test_logprobs_are_the_models(model: LoadedModel, reference: Any) -> None:
    output = complete(model, logprobs=3, prompt_logprobs=2, temperature=0.7, presence_penalty=1.0)
    written = output.outputs[0]
    truth = true_logprobs(reference, output.prompt_token_ids + written.token_ids)
    start = len(output.prompt_token_ids)
    assert written.logprobs is not None and output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    rows = [*output.prompt_logprobs[1:], *written.logprobs]
    ids = output.prompt_token_ids + written.token_ids
    for position, row in enumerate(rows):
        assert row is not None
        token, want = ids[position + 1], truth[position]
        assert row[token].logprob == pytest.approx(want[token].item(), abs=1e-4)
        assert row[token].rank == int((want > want[token]).sum()) + 1
        k = 2 if position < start - 1 else 3
        best = want.topk(k).indices.tolist()
        assert list(dict.fromkeys([token, *best])) == list(row)
    assert written.cumulative_logprob == pytest.approx(
        sum(row[t].logprob for t, row in zip(written.token_ids, written.logprobs, strict=True))
    )


def test_too_many_logprobs_are_refused_before_anything_runs(model: LoadedModel) -> None:
    llm = LLM(model, kv_memory=0.1)
    for field in ({"logprobs": 21}, {"prompt_logprobs": -1}):
        with pytest.raises(FieldError, match="max_logprobs"):
            llm.generate(PROMPT, SamplingParams(**field), use_tqdm=False)  # type: ignore[arg-type]
    assert not llm.backend.busy
    whole = LLM(model, kv_memory=0.1, max_logprobs=384).generate(
        PROMPT, SamplingParams(logprobs=-1, max_tokens=1), use_tqdm=False
    )[0]
    assert whole.outputs[0].logprobs and len(whole.outputs[0].logprobs[0]) == 384


def test_penalties_and_bias_are_those_of_their_formulas(model: LoadedModel, reference: Any) -> None:
    """Greedy decoding by hand with the penalties applied to transformers' logits."""
    params = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4}
    bias = {5: 2.0, 9: -3.0}
    output = complete(model, temperature=0.0, logit_bias=bias, **params)
    ids = list(output.prompt_token_ids)
    prompt, written = set(ids), []
    for token in output.outputs[0].token_ids:
        logits = reference(torch.tensor([ids])).logits[0, -1].clone()
        for other, amount in bias.items():
            logits[other] += amount
        for other in prompt | set(written):
            logits[other] = logits[other] / 1.3 if logits[other] > 0 else logits[other] * 1.3
        for other in set(written):
            logits[other] -= 0.4 * written.count(other) + 0.5
        assert logits[token] >= logits.max() - 1e-4
        ids.append(token)
        written.append(token)


def test_allowed_and_bad_and_biased_tokens(model: LoadedModel) -> None:
    only = complete(model, n=3, allowed_token_ids=[7, 11, 13])
    assert {t for o in only.outputs for t in o.token_ids} <= {7, 11, 13}
    forced = complete(model, logit_bias={"17": 100})
    assert set(forced.outputs[0].token_ids) == {17}
    free = complete(model, seed=4)
    banned = free.outputs[0].text.strip()[:1]
    clean = complete(model, seed=4, n=4, bad_words=[banned])
    ids = set(model.tokenizer.encode(banned, add_special_tokens=False))
    assert all(not ids & set(o.token_ids) for o in clean.outputs)
    with pytest.raises(FieldError, match="allowed_token_ids=9999"):
        complete(model, allowed_token_ids=[9999])


def test_min_tokens_holds_back_the_end(model: LoadedModel) -> None:
    options = {"logit_bias": {0: 100}, "ignore_eos": False}
    assert len(complete(model, **options).outputs[0].token_ids) == 1
    held = complete(model, min_tokens=5, **options).outputs[0]
    assert len(held.token_ids) == 6 and held.finish_reason == "stop" and held.token_ids[-1] == 0


@pytest.mark.parametrize("include", [False, True])
def test_stop_strings_cut_the_text_exactly(model: LoadedModel, include: bool) -> None:
    free = complete(model, seed=1, max_tokens=60).outputs[0]
    text = free.text
    stops = [text[i : i + 2] for i in range(8, 40) if text[i : i + 2].isascii() and text[i : i + 2].strip()]
    for stop in stops:
        cut = complete(
            model, seed=1, max_tokens=60, stop=[stop], logprobs=0, include_stop_str_in_output=include
        ).outputs[0]
        at = text.index(stop)
        assert cut.text == text[: at + len(stop) * include]
        assert cut.finish_reason == "stop" and cut.stop_reason == stop
        assert cut.token_ids == free.token_ids[: len(cut.token_ids)]
        assert cut.logprobs is not None and len(cut.logprobs) == len(cut.token_ids)
        covered = model.tokenizer.decode(cut.token_ids, skip_special_tokens=True)
        assert cut.ids_chars == min(len(covered), len(cut.text)) or "\ufffd" in covered
        assert cut.text.startswith(covered) or include


def test_stop_tokens_leave_the_text_and_stay_in_the_ids(model: LoadedModel) -> None:
    free = complete(model, seed=2).outputs[0]
    token = free.token_ids[10]
    first = free.token_ids.index(token)
    cut = complete(model, seed=2, stop_token_ids=[token]).outputs[0]
    assert cut.token_ids == free.token_ids[: first + 1] and cut.stop_reason == token
    assert free.text.startswith(cut.text)
    kept = complete(model, seed=2, stop_token_ids=[token], include_stop_str_in_output=True).outputs[0]
    assert len(kept.text) > len(cut.text) and free.text.startswith(kept.text)


def test_special_tokens_and_no_text(model: LoadedModel) -> None:
    special = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    options = {"allowed_token_ids": [special], "max_tokens": 2}
    assert complete(model, **options).outputs[0].text == ""
    assert complete(model, skip_special_tokens=False, **options).outputs[0].text == "<|im_end|>" * 2
    assert complete(model, detokenize=False).outputs[0].text == ""


def test_best_of_returns_the_likeliest(model: LoadedModel) -> None:
    pool = complete(model, seed=3, n=6).outputs
    best = complete(model, seed=3, n=2, best_of=6).outputs
    ranked = sorted(pool, key=lambda o: -o.cumulative_logprob / len(o.token_ids))
    assert [o.token_ids for o in best] == [o.token_ids for o in ranked[:2]]
    assert [o.index for o in best] == [0, 1]


def test_max_tokens_none_fills_the_context(model: LoadedModel) -> None:
    llm = LLM(model, kv_memory=0.1, max_model_len=40)
    output = llm.generate(PROMPT, SamplingParams(max_tokens=None, ignore_eos=True), use_tqdm=False)[0]
    assert len(output.prompt_token_ids) + len(output.outputs[0].token_ids) == 40
    assert output.outputs[0].finish_reason == "length"


def test_loglikelihoods_equal_transformers(model: LoadedModel, reference: Any) -> None:
    texts = [(PROMPT, " and"), (PROMPT, " buys 7 more."), ("x" * 900, "y" * 1400), ("How", " many apples")]
    pairs = [
        (model.tokenizer.encode(a)[:150], model.tokenizer.encode(b)[:330]) for a, b in (*texts, *texts[:2])
    ]
    llm = LLM(model, kv_memory=0.1)
    for (context, continuation), (found, greedy) in zip(pairs, llm.loglikelihoods(pairs), strict=True):
        truth = true_logprobs(reference, context + continuation)[len(context) - 1 : -1]
        want = truth.gather(1, torch.tensor(continuation)[:, None])[:, 0]
        assert found == pytest.approx(want.tolist(), abs=1e-4)
        assert greedy == (truth.argmax(-1).tolist() == continuation)
    llm.engine.runner.tree.check()
    assert llm.engine.runner.tree.stats()["free"] == llm.engine.runner.tree.stats()["total"]


def test_loglikelihoods_in_little_memory(model: LoadedModel) -> None:
    pairs = [(model.tokenizer.encode("ab" * i), model.tokenizer.encode("cd" * 40)) for i in range(1, 30)]
    roomy = LLM(model, kv_memory=0.1)
    tight = LLM(model, kv_memory=0.1)
    tight.engine = type(tight.engine)(model, num_pages=16)
    tight.backend = type(roomy.backend)(tight.engine)
    for (a, _), (b, _) in zip(roomy.loglikelihoods(pairs), tight.loglikelihoods(pairs), strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_encode_and_score(model: LoadedModel) -> None:
    llm = LLM(model, kv_memory=0.1)
    states = llm.encode([PROMPT, "x"])
    assert states[0].outputs.data.shape == (len(states[0].prompt_token_ids), 64)
    embedded = llm.encode(PROMPT, pooling_task="embed")[0].outputs.data
    assert embedded.norm().item() == pytest.approx(1.0)
    same, other = llm.score(PROMPT, [PROMPT, "y"])
    assert same.outputs.score == pytest.approx(1.0) and other.outputs.score < 0.999
    with pytest.raises(WcseError, match=r"score\.weight"):
        llm.encode(PROMPT, pooling_task="token_classify")
    with pytest.raises(WcseError, match="pooling_task='plugin'"):
        llm.encode(PROMPT, pooling_task="plugin")


def test_token_classification_equals_transformers(folder: Path, tmp_path: Path) -> None:
    """What reward_hub asks of a process reward model."""
    classifier = AutoModelForTokenClassification.from_pretrained(
        folder, num_labels=2, dtype=torch.float32
    ).eval()
    classifier.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / name)
    llm = LLM(tmp_path, kv_memory=0.1)
    output = llm.encode(PROMPT, pooling_task="token_classify")[0]
    expected = classifier(torch.tensor([output.prompt_token_ids])).logits[0].softmax(-1)
    torch.testing.assert_close(output.outputs.data, expected, atol=1e-4, rtol=0)
    last = llm.encode(PROMPT, pooling_task="classify")[0].outputs.data
    torch.testing.assert_close(last, expected[-1], atol=1e-4, rtol=0)


def pages_free(llm: LLM) -> int:
    llm.engine.runner.tree.check()
    return int(llm.engine.runner.tree.stats()["free"] + llm.engine.runner.tree.stats()["cached"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6), st.booleans()), min_size=1, max_size=5))
def test_aborts_free_every_page_and_disturb_nobody(
    model: LoadedModel, cases: list[tuple[int, int, bool]]
) -> None:
    llm = LLM(model, kv_memory=0.1, max_num_seqs=5)
    llm.engine = type(llm.engine)(model, max_rows=5, num_pages=60)
    llm.backend = type(llm.backend)(llm.engine)
    finished: list[RequestOutput] = []
    params = SamplingParams(max_tokens=20, seed=1, n=2, ignore_eos=True, prompt_logprobs=0, stop=["\0"])
    ids = model.tokenizer.encode(PROMPT * 5)

    def start() -> Generation:
        generation = Generation(llm.backend, "r", Prompt(ids=ids), params, 1, "", finished.append)
        generation.start()
        return generation

    survivor = start()
    for n, steps, again in cases:
        victims = [start() for _ in range(n)]
        for _ in range(steps):
            llm.backend.step()
        for victim in victims[: n if again else 1]:
            victim.abort()
        victims.clear()
    while llm.backend.busy:
        llm.backend.step()
    assert survivor.output.finished
    alone = LLM(model, kv_memory=0.1).generate([ids], params, use_tqdm=False)[0]
    assert [o.token_ids for o in survivor.output.outputs] == [o.token_ids for o in alone.outputs]
    finished.clear()
    del survivor
    llm.engine.reclaim()
    assert pages_free(llm) == 60
    assert not llm.engine.schedule.listeners and not llm.engine.rows


def test_tenants_share_nothing(model: LoadedModel) -> None:
    llm = LLM(model, kv_memory=0.1)
    ids = model.tokenizer.encode(PROMPT * 30)
    cached = []
    for tenant in ("a", "b", "a", "b"):
        generation = Generation(
            llm.backend,
            "r",
            Prompt(ids=ids),
            SamplingParams(max_tokens=3),
            1,
            "",
            lambda _: None,
            tenant=tenant,
        )
        generation.start()
        while llm.backend.busy:
            llm.backend.step()
        cached.append(generation.output.num_cached_tokens)
        del generation
        llm.engine.reclaim()
    assert cached[:2] == [0, 0] and cached[2] == cached[3] == len(ids) // 64 * 64
    llm.engine.runner.tree.check()


def test_reset_prefix_cache(model: LoadedModel) -> None:
    llm = LLM(model, kv_memory=0.1)
    for expected in (0, 64, 0):
        output = llm.generate(PROMPT * 20, SamplingParams(max_tokens=2), use_tqdm=False)[0]
        assert (output.num_cached_tokens > 0) == (expected > 0)
        if expected:
            llm.reset_prefix_cache()


@given(st.text(max_size=30), st.integers(1, 5), st.lists(st.text(min_size=1, max_size=4), max_size=2))
@settings(max_examples=200, deadline=None)
def test_streamed_text_never_changes_and_adds_up(text: str, cut: int, stops: list[str]) -> None:
    """Tokens are byte chunks; every settled prefix is a prefix of the final text."""
    data = text.encode()
    table = [data[i : i + cut] for i in range(0, len(data), cut)] or [b"x"]
    params = SamplingParams(stop=stops)
    draft = Draft(0, params, Vocabulary(table, None))
    settled: list[tuple[str, int]] = []
    draft.listen = lambda d: settled.append(d.settled())
    for token in range(len(table)):
        draft.on_token(token, -1.0, None)
    node = Node(None, (), tuple(range(len(table))), text, Finish.PATH_CAP, (-1.0,) * len(table))
    draft.on_end(node)
    assert draft.output is not None
    final = draft.output.text
    for (before, n_before), (after, n_after) in itertools.pairwise(settled):
        assert after.startswith(before) and final.startswith(before) and n_before <= n_after
    assert settled[-1] == (final, len(table))


def test_structured_outputs(model: LoadedModel) -> None:
    pytest.importorskip("llguidance")
    chosen = complete(model, n=4, ignore_eos=False, structured_outputs={"choice": ["red", "green (2)"]})
    assert {o.text for o in chosen.outputs} <= {"red", "green (2)"}
    assert all(o.finish_reason == "stop" for o in chosen.outputs)
    digits = complete(model, ignore_eos=False, structured_outputs={"regex": "[0-9]{3}"}).outputs[0]
    assert len(digits.text) == 3 and digits.text.isdigit()
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    output = complete(model, ignore_eos=False, max_tokens=100, structured_outputs={"json": schema}).outputs[0]
    assert isinstance(json.loads(output.text)["a"], bool)
    for bad in ({"regex": "("}, {"json": "{"}, {"grammar": "start: ("}):
        with pytest.raises(FieldError, match="structured_outputs"):
            complete(model, ignore_eos=False, structured_outputs=bad)


def test_too_little_memory_is_refused(model: LoadedModel) -> None:
    with pytest.raises(WcseError, match=r"kv_memory=.*holds 0 pages"):
        LLM(model, kv_memory=1e-6)


def test_chat_hands_options_to_the_template(model: LoadedModel) -> None:
    tokenizer = copy.copy(model.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ ' quick' if hurry else ' slow' }}"
    )
    llm = LLM(replace(model, tokenizer=tokenizer), kv_memory=0.1)
    params = SamplingParams(max_tokens=1)
    for hurry, word in ((True, " quick"), (False, " slow")):
        chat = [{"role": "user", "content": "1 + 1"}]
        (output,) = llm.chat(chat, params, chat_template_kwargs={"hurry": hurry}, use_tqdm=False)
        assert tokenizer.decode(output.prompt_token_ids) == "1 + 1" + word
    assert output.metrics is None and output.lora_request is None
