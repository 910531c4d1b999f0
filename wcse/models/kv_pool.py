"""Memory of keys and values in pages, for every layer of a model.

Knows nothing of who owns a page or of what is in it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wcse import _core
from wcse.kernels import ops
from wcse.models.spec import ModelSpec


class KVPool:
    """Keys and values of ``num_pages`` pages for every layer, of zeros; on the CPU of float32 or float16.

    ``k`` is [layers, pages, kv heads, head_dim, 16] (transposed: a page of keys is one GEMM panel) and ``v`` is
    [layers, pages, kv heads, 16, head_dim]. With a ``device`` keys are stored as the values are, and ``k`` is a
    transposed view: what the Triton kernels read.
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_pages: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (len(spec.layers), num_pages, spec.n_kv_heads, ops.PAGE, spec.head_dim)
        self.num_pages = num_pages
        self.bytes_per_page = self.page_bytes(spec, dtype)
        if device is not None:
            self.k = torch.zeros(shape, device=device, dtype=dtype).transpose(-1, -2)
            self.v = torch.zeros(shape, device=device, dtype=dtype)
            return
        self.k = _lazy_zeros(dtype, *shape[:3], spec.head_dim, ops.PAGE)
        self.v = _lazy_zeros(dtype, *shape)

    def forget(self, pages: NDArray[np.int32]) -> None:
        """Give the memory behind these pages of a pool on a CPU back to the system; they read as zeros then."""
        for layer in (*self.k, *self.v):
            _core.decommit_blocks(layer.data_ptr(), layer[0].nbytes, pages)

    @staticmethod
    def page_bytes(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of one page over all layers, keys and values."""
        return len(spec.layers) * 2 * spec.n_kv_heads * spec.head_dim * ops.PAGE * dtype.itemsize


def _lazy_zeros(dtype: torch.dtype, *shape: int) -> Tensor:
    """Zeros on a cache-line boundary that take memory only where they are written to."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return torch.from_numpy(raw[start : start + size]).view(dtype).view(shape)
