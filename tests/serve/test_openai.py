"""The real openai client: chats, completions, streams, log-probabilities, structured output."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from live_server import QUESTION

from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams
from wcse.models.load import LoadedModel
from wcse.search import STRATEGIES


def test_models_and_their_searches(client: Any) -> None:
    names = [entry.id for entry in client.models.list()]
    assert {name.partition("@")[2].partition("-")[0] for name in names} == {"", *STRATEGIES} - {"auto"}
    assert names[0] == "tiny-wc" and "tiny-wc@dvts-n16-m4" in names and "tiny-wc@majority-n32" in names
    assert client.models.retrieve("tiny-wc@dvts-n4-m2").id == "tiny-wc@dvts-n4-m2"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_chat_equals_the_offline_engine(client: Any, model: LoadedModel) -> None:
    reply = client.chat.completions.create(
        model="tiny-wc", messages=QUESTION, n=3, seed=7, max_tokens=30, logprobs=True, top_logprobs=2
    )
    offline = LLM(model, kv_memory=0.1).chat(
        QUESTION, SamplingParams(n=3, seed=7, max_tokens=30, logprobs=2), use_tqdm=False
    )[0]
    for choice, output in zip(reply.choices, offline.outputs, strict=True):
        assert choice.message.content == output.text and choice.finish_reason == output.finish_reason
        assert output.logprobs is not None
        for entry, token, row in zip(choice.logprobs.content, output.token_ids, output.logprobs, strict=True):
            assert entry.logprob == pytest.approx(row[token].logprob)
            assert len(entry.top_logprobs) == 2
    assert reply.usage.completion_tokens == sum(len(o.token_ids) for o in offline.outputs)
    assert reply.usage.prompt_tokens == len(offline.prompt_token_ids)


@pytest.mark.parametrize("stop", [None, ["\\box", "42"]])
def test_a_stream_adds_up_to_the_whole_reply(client: Any, stop: Any) -> None:
    options = {
        "model": "tiny-wc",
        "messages": QUESTION,
        "n": 2,
        "seed": 3,
        "max_tokens": 30,
        "stop": stop,
        "logprobs": True,
        "extra_body": {"return_token_ids": True},
    }
    whole = client.chat.completions.create(**options)
    texts, reasons, ids, logprobs = ["", ""], ["", ""], [[], []], [[], []]
    used = None
    parts = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    for part in parts:
        used = part.usage or used
        for choice in part.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            ids[choice.index] += getattr(choice, "token_ids", None) or []
            logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert ids == [choice.token_ids for choice in whole.choices]
    assert [[e.logprob for e in row] for row in logprobs] == [
        [e.logprob for e in choice.logprobs.content] for choice in whole.choices
    ]
    assert used is not None and used == whole.usage


def test_completions_prompt_forms_and_order(client: Any, model: LoadedModel) -> None:
    ids = model.tokenizer.encode("1 + 1")
    for prompt in ("1 + 1", ids, ["1 + 1", "2"], [ids, ids]):
        reply = client.completions.create(model="tiny-wc", prompt=prompt, n=2, seed=1, max_tokens=5)
        count = 2 if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
        assert [choice.index for choice in reply.choices] == list(range(2 * count))
        first = [choice.text for choice in reply.choices][:2]
        assert first == [
            c.text
            for c in client.completions.create(
                model="tiny-wc", prompt="1 + 1", n=2, seed=1, max_tokens=5
            ).choices
        ]


def test_echo_gives_the_prompts_logprobs(client: Any, model: LoadedModel) -> None:
    text = "The answer is 4"
    ids = model.tokenizer.encode(text)
    ((expected, _),) = LLM(model, kv_memory=0.1).loglikelihoods([(ids[:1], ids[1:])])
    for most in (0, 1):
        reply = client.completions.create(
            model="tiny-wc", prompt=text, echo=True, logprobs=1, max_tokens=most, temperature=0
        )
        choice = reply.choices[0]
        assert choice.text.startswith(text) and (choice.text == text or most)
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-5)
        assert len(choice.logprobs.tokens) == len(ids) + most


def test_cached_tokens_are_reported(client: Any) -> None:
    prompt = "Anna has 12 apples and buys 7 more. " * 12
    counts = [client.completions.create(model="tiny-wc", prompt=prompt, max_tokens=1).usage for _ in range(2)]
    assert counts[0].prompt_tokens_details.cached_tokens == 0
    assert counts[1].prompt_tokens_details.cached_tokens == counts[1].prompt_tokens // 64 * 64 > 0


def test_structured_output(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    reply = client.chat.completions.create(
        model="tiny-wc",
        messages=QUESTION,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        temperature=0,
        max_tokens=200,
    )
    assert isinstance(json.loads(reply.choices[0].message.content)["a"], bool)


def test_continue_a_message(client: Any, model: LoadedModel) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "17 + 25 ="}]
    switches = {"continue_final_message": True, "add_generation_prompt": False}
    reply = client.chat.completions.create(
        model="tiny-wc", messages=messages, extra_body=switches, temperature=0, max_tokens=6
    )
    offline = LLM(model, kv_memory=0.1).chat(
        messages, SamplingParams(temperature=0, max_tokens=6), use_tqdm=False, **switches
    )[0]
    assert model.tokenizer.decode(offline.prompt_token_ids).endswith("17 + 25 =")
    assert reply.choices[0].message.content == offline.outputs[0].text
