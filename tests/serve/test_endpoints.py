"""The endpoints beside OpenAI's, and other engines' protocols: tokens, pooling, scores, metrics, searches over HTTP."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import Any

import pytest
from doc_examples import run_examples
from live_server import GENERATE, QUESTION, Live

from wcse.adapters.remote import LocalVerifier, RemoteSearch
from wcse.adapters.token_backend import Completions, Generate
from wcse.engine.llm import LLM
from wcse.engine.params import FieldError, SamplingParams
from wcse.models.load import LoadedModel
from wcse.reward.load import load_prm


def test_tokens_there_and_back(live: Live, model: LoadedModel) -> None:
    status, reply = live.post("/tokenize", {"prompt": "1 + 1 = 2", "return_token_strs": True})
    assert status == 200 and reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    assert live.post("/detokenize", {"tokens": reply["tokens"]})[1]["prompt"] == "1 + 1 = 2"
    chat = live.post("/tokenize", {"messages": QUESTION})[1]
    assert chat["tokens"] == model.tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_dict=False
    )
    assert live.call("GET", "/tokenizer_info")[2]["eos_token"] == model.tokenizer.eos_token


def test_health_version_metrics(live: Live) -> None:
    assert live.call("GET", "/health")[2] == {"status": "ok"}
    assert live.call("GET", "/version")[2]["version"]
    live.post("/v1/completions", GENERATE)
    page = live.call("GET", "/metrics")[2]
    for name in ("num_requests_running", "kv_cache_usage_perc", "generation_tokens_total", "search_nodes"):
        assert f"wcse:{name}" in page
    assert "Calculate" not in page


def test_pooling_and_score(live: Live) -> None:
    status, reply = live.post("/pooling", {"input": ["a b", "c"], "task": "embed"})
    assert status == 200 and len(reply["data"]) == 2
    assert math.fsum(x * x for x in reply["data"][0]["data"]) == pytest.approx(1, abs=1e-3)
    reply = live.post("/score", {"text_1": "a b", "text_2": ["a b", "zzz"]})[1]
    assert reply["data"][0]["score"] == pytest.approx(1) and reply["data"][1]["score"] < 0.9999


def test_tokens_in_tokens_out(live: Live, model: LoadedModel) -> None:
    ids = model.tokenizer.encode("1 + 1 =")
    params = {"logprobs": 1, "max_tokens": 6, "temperature": 0, "skip_special_tokens": False}
    body = {"request_id": "r1", "model": "tiny-wc", "token_ids": ids, "sampling_params": params}
    status, reply = live.post("/inference/v1/generate", body | {"cache_salt": "s"})
    choice = reply["choices"][0]
    assert status == 200 and reply["request_id"] == "r1" and reply["prompt_token_ids"] == ids
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])
    for entry, token in zip(choice["logprobs"]["content"], choice["token_ids"], strict=True):
        assert entry["token"] == f"token_id:{token}" and entry["token_id"] == token and entry["rank"] == 1
        assert math.isfinite(entry["logprob"])


def test_searches_over_this_server_as_another_engine(live: Live, capsys: Any) -> None:
    run_examples("backends.md", {"http://127.0.0.1:8000": live.url})
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("True ") and all(line.startswith("False ") for line in others)


@pytest.mark.parametrize("strategy", ["majority", "beam_search"])
def test_a_search_over_tokens_is_the_one_over_completions(
    live: Live, model: LoadedModel, strategy: str
) -> None:
    """``/inference/v1/generate`` and ``/v1/completions`` drive a search to the same ids, scores and answers."""
    prm = load_prm("tiny-wc-prm", kv_memory=0.1)

    async def run(server: Any) -> list[Any]:
        verifier = LocalVerifier(prm)
        ids = await server.chat_ids(QUESTION)
        params = SamplingParams(temperature=0.8, max_tokens=48)
        search = RemoteSearch(server, verifier=verifier, params=params, delimiter="\n\n", seed=2)
        found = await search.solve(ids, QUESTION[0]["content"], strategy=strategy, n=4)
        await server.close()
        return [(part.node.completion_ids, part.node.completion, part.score, part.answer) for part in found]

    url = f"{live.url}/v1"
    tokens = Generate(url, "tiny-wc", decode=partial(model.tokenizer.decode, skip_special_tokens=True))
    found = asyncio.run(run(tokens))
    assert found and found == asyncio.run(run(Completions(url, "tiny-wc")))


@pytest.mark.parametrize("kind", ["completions", "generate"])
def test_a_token_backend_passes_sampling_parameters_or_refuses_them(
    live: Live, model: LoadedModel, kind: str
) -> None:
    """One request draws the same tokens over HTTP as in process, with every parameter that is passed."""
    ids = model.tokenizer.encode("Calculate 17 + 25.")
    plain = {"max_tokens": 12, "temperature": 0.9, "seed": 3}
    eos, letter = model.tokenizer.eos_token_id, model.tokenizer.encode("1")[-1]
    settings: list[dict[str, Any]] = [
        {"min_tokens": 9},
        {"ignore_eos": True},
        {"stop_token_ids": [letter]},
        {"presence_penalty": 2.0, "frequency_penalty": 1.0},
        {"logit_bias": {letter: 50.0}},
        {"allowed_token_ids": [letter, eos]},
        {"bad_words": ["1", "7"]},
        {"structured_outputs": {"regex": "x{1,5}"}},
    ]
    refused = ({"best_of": 2}, {"logprobs": 0}, {"prompt_logprobs": 0}, {"skip_special_tokens": False})

    async def run() -> list[tuple[int, ...]]:
        url = f"{live.url}/v1"
        decode = partial(model.tokenizer.decode, skip_special_tokens=True)
        server = (
            Completions(url, "tiny-wc") if kind == "completions" else Generate(url, "tiny-wc", decode=decode)
        )
        for one in (*refused, {"detokenize": False}):
            with pytest.raises(FieldError, match=f"^{next(iter(one))}="):
                await server.complete(ids, SamplingParams(**one))
        found = [(await server.complete(ids, SamplingParams(**plain | one)))[0] for one in settings]
        await server.close()
        return [written.token_ids for written in found]

    params = [SamplingParams(**plain | one) for one in settings]
    wanted = LLM(model, kv_memory=0.1).generate([ids] * len(params), params, use_tqdm=False)
    assert asyncio.run(run()) == [tuple(output.outputs[0].token_ids) for output in wanted]
