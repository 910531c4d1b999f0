"""Completions inside Ray Data: ``dataset.map_batches(Completions, fn_constructor_kwargs=..., concurrency=...)``.

Each actor loads the model once; every batch is one batch of ours. Imports nothing of Ray: Ray calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams
from wcse.types import WcseError


class Completions:
    """Adds ``completions``, ``completion_tokens`` and ``finish_reasons`` (lists, one entry a completion) to rows.

    Args:
        model: as for ``LLM``.
        params: fields of ``SamplingParams``.
        prompt: column with a text each; its rows are completed as they stand.
        messages: column with a conversation each; used instead of ``prompt``.
        options: as for ``LLM``.

    Raises:
        WcseError: the model cannot be loaded, or a parameter is wrong.
    """

    def __init__(
        self,
        model: str,
        *,
        params: Mapping[str, Any] | None = None,
        prompt: str = "prompt",
        messages: str | None = None,
        **options: Any,
    ) -> None:
        self._params = SamplingParams(**(params or {}))
        self._column = messages or prompt
        self._chat = messages is not None
        self._llm = LLM(model, **options)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """One batch in Ray's numpy format.

        Raises:
            WcseError: the column is missing, or a prompt does not fit the model.
        """
        if self._column not in batch:
            raise WcseError(f"there is no column {self._column!r}; the batch has {', '.join(batch)}")
        rows = list(batch[self._column])
        if self._chat:
            outputs = self._llm.chat([_conversation(row) for row in rows], self._params, use_tqdm=False)
        else:
            outputs = self._llm.generate([str(row) for row in rows], self._params, use_tqdm=False)
        return dict(batch) | {
            "completions": _column([[part.text for part in o.outputs] for o in outputs]),
            "completion_tokens": _column([[len(part.token_ids) for part in o.outputs] for o in outputs]),
            "finish_reasons": _column([[part.finish_reason for part in o.outputs] for o in outputs]),
        }


def _conversation(row: Any) -> list[dict[str, str]]:
    return [{"role": str(message["role"]), "content": str(message["content"])} for message in row]


def _column(values: list[list[Any]]) -> np.ndarray:
    """An array of lists: numpy would make a matrix of lists of equal length."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
