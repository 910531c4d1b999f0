"""Queues of device work: what one model does runs in order, two models run side by side.

A lane is a CUDA stream; on a CPU there is nothing to queue. Work of a lane may read what was queued before it in the
lane, and what the caller's own stream held when the lane was entered (weights); never what another lane writes. Results
leave a lane by ``download`` alone, which ends when its copy does. Knows nothing of models or rows.
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

    def download(self, x: Tensor) -> Download:
        """Copy to pinned memory behind what the current stream holds, without waiting."""
        if not x.is_cuda:
            return Download(x.cpu(), lambda: None)
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        host.copy_(x, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return Download(host, copied.synchronize)
