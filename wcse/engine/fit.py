"""What fits in a device's memory, before anything is loaded: weights, work space, pages, rows.

``wcse plan`` prints it; engines on a GPU take their memory by it. Reads specs and asks devices, loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from wcse.engine.arena import block_size
from wcse.engine.memory import FEWEST, KV_GIB, MOST_PAGES
from wcse.flops import ModelCost
from wcse.models.kv_pool import KVPool
from wcse.models.spec import ModelSpec
from wcse.types import Quantization, WcseError

PAGE = 16
GPU_SHARE = 0.9
"""Of a GPU's free memory; the rest is for libraries, fragments and graphs (vLLM's ``gpu_memory_utilization``)."""

# Bits of a weight, with its factors: of the layers, and of embedding and output matrix.
_BITS = {"int8": (8.5, 8.5), "w8a8": (8.5, 8.5), "int4": (5.0, 8.5), "w4a8": (5.0, 8.5)}


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one model needs. Bytes."""

    role: str
    name: str
    weights: int
    space: int  # for the activations of the largest step
    page: int  # keys and values of 16 tokens

    @property
    def fixed(self) -> int:
        return self.weights + self.space


@dataclass(frozen=True, slots=True)
class Fit:
    """Models on a device. They share ``kv``, and its blocks go to who needs them; what is counted here is as if all had
    as many pages, for verifier and policy store the same tokens.
    """

    device: str
    total: int  # bytes
    free: int
    kv: int  # for keys and values of all models
    models: tuple[Footprint, ...]

    @property
    def pages(self) -> int:
        """Pages of 16 tokens, of each model."""
        return max(0, min(MOST_PAGES, self.kv // sum(model.page for model in self.models)))

    @property
    def fits(self) -> bool:
        return self.pages >= FEWEST and sum(model.fixed for model in self.models) + self.kv <= self.free

    @property
    def block(self) -> int:
        """Bytes that go from one model to another at a time."""
        return block_size([model.page for model in self.models], self.kv)

    def kv_of(self, model: Footprint) -> int:
        """The model's part of the memory for keys and values, bytes."""
        return self.pages * model.page

    def solutions(self, prompt: int, length: int, *, each: int) -> int:
        """Complete solutions of ``length`` tokens that are stored at once, ``each`` of them below one prompt."""
        per_problem = -(-prompt // PAGE) + each * -(-length // PAGE)
        whole, left = divmod(self.pages, per_problem)
        return whole * each + max(0, (left - -(-prompt // PAGE)) // -(-length // PAGE))


def footprint(
    spec: ModelSpec,
    *,
    role: str,
    name: str,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    quantization: Quantization | None = None,
    path: Path | None = None,
    head: bool = True,
    rows: int,
) -> Footprint:
    """Bytes of a model whose weights are not read.

    Args:
        path: the GGUF file, whose size counts where the weights stay as it has them.
        head: it has an output matrix and makes logits.
        rows: most rows of a step.
    """
    matrices = ModelCost.of(spec, head=False).params
    vocabulary = spec.vocab_size * spec.dim * (2 if head and not spec.tied else 1)
    if quantization in ("gguf", "gguf_a8"):
        assert path is not None
        weights = float(path.stat().st_size)
    else:
        wide = dtype.itemsize * 8.0
        layers, ends = (8.0, wide) if quantization == "fp8" else _BITS.get(quantization or "", (wide, wide))
        weights = (matrices * layers + vocabulary * ends) / 8
    # A row of the widest layer: residual, normed, QKV and attention, both halves of the MLP and their product.
    heads = (2 * spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim
    space = rows * (4 * spec.dim + heads + 3 * spec.ffn_dim) * dtype.itemsize
    if head:
        space += rows * spec.vocab_size * max(4, dtype.itemsize)
    return Footprint(role, name, int(weights), int(space), KVPool.page_bytes(spec, kv_dtype))


def plan_memory(device: str, models: tuple[Footprint, ...], *, kv_gib: float | None) -> Fit:
    """What fits now. ``kv_gib``: for keys and values of all models; None takes ``KV_GIB`` on a CPU and on a GPU what is
    free, less a margin.

    Raises:
        WcseError: the device does not say how much memory it has.
    """
    total, free = memory_of(device)
    if kv_gib is None and torch.device(device).type == "cuda":
        spare = int(free * GPU_SHARE) - sum(model.fixed for model in models)
        return Fit(device, total, free, max(0, spare), models)
    return Fit(device, total, free, int((kv_gib or KV_GIB) * 2**30), models)


def memory_of(device: str) -> tuple[int, int]:
    """Bytes of memory that the device has, and that are free."""
    if torch.device(device).type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        return found["MemTotal"], found["MemAvailable"]
    except (OSError, KeyError):
        raise WcseError("plan: this system does not say how much memory is free; give kv_memory_gb") from None
