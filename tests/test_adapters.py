"""Adapters that need no other tool: rollouts, weights swapped in place, asynchronous calls, the vLLM shim."""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from doc_examples import run_examples
from transformers import AutoModelForCausalLM

from wcse import zoo
from wcse.adapters.async_llm import AsyncLLM
from wcse.adapters.ray_data import Completions
from wcse.adapters.remote import LocalVerifier, RemoteSearch
from wcse.adapters.rollouts import rollouts
from wcse.adapters.trl_rollout import TrlRollout
from wcse.adapters.vllm_shim import make_module
from wcse.engine.driver import Driver, Job
from wcse.engine.engine import Engine
from wcse.engine.llm import LLM
from wcse.engine.params import FieldError, SamplingParams, StepRule
from wcse.models.load import LoadedModel, load_model
from wcse.prompts import render_chat
from wcse.reward.load import load_prm, load_shared_head
from wcse.reward.text import score_texts
from wcse.search import STRATEGIES, SearchConfig
from wcse.types import Node, Search, WcseError

QUESTION = [{"role": "user", "content": "Calculate 17 + 25."}]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("tiny-wc")


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(zoo.path("tiny-wc"), dtype=torch.float32)


def test_rollouts_are_exact(model: LoadedModel, reference: Any) -> None:
    engine = Engine(model, num_pages=2048)
    config = SearchConfig(n=8, beam_width=2, num_iterations=4, agg_strategy="last")

    def search(root: Node) -> Search:
        return STRATEGIES["beam_search"].run(root, config)

    driver = Driver(engine, load_shared_head(engine), params=SamplingParams(max_tokens=60), rule=StepRule())
    ids = model.tokenizer.encode("Calculate 17 + 25 + 3.")
    (outcome,) = driver.run([Job("p", ids, "Calculate 17 + 25 + 3.", search, 1)])
    found = rollouts(outcome)
    assert len(found) == len(outcome.solutions) > 1 and found[0].shared_tokens == 0
    seen: list[list[int]] = []
    for rollout in found:
        written = rollout.completion_ids
        truth = reference(torch.tensor([ids + written])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        want = truth.gather(1, torch.tensor(written)[:, None])[:, 0]
        assert rollout.prompt_ids == ids
        assert rollout.logprobs == pytest.approx(want.tolist(), abs=1e-4)
        assert rollout.step_ends[-1] == len(written) and len(rollout.step_scores) == len(rollout.step_ends)
        shared = rollout.shared_tokens
        assert shared == 0 or any(other[:shared] == written[:shared] for other in seen)
        seen.append(written)
        assert json.loads(json.dumps(rollout.to_json()))["completion_ids"] == written


def test_weights_are_swapped_in_place(model: LoadedModel, reference: Any) -> None:
    llm = LLM(model, kv_memory=0.1)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    prompt = "The cake is in the oven. " * 20
    before = llm.generate(prompt, params, use_tqdm=False)[0]
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    state["model.norm.weight"] = -state["model.norm.weight"]
    llm.load_weights(state)
    changed = llm.generate(prompt, params, use_tqdm=False)[0]
    assert changed.num_cached_tokens == 0, "keys and values of the old weights are gone"
    assert changed.outputs[0].token_ids != before.outputs[0].token_ids
    llm.load_weights(reference.state_dict())
    again = llm.generate(prompt, params, use_tqdm=False)[0]
    assert again.outputs[0].token_ids == before.outputs[0].token_ids
    with pytest.raises(WcseError, match=r"norm\.weight"):
        llm.load_weights({k: v for k, v in state.items() if k != "model.norm.weight"})
    with pytest.raises(WcseError, match="merge it"):
        llm.load_weights({"model.lora_A": state["model.norm.weight"]})


@pytest.mark.parametrize("copies", [1, 4])
def test_trl_rollout_keeps_the_order_of_prompts(model: LoadedModel, copies: int) -> None:
    args = SimpleNamespace(temperature=1.0, max_completion_length=16)
    trainer = SimpleNamespace(args=args, state=SimpleNamespace(global_step=0))
    rollout = TrlRollout(model, prm="shared", kv_memory=0.1)
    prompts: list[Any] = [[{"role": "user", "content": f"Calculate {a} + 1."}] for a in range(3)]
    batch = [prompt for prompt in prompts for _ in range(copies)]
    found = rollout(batch, trainer)
    lengths = {key: len(value) for key, value in found.items()}
    assert set(lengths.values()) == {3 * copies}
    for i, ids in enumerate(found["prompt_ids"]):
        assert model.tokenizer.decode(ids).count(f"Calculate {i // copies} + 1.") == 1
        assert len(found["logprobs"][i]) == len(found["completion_ids"][i])
    assert all(0 <= score <= 1 for row in found["step_scores"] for score in row if score is not None)


def test_async_calls_share_the_batch(model: LoadedModel) -> None:
    params = SamplingParams(max_tokens=12, seed=2)
    offline = LLM(model, kv_memory=0.1).chat(QUESTION, params, use_tqdm=False)[0]

    async def ask(llm: AsyncLLM) -> list[Any]:
        return list(await asyncio.gather(*(llm.chat(QUESTION, params) for _ in range(12))))

    with AsyncLLM(model, kv_memory=0.1) as llm:
        outputs = asyncio.run(ask(llm))
        with pytest.raises(WcseError, match="context"):
            asyncio.run(llm.generate([1] * 5000, params))

        async def give_up() -> None:
            task = asyncio.create_task(llm.generate("x", SamplingParams(max_tokens=900, ignore_eos=True)))
            await asyncio.sleep(0)
            task.cancel()

        asyncio.run(give_up())
        asyncio.run(llm.generate("x", SamplingParams(max_tokens=1)))
    assert all(o.outputs[0].token_ids == offline.outputs[0].token_ids for o in outputs)
    assert llm.llm.engine.runner.tree.stats()["pinned"] == 0


def test_a_vllm_script_runs_unchanged(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys
from vllm import LLM, SamplingParams
from vllm.outputs import RequestOutput

llm = LLM(model=sys.argv[1], gpu_memory_utilization=0.5, enable_prefix_caching=True, seed=1, tensor_parallel_size=1)
params = SamplingParams(n=2, temperature=0.8, max_tokens=8, stop=["\\n\\n"], include_stop_str_in_output=True)
outputs = llm.generate(["1 + 1", "2 + 2"], params, use_tqdm=False)
assert isinstance(outputs[0], RequestOutput)
print(len(outputs), [len(o.outputs) for o in outputs])
try:
    LLM(model=sys.argv[1], made_up=1)
except TypeError as error:
    print("refused", "made_up" in str(error))
"""
    )
    command = [sys.executable, "-m", "wcse.adapters.vllm_shim", str(script), "tiny-wc"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split("\n")[:2] == ["2 [2, 2]", "refused True"], done.stderr


def test_vllms_parameters_can_be_set_afterwards() -> None:
    """search-and-learn copies its parameters and then sets the temperature of the copy to 0."""
    given = make_module().SamplingParams(temperature=0.8, max_tokens=8, stop=["\n\n"], n=1)
    changed = copy.deepcopy(given)
    changed.temperature = 0.0
    assert (given.temperature, changed.temperature, changed.stop) == (0.8, 0.0, ("\n\n",))
    with pytest.raises(WcseError, match="temperature"):
        changed.temperature = -1
    with pytest.raises(WcseError, match="did you mean 'temperature'"):
        changed.temprature = 1


def test_ray_batches_gain_columns() -> None:
    batch = {"prompt": np.array(["1 + 1 =", "2 + 2 ="]), "id": np.array([1, 2])}
    found = Completions("tiny-wc", params={"n": 2, "max_tokens": 4, "seed": 1}, kv_memory=0.1)(batch)
    assert list(found["id"]) == [1, 2] and [len(texts) for texts in found["completions"]] == [2, 2]
    assert all(1 <= count <= 4 for counts in found["completion_tokens"] for count in counts)
    chats = Completions("tiny-wc", messages="talk", params={"max_tokens": 4}, kv_memory=0.1)
    assert len(chats({"talk": [QUESTION]})["completions"]) == 1
    with pytest.raises(WcseError, match="no column 'talk'"):
        chats(batch)


@pytest.mark.parametrize("strategy", ["majority", "best_of_n", "beam_search", "rebase"])
def test_searches_over_a_token_backend(model: LoadedModel, strategy: str) -> None:
    """Ids, log-probabilities and scores are those of the engine and of the verifier, whoever drove them."""
    prm = load_prm("tiny-wc-prm", kv_memory=0.1)
    problem = "Calculate 17 + 25 + 3."
    ids = render_chat(model.tokenizer, [{"role": "user", "content": problem}])
    params = SamplingParams(temperature=0.8, max_tokens=60)

    async def run(llm: AsyncLLM) -> list[Any]:
        search = RemoteSearch(llm, verifier=LocalVerifier(prm), params=params, delimiter="\n", seed=3)
        with pytest.raises(WcseError, match="beam_width"):
            await search.solve(ids, problem, strategy="beam_search", n=5)
        return [await search.solve(ids, problem, strategy=strategy, n=4) for _ in range(2)]

    with AsyncLLM(model, kv_memory=0.1) as llm:
        found, again = asyncio.run(run(llm))
    assert 1 <= len(found) <= 4 and found[0].selected
    assert [f.node.completion_ids for f in found] == [f.node.completion_ids for f in again]
    for part in found:
        node = part.node
        assert len(node.completion_ids) <= 60 and node.finish in ("eos", "path_cap")
        read = LLM(model, kv_memory=0.1).loglikelihoods([(ids, node.completion_ids)])[0][0]
        assert [x for step in node.steps() for x in step.logprobs] == pytest.approx(read, abs=1e-4)
        if strategy != "majority":
            steps = [step.text.strip() for step in node.steps() if step.text.strip()]
            assert node.scores == pytest.approx(score_texts(prm, problem, [steps], complete=node.complete)[0])


def _refused(run: Any, *names: str) -> None:
    for name in names:
        with pytest.raises(FieldError, match=f"^{name}=") as caught:
            asyncio.run(run(name))
        assert caught.value.field == name


def test_what_a_search_by_steps_cannot_pass_is_refused(model: LoadedModel) -> None:
    set_to: dict[str, Any] = {
        "min_tokens": 2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "structured_outputs": {"regex": "a"},
    }
    with AsyncLLM(model, kv_memory=0.1) as llm:

        async def run(name: str, verified: bool = True) -> int:
            params = SamplingParams(max_tokens=8, **{name: set_to[name]})
            search = RemoteSearch(llm, verifier=NoVerdict() if verified else None, params=params)
            strategy = "best_of_n" if verified else "majority"
            return len(await search.solve(model.tokenizer.encode("1 + 1"), "1 + 1", strategy=strategy, n=2))

        _refused(run, *set_to)
        assert asyncio.run(run("min_tokens", False)), "a whole solution is one request"


class NoVerdict:
    """A verifier that is never asked."""

    default_agg = "last"

    async def score(self, problem: str, steps: Any, *, complete: bool) -> list[float]:
        raise AssertionError


def test_the_example_for_vllm_users(capsys: pytest.CaptureFixture[str]) -> None:
    run_examples("vllm.md")
    assert capsys.readouterr().out.strip()
