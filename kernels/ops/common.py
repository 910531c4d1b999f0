"""What every op shares: the choice of a backend, and the checks that make an address safe.

Knows no op.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from wcse.kernels.reference import PAGE
from wcse.types import WcseError

Backend = Literal["auto", "cpp", "triton", "torch"]

F32 = torch.float32
I32 = torch.int32
F16 = torch.float16


def pick(backend: Backend, x: Tensor) -> Literal["cpp", "triton", "torch"]:
    """The backend that shall run, decided from the first tensor."""
    if backend == "auto":
        return "cpp" if x.is_cpu else "torch" if no_triton(x) else "triton"
    if backend not in ("cpp", "triton", "torch"):
        raise WcseError(f"backend={backend!r} is unknown; use 'auto', 'cpp', 'triton' or 'torch'")
    if backend == "triton" and (why := no_triton(x)):
        raise WcseError(f"backend='triton' cannot run: {why}")
    return backend


def native(backend: Backend, x: Tensor) -> bool:
    """Whether the native kernel shall run, for ops that have no Triton kernel."""
    return pick(backend, x) == "cpp"


def no_triton(x: Tensor) -> str:
    """Why Triton cannot work on ``x``; empty if it can."""
    try:
        import triton
    except ImportError:
        return "triton is not installed; pip install 'wcse[gpu]'"
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        return f"the tensor is on {x.device}; use a CUDA device (or, to test, TRITON_INTERPRET=1)"
    return ""


def triton_ops() -> Any:
    """The Triton ops; imported late, because Triton takes seconds and is not everywhere."""
    from wcse.kernels.triton import checked

    return checked


def check(
    name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...], *, contiguous: bool = True
) -> None:
    """Refuse a tensor whose address may not go to the native code."""
    if x.dtype is dtype and x.shape == shape and x.is_cpu and (not contiguous or x.is_contiguous()):
        return
    check_shape(name, x, shape)
    if x.dtype is not dtype:
        raise WcseError(f"{name} has dtype {x.dtype}; the native kernel takes {dtype}: convert with .to()")
    if not x.is_cpu:
        raise WcseError(f"{name} is on {x.device}; the native kernel runs on the CPU: use backend='torch'")
    check_contiguous(name, x)


def check_pages(k_pages: Tensor, v_pages: Tensor, shape: tuple[int, ...], head_dim: int) -> bool:
    """Check pools for the native code; whether they hold float16. ``shape`` is theirs without the last two sizes.

    Only a page must be contiguous; keys and values have the same strides from page to page, and layer to layer.
    """
    half, outer = k_pages.dtype is F16, len(shape) - 1
    sizes = (head_dim, PAGE), (PAGE, head_dim)
    for name, x, inner in zip(("k_pages", "v_pages"), (k_pages, v_pages), sizes, strict=True):
        check(name, x, F16 if half else F32, (*shape, *inner), contiguous=False)
        if x.numel():
            check_contiguous(f"a page of {name}", x[(0,) * outer])
    if k_pages.stride()[:outer] != v_pages.stride()[:outer]:
        raise WcseError(
            f"k_pages has strides {k_pages.stride()} and v_pages {v_pages.stride()}; pages must be as far apart"
        )
    return half


def check_shape(name: str, x: Any, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != shape:
        raise WcseError(f"{name} has shape {tuple(x.shape)}; expected {shape}")


def check_contiguous(name: str, x: Tensor) -> None:
    if not x.is_contiguous():
        raise WcseError(f"{name} is not contiguous (strides {x.stride()}): pass {name}.contiguous()")


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
