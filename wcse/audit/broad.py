"""Broad benchmarks for the audit: any task of lm-eval, its documents marked right or wrong for each model.

The harness does the prompting and the scoring, with our engine below; here its marks become those of the audit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from wcse.audit.verdict import Answers
from wcse.types import WcseError

METRICS = ("exact_match", "acc", "acc_norm")
"""Marks of a document that mean right or wrong, the first one of a task counts."""


def task_answers(
    model: str,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include_path: str | None = None,
    max_tokens: int = 512,
    threads: int | None = None,
) -> dict[str, Answers]:
    """A model's marks on lm-eval tasks, by task and in the order of its documents. Texts are left empty.

    Args:
        include_path: folder with task files of one's own.
        max_tokens: most tokens of an answer, where a task sets no ``max_gen_toks`` itself.
        threads: of the CPU; None leaves them as they are.

    Raises:
        WcseError: lm-eval is not installed, a task is unknown or has no such marks, or the model cannot be loaded.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        import wcse.adapters.lm_eval_model  # noqa: F401 - registers the model
    except ImportError as error:
        raise WcseError(
            f"tasks={','.join(tasks)}: needs an extra package: pip install lm-eval ({error})"
        ) from error
    manager = TaskManager(include_path=include_path)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise WcseError(f"tasks={','.join(unknown)}: lm-eval has no such task; see wcse lm-eval --tasks list")
    if threads:
        torch.set_num_threads(threads)
    found = simple_evaluate(
        model="wcse",
        model_args={"pretrained": model, "max_gen_toks": max_tokens},
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        log_samples=True,
        bootstrap_iters=0,
    )
    return {name: _marks(name, samples) for name, samples in found["samples"].items()}


def _marks(task: str, samples: Sequence[Mapping[str, Any]]) -> Answers:
    """One mark a document; where a task has several filters, those of its first one."""
    metric = next((name for name in METRICS if samples and name in samples[0]), None)
    if metric is None:
        raise WcseError(f"tasks={task}: has none of the marks {', '.join(METRICS)}; leave it out")
    first = samples[0].get("filter")
    mine = sorted((s for s in samples if s.get("filter") == first), key=lambda sample: sample["doc_id"])
    return Answers(tuple(float(sample[metric]) > 0.5 for sample in mine), ("",) * len(mine))
