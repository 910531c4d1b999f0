"""The state of a server: model, engine thread, admission, metrics, and what every endpoint needs of them."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from wcse.answers import MathPool
from wcse.data.fingerprint import fingerprint_models
from wcse.data.grading import classify
from wcse.engine.driver import Driver, Scorer
from wcse.engine.engine import Engine
from wcse.engine.generate import Backend, Prompt
from wcse.engine.llm import to_prompt
from wcse.engine.memory import Memory
from wcse.engine.params import SamplingParams, StepRule
from wcse.models.load import LoadedModel, load_model
from wcse.optimal.policy_file import read_policy
from wcse.prompts import render_chat, render_text
from wcse.reward.generative import GenerativePRM
from wcse.reward.load import load_verifier
from wcse.serve.admission import Admission, Cost, Limits
from wcse.serve.body import read_object
from wcse.serve.errors import ApiError, bad
from wcse.serve.fields import as_api_error, check_names, checked_text
from wcse.serve.loop import EngineLoop
from wcse.serve.metrics import Metrics
from wcse.serve.search import TIMES, Plan, Planner, parse_alias, split_model
from wcse.types import Quantization, WcseError

MOST_CHARS = 32
"""A prompt with more characters than this for each token of the context cannot fit; it is not even tokenised."""

IN_PLACE = 4096
"""Characters or ids of a prompt that is tokenised in the event loop itself, in about a millisecond."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How a server runs.

    Args:
        model: the policy, as for ``LLM``.
        name: what clients call it; None: its own name.
        prm: verifier, as in a recipe; None: only searches without one.
        device, dtype, kv_cache_dtype, quantization: as for ``LLM``; all but the last are the verifier's too.
        prm_quantization: of the verifier's weights.
        kv_memory: GiB for keys and values of policy and verifier together.
        keys: accepted API keys; none: callers on this machine only.
        strategy_policy: policy file of ``wcse optimal`` for these models; it makes ``NAME@auto-2x`` a model.
        structured: take JSON schemas and grammars from requests.
        delimiter: what ends a step of a search.
    """

    model: str
    name: str | None = None
    prm: str | None = None
    prm_family: str | None = None
    strategy_policy: str | None = None
    keys: tuple[str, ...] = ()
    seed: int = 0
    max_num_seqs: int = 256
    max_model_len: int | None = None
    kv_memory: float = 2.0
    max_logprobs: int = 20
    device: str = "cpu"
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    quantization: Quantization | None = None
    prm_quantization: Quantization | None = None
    structured: bool = False
    delimiter: str = "\n\n"
    limits: Limits = field(default_factory=Limits)


class Service:
    """A model being served. ``close`` ends the engine thread."""

    def __init__(self, config: ServeConfig, model: LoadedModel | None = None) -> None:
        """Load everything; ``model`` saves the loading where it is in memory already.

        Raises:
            WcseError: model or verifier cannot be loaded, or an option is out of range.
        """
        self.config = config
        self.model = _shortened(model or _load(config), config.max_model_len)
        self.name = config.name or self.model.name
        self.engine = Engine(self.model, max_rows=config.max_num_seqs, memory=Memory.gib(config.kv_memory))
        pages = self.engine.runner.tree.stats()["total"]
        self.backend = Backend(self.engine, max_logprobs=config.max_logprobs)
        self.scorer = _scorer(config, self.engine)
        self.planner = _planner(config, self.scorer)
        self._verdict = self.scorer.layout.family.writes if isinstance(self.scorer, GenerativePRM) else 0
        self.judge = MathPool()
        driver = Driver(
            self.engine,
            self.scorer,
            params=SamplingParams(),
            rule=StepRule(config.delimiter),
            classify=lambda nodes: classify(nodes, self.judge),
        )
        self.loop = EngineLoop(self.backend, driver)
        # Some pages stay for the prompts' partly filled blocks.
        self.admission = Admission(
            config.limits, context=self.model.context, path_tokens=max(16, pages - 8) * 16
        )
        self.metrics = Metrics(self.name)
        self.started = int(time.time())
        self._count = itertools.count()
        self._session = secrets.token_hex(4)

    def start(self) -> None:
        self.loop.start()

    def close(self) -> None:
        self.loop.close()
        self.judge.close()

    # -- requests ----------------------------------------------------------------------------------------

    @property
    def most_logprobs(self) -> int:
        """Log-probabilities that a request may ask for at each token."""
        most = self.config.max_logprobs
        return self.model.spec.vocab_size if most < 0 else most

    def next_name(self) -> str:
        """A name no other request has: ids and unseeded random numbers come from it."""
        return f"{self._session}-{next(self._count)}"

    async def body(self, request: Request, known: Sequence[str]) -> dict[str, Any]:
        """The request's known fields.

        Raises:
            ApiError: the body is not acceptable, or has unknown fields.
        """
        raw = await read_object(request, self.config.limits.body_bytes)
        lenient = request.headers.get("x-wcse-ignore-unknown", "").lower() in ("1", "true")
        return check_names(raw, known, lenient=lenient)

    def tenant(self, request: Request) -> str:
        """Whose cached prompts a request may share: its key's, "" without keys."""
        return str(request.scope.get("state", {}).get("tenant", ""))

    def plan(self, body: Mapping[str, Any]) -> tuple[str, Plan | None]:
        """The model's name for the reply, and the search that name or ``search`` ask for.

        Raises:
            ApiError: 404 for another model, 400 for a bad search.
        """
        asked = checked_text(body.get("model", self.name), "model")
        name, alias = (asked, None) if asked == self.name else split_model(asked)
        if name != self.name:
            raise ApiError(
                404,
                f"the model {asked[:128]!r} does not exist here; there is {self.name!r}",
                param="model",
                code="model_not_found",
            )
        chosen = dict(body.get("search") or {})
        if TIMES in chosen:  # a setting of aliases only
            raise bad(f"search.{TIMES}", "give n, a number of solutions")
        settings = (parse_alias(alias) if alias else {}) | chosen
        if not settings:
            return self.name, None
        return asked, self.planner.plan(settings, "search" if chosen else "model")

    async def prompt(self, value: str | list[int], name: str = "prompt", *, special: bool = True) -> Prompt:
        """Token ids of a prompt; long text is tokenised beside the event loop.

        Args:
            name: the field that holds it.
            special: text gets the special tokens that the tokenizer adds by itself.

        Raises:
            ApiError: it is empty, too long, or holds ids that the model does not have.
        """
        if len(value) > (MOST_CHARS if isinstance(value, str) else 1) * self.model.context:
            raise self._too_long(len(value), name)
        try:
            prompt = await _beside(len(value), self._encode, value, special)
        except WcseError as error:
            raise as_api_error(error, name) from None
        return self._checked(prompt, name)

    def _encode(self, value: str | list[int], special: bool) -> Prompt:
        if isinstance(value, str) and not special:
            return Prompt(ids=render_text(self.model.tokenizer, value, special=False), text=value)
        return to_prompt(self.model, value)

    async def conversation(self, messages: list[dict[str, str]], switches: Mapping[str, Any]) -> Prompt:
        """Token ids of a conversation under the model's own template.

        Raises:
            ApiError: the template refuses it, or it is too long.
        """
        size = sum(len(m["content"]) for m in messages)
        if size > MOST_CHARS * self.model.context:
            raise self._too_long(size, "messages")
        try:
            ids = await _beside(size, render_chat, self.model.tokenizer, messages, **switches)
        except WcseError as error:
            raise as_api_error(error, "messages") from None
        return self._checked(Prompt(ids=ids), "messages")

    def cost(self, prompts: Sequence[Prompt], params: SamplingParams, plan: Plan | None = None) -> Cost:
        """What the request may take at most."""
        each = plan.rows if plan else params.draws
        # A verifier that writes does so on every step; how many steps a solution has nobody knows before.
        steps = each * params.most_tokens if plan and plan.scored else 0
        width = self.model.spec.vocab_size if params.logprobs == -1 else params.logprobs or 0
        return Cost(
            prompt_tokens=sum(len(p.ids) for p in prompts),
            choices=each * len(prompts),
            new_tokens=params.most_tokens,
            logprobs=width,
            longest=max(len(p.ids) for p in prompts),
            verdicts=steps * self._verdict,
        )

    def _checked(self, prompt: Prompt, param: str) -> Prompt:
        if not prompt.ids:
            raise bad(param, f"{param} has no tokens")
        if len(prompt.ids) >= self.model.context:
            raise bad(
                param,
                f"the prompt has {len(prompt.ids)} tokens and the model's context is {self.model.context}",
                "context_length_exceeded",
            )
        return prompt

    def _too_long(self, length: int, param: str) -> ApiError:
        return bad(
            param,
            f"a prompt of length {length} cannot fit in the model's context of {self.model.context} tokens",
            "context_length_exceeded",
        )


async def _beside(size: int, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call beside the event loop, or at once where that takes less time than changing threads."""
    if size <= IN_PLACE:
        return function(*args, **options)
    return await run_in_threadpool(function, *args, **options)


def _shortened(model: LoadedModel, length: int | None) -> LoadedModel:
    if length is None:
        return model
    if not 2 <= length <= model.context:
        raise WcseError(f"max_model_len={length}: give a number from 2 to {model.context}")
    return replace(model, context=length)


def _planner(config: ServeConfig, scorer: Scorer | None) -> Planner:
    if scorer is None:
        if config.strategy_policy is not None:
            raise WcseError("strategy_policy is for the strategy auto, which needs a verifier; set prm")
        return Planner()
    policy = None
    if config.strategy_policy is not None:
        models = {"policy": config.model, "prm": config.prm}
        policy = read_policy(config.strategy_policy, names=models, inputs=fingerprint_models(models))
    return Planner(scorer.default_agg, scorer.bounded, policy)


def _scorer(config: ServeConfig, engine: Engine) -> Scorer | None:
    if config.prm is None:
        if config.prm_quantization is not None:
            raise WcseError(f"prm_quantization={config.prm_quantization!r} is the verifier's; set prm")
        return None
    return load_verifier(
        config.prm,
        engine,
        kv_memory=engine.runner.memory,
        family=config.prm_family,
        device=config.device,
        dtype=config.dtype,
        kv_cache_dtype=config.kv_cache_dtype,
        quantization=config.prm_quantization,
    )


def _load(config: ServeConfig) -> LoadedModel:
    return load_model(
        config.model,
        device=config.device,
        dtype=config.dtype,
        kv_cache_dtype=config.kv_cache_dtype,
        quantization=config.quantization,
    )
