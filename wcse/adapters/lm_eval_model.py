"""lm-eval (EleutherAI/lm-evaluation-harness) with our models: ``--model wcse``, and answer selection as filters.

``k`` repeats of a request arrive as ``k`` equal requests; they become one prompt with ``k`` completions, whose
prompt is read once. Contexts that many choices share are read once too.

Run it as ``wcse lm-eval --model wcse --model_args pretrained=tiny-wc --tasks ...``; the arguments are lm-eval's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lm_eval.api.filter import Filter
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_filter, register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from wcse.answers import answer_classes, extract_answer
from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams
from wcse.types import WcseError

_RENAMED = {"max_gen_toks": "max_tokens", "until": "stop"}
_DROPPED = ("do_sample", "max_length")


@register_model("wcse")
class WcseLM(TemplateLM):
    """An lm-eval model.

    Args:
        pretrained: model, as for ``LLM``.
        max_length: cap on context and completion; None takes the model's.
        max_gen_toks: most tokens of a completion where a task says nothing.
        max_num_seqs, kv_memory, seed: as for ``LLM``.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        max_num_seqs: int = 256,
        kv_memory: float = 2.0,
        seed: int = 0,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if device not in (None, "cpu"):
            raise WcseError(f"device={device!r}: give 'cpu'")
        length = None if max_length is None else int(max_length)
        self.llm = LLM(
            pretrained,
            seed=int(seed),
            max_num_seqs=int(max_num_seqs),
            kv_memory=float(kv_memory),
            max_model_len=length,
        )
        self.tokenizer = self.llm.get_tokenizer()
        self.max_gen_toks = int(max_gen_toks)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return int(self.eot_token_id if first is None else first)

    @property
    def max_length(self) -> int:
        return self.llm.model.context

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **unused: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitted(context, continuation) for _, context, continuation in requests]
        results = [(sum(logprobs), greedy) for logprobs, greedy in self.llm.loglikelihoods(pairs)]
        for (key, _, _), result in zip(requests, results, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, result)
        return results

    def _fitted(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The end of a pair that is too long, as HFLM cuts it: from the left."""
        continuation = continuation[-self.max_length :]
        return context[-(self.max_length + 1 - len(continuation)) :], continuation

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[Any, list[int], list[int]]] = []
        counts = []
        for request in requests:
            (text,) = request.args
            parts = map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ),
            )
            found = [(None, list(context), list(continuation)) for context, continuation in parts]
            windows += found
            counts.append(len(found))
        scores = iter(self._loglikelihood_tokens(windows))
        totals = [sum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        groups: dict[tuple[str, str], list[int]] = {}
        for i, request in enumerate(requests):
            context, options = request.args
            groups.setdefault((context, json.dumps(options, sort_keys=True)), []).append(i)
        prompts, params = [], []
        for (context, shown), members in groups.items():
            chosen = self._params(json.loads(shown), len(members))
            room = self.max_length - min(chosen.most_tokens, self.max_length - 1)
            prompts.append({"prompt_token_ids": self.tok_encode(context)[-room:]})
            params.append(chosen)
        outputs = self.llm.generate(prompts, params, use_tqdm=not disable_tqdm)
        texts = [""] * len(requests)
        for members, output in zip(groups.values(), outputs, strict=True):
            for i, part in zip(members, output.outputs, strict=True):
                texts[i] = part.text
                self.cache_hook.add_partial("generate_until", requests[i].args, part.text)
        return texts

    def _params(self, options: dict[str, Any], n: int) -> SamplingParams:
        chosen: dict[str, Any] = {"max_tokens": self.max_gen_toks, "temperature": 0.0}
        if options.get("do_sample") and "temperature" not in options:
            chosen["temperature"] = 1.0
        for name, value in options.items():
            if name not in _DROPPED and value is not None:
                chosen[_RENAMED.get(name, name)] = value
        if options.get("do_sample") is False:
            chosen["temperature"] = 0.0
        stop = chosen.get("stop", [])
        stops = [stop] if isinstance(stop, str) else list(stop)
        eos = self.tokenizer.decode([self.eot_token_id])
        # The end-of-sequence token ends a completion by itself; its name is no text to look for.
        chosen["stop"] = [text for text in stops if text and text != eos]
        return SamplingParams(**(chosen | {"n": n}))


@register_filter("wcse_majority")
class MajorityAnswer(Filter):
    """Of a document's repeats, one whose extracted answer is the most frequent; equal answers count together."""

    def apply(self, resps: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
        return [[_elected(list(texts))] for texts in resps]


def _elected(texts: list[str]) -> str:
    classes = answer_classes([extract_answer(text) for text in texts])
    voters = [number for number in classes if number is not None]
    if not voters:
        return texts[0]
    winner = max(voters, key=lambda number: (voters.count(number), -voters.index(number)))
    return texts[classes.index(winner)]


def main() -> None:
    """lm-eval's own command line, with this model in its registry."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
