"""Fixtures of the kernel tests. Without a GPU the Triton kernels run in Triton's interpreter, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():  # read when a kernel's module is imported, which ops.py does late
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def fixed() -> Iterator[None]:
    """The same random tensors in every test, and one thread: torch's own pool stalls on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
