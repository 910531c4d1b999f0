"""Memory of keys and values in pages, for every layer of a model.

A page holds its tokens' keys and values of all layers, one behind the other, so that it is one piece of memory: it can
be moved by one copy, and pools of several models may be views of the same bytes. (TensorRT-LLM's and vLLM's
cross-layer blocks lie so too.) Knows nothing of who owns a page or of what is in it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wcse.kernels import ops
from wcse.models.spec import ModelSpec


class KVPool:
    """Keys and values of pages for every layer; on the CPU of float32 or float16.

    ``k`` is [layers, pages, kv heads, head_dim, 16] (transposed: a page of keys is one GEMM panel) and ``v`` is
    [layers, pages, kv heads, 16, head_dim]. With a ``device`` keys are stored as the values are, and ``k`` is a
    transposed view: what the Triton kernels read. With 8 bits (``ops.FP8``) both are lists of ``ops.ScaledPages``.
    All are views of ``pages``, uint8 [pages, bytes of a page].

    Args:
        memory: uint8 [bytes], of which the pool takes as many pages as there are; it must be finite in every type that
            it is read as. None: zeros for ``num_pages`` of them.
    """

    k: Any
    v: Any

    def __init__(
        self,
        spec: ModelSpec,
        num_pages: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        memory: Tensor | None = None,
    ) -> None:
        self.num_pages = num_pages
        self.bytes_per_page = self.page_bytes(spec, dtype)
        size = num_pages * self.bytes_per_page
        flat = zero_bytes(size, device) if memory is None else memory[:size]
        self.pages = flat.view(num_pages, self.bytes_per_page)
        layers, heads, dim = len(spec.layers), spec.n_kv_heads, spec.head_dim
        rows = (heads, ops.PAGE, dim)
        parts = _layers(flat.view(dtype), layers, num_pages, rows, 0)
        if dtype is ops.FP8:
            behind = 2 * layers * heads * ops.PAGE * dim // 4  # factors follow the numbers
            factors = _layers(flat.view(torch.float32), layers, num_pages, rows[:-1], behind)
            self.k, self.v = (
                [
                    ops.ScaledPages(x.transpose(2, 3) if keys else x, f)
                    for x, f in zip(part, factor, strict=True)
                ]
                for part, factor, keys in zip(parts, factors, (True, False), strict=True)
            )
            return
        self.k = parts[0].transpose(-1, -2) if device is not None else _panels(parts[0])
        self.v = parts[1]

    def move(self, source: NDArray[np.int32], target: NDArray[np.int32]) -> None:
        """Copy pages; no page is both."""
        for old, new in zip(source.tolist(), target.tolist(), strict=True):
            self.pages[new].copy_(self.pages[old], non_blocking=True)

    @staticmethod
    def page_bytes(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of one page over all layers, keys and values; with their factors where they have 8 bits."""
        row = spec.head_dim * dtype.itemsize + (4 if dtype is ops.FP8 else 0)
        return len(spec.layers) * 2 * spec.n_kv_heads * ops.PAGE * row


def _layers(
    flat: Tensor, layers: int, pages: int, rows: tuple[int, ...], start: int
) -> tuple[Tensor, Tensor]:
    """Keys and values [layers, pages, *rows], which alternate from number ``start`` of each page on."""
    size, apart = math.prod(rows), len(flat) // pages if pages else 0
    inner = tuple(math.prod(rows[i + 1 :]) for i in range(len(rows)))
    shape, strides = (layers, pages, *rows), (2 * size, apart, *inner)
    keys, values = (
        flat.as_strided(shape, strides, flat.storage_offset() + start + part * size) for part in range(2)
    )
    return keys, values


def _panels(keys: Tensor) -> Tensor:
    """The same memory with each head's rows as [head_dim, 16] instead of [16, head_dim]."""
    layers, pages, heads, page, dim = keys.shape
    return keys.as_strided(
        (layers, pages, heads, dim, page), (*keys.stride()[:3], page, 1), keys.storage_offset()
    )


def zero_bytes(size: int, device: torch.device | None = None) -> Tensor:
    """Zeros uint8 [size]; on the CPU on a cache-line boundary, and they take memory only where they are written to."""
    if device is not None and device.type != "cpu":
        return torch.zeros(size, dtype=torch.uint8, device=device)
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return torch.from_numpy(raw[start : start + size])
