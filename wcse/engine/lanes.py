"""Queues of device work: what one model does runs in order, two models run side by side.

A lane is a CUDA stream; on a CPU there is nothing to queue. Work of a lane may read what was queued before it in the
lane, and what the caller's own stream held when the lane was entered (weights); never what another lane writes, but for
memory that was given away, which comes after a ``follow``. Results leave a lane by ``download`` alone, which ends when
its copy does. Knows nothing of models or rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Download:
    """A copy that is on its way to the host."""

    _host: Tensor
    _finish: Callable[[], Any]

    def wait(self) -> np.ndarray:
        """The numbers, when the device has written them and they are there."""
        self._finish()
        return self._host.numpy()


class Lane:
    """The queue of one model on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._settled: torch.cuda.Event | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What the block asks of the device goes into the lane."""
        if self._stream is None:
            yield
            return
        outer = torch.cuda.current_stream(self._stream.device)
        if outer != self._stream:
            self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            yield

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What the block asks of the device runs beside the lane; the lane goes on when it has ended."""
        if self._stream is None or self._side is None:
            yield
            return
        with torch.cuda.stream(self._side):
            yield
        self._stream.wait_stream(self._side)

    def settle(self) -> None:
        """What is queued so far is all that may touch memory which is given away from now on."""
        if self._stream is not None:
            self._settled = self._settled or torch.cuda.Event()
            self._settled.record(self._stream)

    def follow(self, other: Lane) -> None:
        """What is queued here from now on comes after what the other lane had queued when it settled last."""
        if self._stream is not None and other._settled is not None:
            self._stream.wait_event(other._settled)

    def download(self, x: Tensor) -> Download:
        """Copy to pinned memory behind what the current stream holds, without waiting."""
        if not x.is_cuda:
            return Download(x.cpu(), lambda: None)
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        host.copy_(x, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return Download(host, copied.synchronize)
