"""A ``rollout_func`` for TRL's ``GRPOTrainer``: completions by our engine, with step scores as extra fields.

The trainer's weights are taken over whenever its ``global_step`` has moved. The completions of equal prompts
are one search, so their prompt is read once. Extra keys (``step_scores``, ``step_ends``, ``node_path``) reach
reward functions as keyword arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wcse.adapters.rollouts import Rollout, rollouts
from wcse.engine.driver import Driver, Job, Scorer
from wcse.engine.engine import Engine
from wcse.engine.llm import swap_weights
from wcse.engine.memory import Memory
from wcse.engine.params import SamplingParams, StepRule
from wcse.models.load import LoadedModel, load_model
from wcse.prompts import render_chat, render_text
from wcse.reward.load import load_verifier
from wcse.search import SearchConfig, get_strategy
from wcse.types import Node, Search, WcseError

Conversation = str | Sequence[Mapping[str, Any]]


class TrlRollout:
    """Callable as ``rollout_func(prompts, trainer)``.

    Args:
        model: where tokenizer, shape and first weights come from; the trainer's model must be the same.
        prm: verifier whose step scores are handed on; None: no scores.
        strategy: what draws the completions of a prompt; its budget is the number of equal prompts.
        delimiter: what ends a step.
        kv_memory, max_num_seqs: as for ``LLM``.

    Raises:
        WcseError: a model cannot be loaded, or the strategy needs a verifier.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        *,
        prm: str | None = None,
        strategy: str = "majority",
        delimiter: str = "\n\n",
        kv_memory: float = 2.0,
        max_num_seqs: int = 256,
    ) -> None:
        loaded = model if isinstance(model, LoadedModel) else load_model(model)
        self.engine = Engine(loaded, max_rows=max_num_seqs, memory=Memory.gib(kv_memory))
        self.rule = StepRule(delimiter)
        self.scorer: Scorer | None = None
        if prm is not None:
            self.scorer = load_verifier(prm, self.engine, kv_memory=kv_memory)
        name, self.strategy = get_strategy("best_of_n" if prm and strategy == "majority" else strategy)
        if self.strategy.needs_prm and self.scorer is None:
            raise WcseError(f"strategy={name!r} needs a verifier; set prm")
        self._step = 0
        self._calls = 0

    def __call__(self, prompts: Sequence[Conversation], trainer: Any) -> dict[str, list[Any]]:
        """Completions for the trainer's prompts, one for each, equal prompts in a row or not."""
        self._synchronise(trainer)
        groups: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(json.dumps(prompt, sort_keys=True), []).append(i)
        found: list[Rollout | None] = [None] * len(prompts)
        for members, drawn in self._search(prompts, list(groups.values()), _params(trainer.args)):
            for i, rollout in zip(members, drawn, strict=True):
                found[i] = rollout
        self._calls += 1
        whole = [rollout for rollout in found if rollout is not None]
        return {
            "prompt_ids": [r.prompt_ids for r in whole],
            "completion_ids": [r.completion_ids for r in whole],
            "logprobs": [[[logprob] for logprob in r.logprobs] for r in whole],
            "step_scores": [r.step_scores for r in whole],
            "step_ends": [r.step_ends for r in whole],
            "node_path": [r.node_path for r in whole],
        }

    def _search(
        self, prompts: Sequence[Conversation], groups: list[list[int]], params: SamplingParams
    ) -> list[tuple[list[int], list[Rollout]]]:
        driver = Driver(self.engine, self.scorer, params=params, rule=self.rule)
        jobs = [self._job(str(i), prompts[members[0]], len(members)) for i, members in enumerate(groups)]
        results = []
        for outcome in driver.run(jobs):
            members, drawn = groups[int(outcome.job.name)], rollouts(outcome)
            if len(drawn) != len(members):
                raise WcseError(f"{len(drawn)} solutions for {len(members)} prompts; use another strategy")
            results.append((members, drawn))
        return results

    def _job(self, name: str, prompt: Conversation, n: int) -> Job:
        default = self.scorer.default_agg if self.scorer else "last"
        config = SearchConfig(n=n).with_default(default)
        self.strategy.check(config)
        tokenizer = self.engine.model.tokenizer
        plain = isinstance(prompt, str)
        ids = render_text(tokenizer, str(prompt)) if plain else render_chat(tokenizer, prompt)  # type: ignore[arg-type]
        text = str(prompt) if plain else str(prompt[-1]["content"])  # type: ignore[index]

        def search(root: Node) -> Search:
            return self.strategy.run(root, config)

        return Job(name, ids, text, search, self._calls)

    def _synchronise(self, trainer: Any) -> None:
        """Take over the trainer's weights when it has made a step since."""
        step = int(trainer.state.global_step)
        if step != self._step:
            model = trainer.accelerator.unwrap_model(trainer.model)
            swap_weights(self.engine, {name: t.detach().cpu() for name, t in model.state_dict().items()})
            self._step = step


def _params(args: Any) -> SamplingParams:
    """The trainer's sampling settings."""
    return SamplingParams(
        temperature=float(args.temperature),
        top_p=float(getattr(args, "top_p", 1.0)),
        top_k=int(getattr(args, "top_k", 0) or 0),
        min_p=float(getattr(args, "min_p", 0.0) or 0.0),
        repetition_penalty=float(getattr(args, "repetition_penalty", 1.0)),
        max_tokens=int(args.max_completion_length),
    )
