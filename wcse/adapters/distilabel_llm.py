"""distilabel's ``LLM`` over our engine: all inputs of a step and all their generations in one batch."""

from __future__ import annotations

from typing import Any

from distilabel.models.llms.base import LLM as BaseLLM
from pydantic import PrivateAttr

from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams


class WcseLLM(BaseLLM):
    """A model inside the pipeline's process.

    Attributes:
        model: as for ``wcse.LLM``.
        kv_memory: GiB for keys and values.
        seed: of all random numbers.
    """

    model: str
    kv_memory: float = 2.0
    seed: int = 0
    _llm: LLM | None = PrivateAttr(None)

    def load(self) -> None:
        """Loads the model."""
        super().load()
        self._llm = LLM(self.model, kv_memory=self.kv_memory, seed=self.seed)

    def unload(self) -> None:
        """Frees the model."""
        self._llm = None
        super().unload()

    @property
    def model_name(self) -> str:
        """The model's name."""
        return self.model

    def generate(
        self,
        inputs: list[Any],
        num_generations: int = 1,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = -1,
        min_p: float = 0.0,
        stop: list[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Generates `num_generations` responses for each input.

        Args:
            inputs: conversations in OpenAI's format.
            num_generations: responses for each input.
            max_new_tokens: most tokens of a response.
            temperature: sampling temperature; 0 takes the most likely token.
            top_p: nucleus probability.
            top_k: most likely tokens kept; -1 keeps all.
            min_p: least share of the best token's probability.
            stop: strings that end a response.

        Returns:
            Generations and token counts of each input.
        """
        params = SamplingParams(
            n=num_generations,
            max_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            stop=tuple(stop or ()),
        )
        assert self._llm is not None  # load() came first
        outputs = self._llm.chat(inputs, params, use_tqdm=False)
        return [
            {
                "generations": [part.text for part in output.outputs],
                "statistics": {
                    "input_tokens": [len(output.prompt_token_ids)] * num_generations,
                    "output_tokens": [len(part.token_ids) for part in output.outputs],
                },
            }
            for output in outputs
        ]
