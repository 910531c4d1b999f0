"""Copies of rows that start no OpenMP region: one stalls for milliseconds when another process has the core.

On the CPU numpy does the work (but bfloat16, which it lacks), elsewhere torch. Knows nothing of what the rows are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def take_rows(x: Tensor, rows: Tensor | np.ndarray | Sequence[int]) -> Tensor:
    """``x[rows]`` of a tensor [R, ...]; ``rows`` holds integers."""
    if not _numpy_takes(x):
        return x[torch.as_tensor(rows, dtype=torch.int64, device=x.device)]
    return torch.from_numpy(x.numpy().take(np.asarray(rows, np.int64), axis=0))


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """``torch.cat(parts)`` along the first axis."""
    if not _numpy_takes(parts[0]):
        return torch.cat(list(parts))
    return torch.from_numpy(np.concatenate([part.numpy() for part in parts]))


def _numpy_takes(x: Tensor) -> bool:
    return x.is_cpu and x.dtype is not torch.bfloat16
