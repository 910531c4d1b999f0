"""A language model as a judge of reasoning: over any OpenAI-compatible endpoint, or in this process.

Its verdicts go to a CSV file of labels, one line as soon as it is known, so a stopped run goes on. Solutions reach
the judge as quoted text; what it answers is read as one word and never acted on.
"""

from __future__ import annotations

import csv
import http.client
import json
import os
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from wcse.synth.judges import LABEL_COLUMNS, read_labels
from wcse.synth.record import ProblemSamples, Sample
from wcse.synth.steps import Reasoning
from wcse.types import Problem, WcseError

Ask = Callable[[str], str]
"""From a prompt to the model's answer."""

PROMPT = """\
Below are a problem and a solution whose final answer is known to be right. Judge only the reasoning: is every step
correct, and does each follow from the problem and the steps before it?

<problem>
{problem}
</problem>

<solution>
{solution}
</solution>

Think briefly, then end with one line: VERDICT: RIGHT or VERDICT: WRONG"""

_VERDICT = re.compile(r"VERDICT:\W*(RIGHT|WRONG)\b", re.IGNORECASE)


def read_verdict(answer: str) -> Reasoning:
    """The last verdict in an answer; unknown without one."""
    found = _VERDICT.findall(answer)
    return Reasoning(found[-1].lower()) if found else Reasoning.UNKNOWN


def choose(groups: Iterable[ProblemSamples], per_sampler: int, seed: int) -> list[tuple[Problem, Sample]]:
    """Right solutions to judge: one a problem and sampler, drawn by lot, so that verdicts are independent."""
    found: dict[str, list[tuple[Problem, Sample]]] = {}
    for group in groups:
        for sampler, samples in group.samples.items():
            right = [sample for sample in samples if sample.complete and sample.correct]
            if right:
                rng = random.Random(f"{seed}|{sampler}|{group.problem.id}")
                found.setdefault(sampler, []).append((group.problem, rng.choice(right)))
    chosen = []
    for sampler, pairs in sorted(found.items()):
        random.Random(f"{seed}|{sampler}").shuffle(pairs)
        chosen += pairs[:per_sampler]
    return chosen


def judge_all(pairs: Iterable[tuple[Problem, Sample]], ask: Ask, path: Path) -> dict[Reasoning, int]:
    """Ask about every pair that the file at ``path`` lacks, and append the verdicts to it; returns all counts.

    Raises:
        WcseError: the file cannot be read or written, or the judge cannot be asked.
    """
    known = dict(read_labels(path)) if path.exists() else {}
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if not file.tell():
                writer.writerow(LABEL_COLUMNS)
            for problem, sample in pairs:
                if sample.key not in known:
                    known[sample.key] = read_verdict(
                        ask(PROMPT.format(problem=problem.prompt, solution=sample.text))
                    )
                    writer.writerow([*sample.key, known[sample.key].value])
                    file.flush()
                    os.fsync(file.fileno())
    except OSError as error:
        raise WcseError(f"out={str(path)!r}: cannot be written: {error.strerror or error}") from error
    verdicts = list(known.values())
    return {verdict: verdicts.count(verdict) for verdict in Reasoning}


def endpoint(
    base_url: str, model: str, *, key: str | None = None, timeout: float = 120.0, max_tokens: int = 512
) -> Ask:
    """Ask ``POST base_url/chat/completions`` greedily.

    Raises:
        WcseError: the address is not one; later, from asking: it does not answer, or not as such an endpoint does.
    """
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise WcseError(f"endpoint={base_url!r}: give an address such as http://localhost:8000/v1")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def ask(prompt: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
        connection = kind(str(url.hostname), url.port, timeout=timeout)
        try:
            content = json.dumps(body | {"temperature": 0, "max_tokens": max_tokens})
            connection.request("POST", f"{url.path.rstrip('/')}/chat/completions", content, headers)
            response = connection.getresponse()
            data = response.read()
            if response.status != 200:
                raise WcseError(
                    f"endpoint={base_url!r}: status {response.status}: {data[:200].decode(errors='replace')}"
                )
            return str(json.loads(data)["choices"][0]["message"]["content"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
            if isinstance(error, WcseError):
                raise
            raise WcseError(
                f"endpoint={base_url!r}: no usable answer ({type(error).__name__}: {error}); verdicts so far are stored"
            ) from error
        finally:
            connection.close()

    return ask


def own_engine(model: str, max_tokens: int = 512) -> Ask:
    """Ask a model in this process, greedily.

    Raises:
        WcseError: the model cannot be loaded, or has no chat template.
    """
    from wcse.engine.llm import LLM
    from wcse.engine.params import SamplingParams

    llm = LLM(model)

    def ask(prompt: str) -> str:
        (output,) = llm.chat(
            [{"role": "user", "content": prompt}], SamplingParams(temperature=0, max_tokens=max_tokens)
        )
        return output.outputs[0].text

    return ask
