"""Whether a verifier's incremental scores are those of a plain forward over the full text.

The other side is transformers: its model class for the checkpoint's ``model_type``, filled with the checkpoint's
tensors one by one, reads each path from its first token without any cache; the head is applied in plain torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from wcse.models.hf import open_hf
from wcse.models.load import find_model, read_config
from wcse.reward.generative import GenerativePRM
from wcse.reward.head import Head
from wcse.reward.layout import Reading
from wcse.reward.readers import HeadReader
from wcse.reward.scorer import ImplicitPRM
from wcse.reward.text import TextPRM, score_texts
from wcse.types import WcseError

TOLERANCE = 1e-4

SAMPLE = (
    "Natalia sold 48 clips in April and half as many in May. How many clips did she sell in the two months?",
    (
        "In May she sold 48 / 2 = 24 clips.",
        "Together that is 48 + 24 = 72 clips.",
        "The answer is \\boxed{72}.",
    ),
)
"""A problem and a solution, for ``check`` without a file."""


@dataclass(frozen=True)
class StepCheck:
    """One step: how it was read, its score, and the score of the full text."""

    reading: Reading
    score: float
    expected: float

    @property
    def difference(self) -> float:
        """Absolute, relative to scores larger than one."""
        return abs(self.score - self.expected) / max(1.0, abs(self.expected))

    @property
    def passed(self) -> bool:
        """Within ``TOLERANCE``; NaN is not."""
        return self.difference <= TOLERANCE


def check(prm: TextPRM, path: str, problem: str, steps: Sequence[str]) -> list[StepCheck]:
    """Score a finished solution both ways.

    Args:
        prm: ``load_prm(path)``.
        path: the model, a folder of safetensors.
        problem, steps: texts, the steps without delimiters.

    Raises:
        WcseError: the text cannot be read as the family asks, or transformers cannot run the model.
    """
    readings = [
        prm.layout.read(problem, steps[: i + 1], ended=i + 1 == len(steps)) for i in range(len(steps))
    ]
    (scores,) = score_texts(prm, problem, [steps])
    expected = _full_text(prm, path, len(prm.layout.prefix(problem)), readings)
    return [
        StepCheck(reading, _known(prm, mine), _known(prm, theirs))
        for reading, mine, theirs in zip(readings, scores, expected, strict=True)
    ]


def _known(prm: TextPRM, score: float) -> float:
    """A verdict that cannot be parsed is one that both sides can agree on: -1."""
    return -1.0 if prm.layout.family.head == "verdict" and math.isnan(score) else score


def _full_text(prm: TextPRM, path: str, prompt: int, readings: Sequence[Reading]) -> list[float]:
    if isinstance(prm, GenerativePRM):
        return [_verdict(prm, path, reading) for reading in readings]
    if not isinstance(prm, ImplicitPRM):
        assert isinstance(prm.reader, HeadReader)
        states = torch.stack([hidden[-1] for hidden in _forward(path, readings)])
        return _scores(prm.reader.head, states, bounded=prm.bounded).tolist()
    sums = [
        [_logprob(side.runner.decoder.spec.final_softcap, name, h, r.ids, prompt) for h, r in pairs]
        for side, name in ((prm.model, path), (prm.reference, prm.reference.layout.source))
        for pairs in [list(zip(_forward(name, readings), readings, strict=True))]
    ]
    z = prm.bias + prm.beta * (torch.tensor(sums[0]) - torch.tensor(sums[1]))
    return (z.sigmoid() if prm.bounded else z).tolist()


def _scores(head: Head, states: torch.Tensor, *, bounded: bool) -> torch.Tensor:
    """The head in plain torch."""
    for i, (weight, bias) in enumerate(head.layers):
        states = torch.nn.functional.linear(torch.relu(states) if i else states, weight, bias)
    z = states[:, 1] - states[:, 0] if states.shape[1] == 2 else states[:, 0]
    return z.sigmoid() if bounded else z


def _verdict(prm: GenerativePRM, path: str, reading: Reading) -> float:
    """The likeliest tokens one by one, each from a forward over everything before it; then as the family says."""
    model, family = _transformers_model(path), prm.layout.family
    output = _output_matrix(path)
    ids, written = reading.ids + reading.tail, list[int]()
    with torch.no_grad():
        while len(written) < family.writes:
            state = model(torch.tensor([ids + written])).last_hidden_state[0, -1]
            written.append(int((output @ state).argmax()))
            if written[-1] in prm.engine.model.eos_ids:
                break
        if prm.head is None:
            found = re.findall(
                str(family.verdict), prm.layout.tokenizer.decode(written, skip_special_tokens=True)
            )
            return float(found[-1] in family.right) if found else math.nan
        written = [token for token in written if token not in prm.engine.model.eos_ids]
        state = model(torch.tensor([ids + written + prm.layout.ask_ids])).last_hidden_state[0, -1:]
    return float(_scores(prm.head, state, bounded=True)[0])


def _output_matrix(path: str) -> torch.Tensor:
    weights = open_hf(find_model(path))
    return weights.tensor("lm_head.weight" if "lm_head.weight" in weights else "embed_tokens.weight").float()


def _logprob(cap: float, path: str, hidden: torch.Tensor, ids: Sequence[int], prompt: int) -> float:
    """log p of the ids after the prompt, from the states of all of them."""
    logits = hidden[prompt - 1 : -1] @ _output_matrix(path).T
    logits = cap * torch.tanh(logits / cap) if cap else logits
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(ids[prompt:])[:, None])
    return float(chosen.double().sum())


def _forward(path: str, readings: Sequence[Reading]) -> list[torch.Tensor]:
    """Final-norm hidden states [tokens, hidden size] of each whole path."""
    model = _transformers_model(path)
    with torch.no_grad():
        return [model(torch.tensor([r.ids + r.tail])).last_hidden_state[0] for r in readings]


def _transformers_model(path: str) -> Any:
    """The bare decoder, every weight from the file: nothing may be left newly initialised."""
    folder = find_model(path)
    if folder.suffix == ".gguf":
        raise WcseError(f"{path}: only a folder of safetensors can be compared with transformers")
    config = {
        key: value for key, value in read_config(path).items() if key not in ("auto_map", "architectures")
    }
    weights = open_hf(folder)
    try:
        kind = config.pop("model_type")
        model = AutoModel.from_config(AutoConfig.for_model(kind, **config), dtype=torch.float32).eval()
        model.load_state_dict({name: weights.tensor(name) for name in model.state_dict()})
    except (KeyError, ValueError, RuntimeError) as error:
        raise WcseError(
            f"{path}: transformers cannot run this model ({error}); it cannot be checked"
        ) from error
    return model
