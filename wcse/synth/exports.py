"""Kept samples as training rows, in the formats that trainers read. Pure: problems and samples in, rows out.

Column names are TRL's: ``messages``; ``prompt`` and ``completion``; ``chosen`` and ``rejected``; ``label``;
``completions`` and ``labels`` (stepwise supervision). ``rationale`` rows are those of Distilling Step-by-Step
(arXiv 2305.02301). Every row has an ``id`` that is the same however often and wherever it is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from wcse.data.tables import clean
from wcse.synth.record import ProblemSamples, Sample
from wcse.synth.steps import label_steps
from wcse.types import Problem

Row = dict[str, Any]

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_ID = [("id", pa.string()), ("problem_id", pa.string())]
_SOURCE = [*_ID, ("sampler", pa.string())]


@dataclass(frozen=True)
class Context:
    """What rows need besides the samples: the recipe's digest, and each sampler's system turn."""

    digest: str
    system: dict[str, str | None]

    def id(self, *keys: object) -> str:
        """A row's name: equal for equal recipes and samples."""
        content = json.dumps([self.digest, *keys], default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:20]

    def prompt(self, problem: Problem, sampler: str | None = None) -> list[Row]:
        """The messages before the answer."""
        system = self.system.get(sampler) if sampler else None
        head = [{"role": "system", "content": clean(system)}] if system else []
        return [*head, {"role": "user", "content": clean(problem.prompt)}]


Kept = dict[str, list[Sample]]
"""Sampler -> the samples that passed the filters."""

Maker = Callable[[Context, ProblemSamples, Kept], Iterator[Row]]


@dataclass(frozen=True)
class Format:
    """One export: how a problem becomes rows, and their columns. ``joint``: rows mix samplers."""

    rows: Maker
    schema: pa.Schema
    about: str


def answer_message(sample: Sample) -> list[Row]:
    """The assistant's turn."""
    return [{"role": "assistant", "content": clean(sample.text)}]


def _each(kept: Kept) -> Iterator[Sample]:
    for samples in kept.values():
        yield from samples


def _source(context: Context, sample: Sample) -> Row:
    return {"id": context.id(*sample.key), "problem_id": clean(sample.key[0]), "sampler": sample.sampler}


def sft_rows(context: Context, group: ProblemSamples, kept: Kept) -> Iterator[Row]:
    """Conversations."""
    for sample in _each(kept):
        messages = [*context.prompt(group.problem, sample.sampler), *answer_message(sample)]
        yield _source(context, sample) | {
            "messages": messages,
            "answer": clean(sample.answer),
            "score": sample.score,
            "tokens": sample.tokens,
        }


def completion_rows(context: Context, group: ProblemSamples, kept: Kept) -> Iterator[Row]:
    """Plain prompt and completion."""
    for sample in _each(kept):
        texts = {"prompt": clean(group.problem.prompt), "completion": clean(sample.text)}
        yield _source(context, sample) | texts


def dpo_rows(context: Context, group: ProblemSamples, kept: Kept) -> Iterator[Row]:
    """A kept solution against a finished, wrong one of the same sampler; each is used once."""
    for sampler, samples in kept.items():
        wrong = [s for s in group.samples[sampler] if s.complete and s.correct is False]
        seen: dict[str, Sample] = {}
        for sample in wrong:
            seen.setdefault(sample.text, sample)
        for chosen, rejected in zip(samples, seen.values(), strict=False):
            yield _source(context, chosen) | {
                "id": context.id("dpo", chosen.key, rejected.key),
                "prompt": context.prompt(group.problem, sampler),
                "chosen": answer_message(chosen),
                "rejected": answer_message(rejected),
            }


def kto_rows(context: Context, group: ProblemSamples, kept: Kept) -> Iterator[Row]:
    """Kept solutions as desirable; finished, wrong ones as undesirable."""
    for sampler, samples in kept.items():
        wrong = [s for s in group.samples[sampler] if s.complete and s.correct is False]
        for good, bad in zip_longest(samples, wrong):
            for sample, label in ((good, True), (bad, False)):
                if sample is not None:
                    yield _source(context, sample) | {
                        "prompt": context.prompt(group.problem, sampler),
                        "completion": answer_message(sample),
                        "label": label,
                    }


def prm_rows(context: Context, group: ProblemSamples, kept: Kept) -> Iterator[Row]:
    """Steps with exact labels, of all finished solutions: a process reward model needs wrong ones too.

    Solutions without a checkable step are left out: their labels would be guesses.
    """
    for sampler in kept:
        for sample in group.samples[sampler]:
            steps = [step for step in sample.steps if step.strip()]
            labels = label_steps(group.problem, steps) if sample.complete else None
            if labels is None:
                continue
            if sample.correct is False and labels[-1]:
                labels[-1] = False  # true equations, wrong answer: at least its last step is wrong
            yield _source(context, sample) | {
                "prompt": clean(group.problem.prompt),
                "completions": [clean(step.strip()) for step in steps],
                "labels": labels,
            }


def grpo_rows(context: Context, group: ProblemSamples, kept: Kept) -> Iterator[Row]:
    """One prompt a problem with its gold answer, and the share of right samples: its difficulty for the sampler."""
    right = [sample.correct is True for samples in group.samples.values() for sample in samples]
    yield {
        "id": context.id("grpo", group.problem.id),
        "problem_id": clean(group.problem.id),
        "prompt": context.prompt(group.problem),
        "answer": clean(group.problem.answer),
        "right_share": sum(right) / len(right) if right else None,
    }


def rationale_rows(context: Context, group: ProblemSamples, kept: Kept) -> Iterator[Row]:
    """Question, label and rationale apart: the steps before the one that states the answer."""
    for sample in _each(kept):
        yield _source(context, sample) | {
            "input": clean(group.problem.prompt),
            "label": clean(sample.answer),
            "rationale": clean(rationale_of(sample.steps)),
        }


def rationale_of(steps: Sequence[str]) -> str:
    """All steps but the last; a single step is its own rationale."""
    return "".join(steps[:-1]).strip() or "".join(steps).strip()


def _schema(*fields: tuple[str, pa.DataType], source: Sequence[tuple[str, Any]] = _SOURCE) -> pa.Schema:
    return pa.schema([*source, *fields])


_STRING = pa.string()
FORMATS: dict[str, Format] = {
    "sft": Format(
        sft_rows,
        _schema(
            ("messages", _MESSAGES), ("answer", _STRING), ("score", pa.float64()), ("tokens", pa.int64())
        ),
        "conversations for supervised fine-tuning",
    ),
    "prompt_completion": Format(
        completion_rows, _schema(("prompt", _STRING), ("completion", _STRING)), "plain prompt and completion"
    ),
    "dpo": Format(
        dpo_rows,
        _schema(("prompt", _MESSAGES), ("chosen", _MESSAGES), ("rejected", _MESSAGES)),
        "preference pairs: a kept solution and a wrong one of the same problem",
    ),
    "kto": Format(
        kto_rows,
        _schema(("prompt", _MESSAGES), ("completion", _MESSAGES), ("label", pa.bool_())),
        "single solutions, desirable or not",
    ),
    "prm": Format(
        prm_rows,
        _schema(("prompt", _STRING), ("completions", pa.list_(_STRING)), ("labels", pa.list_(pa.bool_()))),
        "steps with exact labels, for process reward models",
    ),
    "grpo": Format(
        grpo_rows,
        _schema(("prompt", _MESSAGES), ("answer", _STRING), ("right_share", pa.float64()), source=_ID),
        "prompts with gold answers, for reinforcement learning",
    ),
    "rationale": Format(
        rationale_rows,
        _schema(("input", _STRING), ("label", _STRING), ("rationale", _STRING)),
        "question, label and rationale, for Distilling Step-by-Step",
    ),
}
