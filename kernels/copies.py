"""Copies of rows that start no OpenMP region: one stalls for milliseconds when another process has the core.

On the CPU numpy does the work, elsewhere torch. Knows nothing of what the rows are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def take_rows(x: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
    """``x[rows]`` of a float32 tensor [R, ...]; ``rows`` holds integers."""
    index = torch.as_tensor(rows, dtype=torch.int64)
    return torch.from_numpy(x.numpy().take(index.numpy(), axis=0)) if x.is_cpu else x[index]


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """``torch.cat(parts)`` of float32 tensors."""
    if not parts[0].is_cpu:
        return torch.cat(list(parts))
    return torch.from_numpy(np.concatenate([part.numpy() for part in parts]))
