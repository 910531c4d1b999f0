"""What the server lets in: a request's cost in tokens and rows, against its bounds and the load, before anything
is allocated. Knows numbers only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from wcse.serve.errors import ApiError, bad


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one request, and of all of them together.

    Args:
        body_bytes: largest body.
        prompts: most prompts of one request.
        choices: most completions of one request, all prompts together.
        tokens: most tokens that one request may write, all its completions together.
        verdict_tokens: most tokens that a verifier may write on one search.
        logprob_values: most log-probabilities that one reply may hold.
        running: most requests at once; more are refused with 429.
        running_tokens: most tokens that all running requests may still write, one request excepted.
    """

    body_bytes: int = 4 * 2**20
    prompts: int = 256
    choices: int = 1024
    tokens: int = 2**20
    verdict_tokens: int = 2**24
    logprob_values: int = 2**20
    running: int = 512
    running_tokens: int = 2**22


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request may take.

    Args:
        prompt_tokens: of all its prompts.
        choices: completions of all its prompts; for a search, its budget.
        new_tokens: most tokens of one completion.
        logprobs: log-probabilities wanted for each token.
        longest: tokens of the longest prompt.
        verdicts: tokens that a verifier may write on them.
    """

    prompt_tokens: int
    choices: int
    new_tokens: int
    logprobs: int = 0
    longest: int = 0
    verdicts: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.choices * self.new_tokens + self.verdicts


class Ticket:
    """An admitted request; close it when the request has ended, however it did."""

    def __init__(self, admission: Admission, cost: Cost) -> None:
        self._admission: Admission | None = admission
        self._cost = cost

    def close(self) -> None:
        if self._admission is not None:
            self._admission.leave(self._cost)
            self._admission = None


class Admission:
    """The one place that says yes or no. Lives in the event loop's thread.

    Args:
        context: the model's context in tokens.
        path_tokens: most tokens of one path that the KV memory can hold.
    """

    def __init__(
        self, limits: Limits, *, context: int, path_tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits
        self.context = context
        self.path_tokens = path_tokens
        self.running = 0
        self.tokens = 0
        self._clock = clock
        self._ended: deque[tuple[float, int]] = deque(maxlen=64)

    def enter(self, cost: Cost) -> Ticket:
        """Let a request in.

        Raises:
            ApiError: 400 where it can never be served, 429 with Retry-After where it cannot be now.
        """
        self._check(cost)
        limits = self.limits
        crowded = self.running and self.tokens + cost.tokens > limits.running_tokens
        if self.running >= limits.running or crowded:
            wait = self._wait()
            raise ApiError(
                429, f"the server is busy; try again in {wait} s", headers={"Retry-After": str(wait)}
            )
        self.running += 1
        self.tokens += cost.tokens
        return Ticket(self, cost)

    def leave(self, cost: Cost) -> None:
        self.running -= 1
        self.tokens -= cost.tokens
        self._ended.append((self._clock(), cost.tokens))

    def _check(self, cost: Cost) -> None:
        limits = self.limits
        if cost.longest >= self.context:
            raise bad(
                "prompt",
                f"the prompt has {cost.longest} tokens and the model's context is {self.context}",
                "context_length_exceeded",
            )
        if cost.longest + cost.new_tokens > self.path_tokens:
            raise bad(
                "max_tokens",
                f"prompt and max_tokens are {cost.longest + cost.new_tokens} tokens and the KV memory holds "
                f"{self.path_tokens}; ask for less",
            )
        if cost.choices > limits.choices:
            raise bad("n", f"{cost.choices} completions are more than {limits.choices}")
        if cost.choices * cost.new_tokens > limits.tokens:
            raise bad(
                "max_tokens",
                f"n times max_tokens is {cost.choices * cost.new_tokens}, more than {limits.tokens}",
            )
        if cost.verdicts > limits.verdict_tokens:
            raise bad(
                "max_tokens",
                f"on a search of this size the verifier may write {cost.verdicts} tokens, more than "
                f"{limits.verdict_tokens}; lower the search's n or max_tokens",
            )
        if cost.tokens * cost.logprobs > limits.logprob_values:
            raise bad(
                "logprobs", f"that are more than {limits.logprob_values} log-probabilities in one reply"
            )

    def _wait(self) -> int:
        """Seconds until a part of the load will be gone, at the pace of the last requests."""
        if len(self._ended) < 2:
            return 1
        seconds = max(1e-3, self._ended[-1][0] - self._ended[0][0])
        pace = sum(tokens for _, tokens in self._ended) / seconds
        return max(1, min(60, round(self.tokens / 4 / max(pace, 1.0))))
