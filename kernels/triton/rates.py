"""How long one layer of tree attention takes, from what it has to do and a device's ceilings: a model, no measurement.

The planner chooses tiles by it and ``bench/roofline.py`` predicts with it. Knows no plans and no kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

OVERLAP = 0.35
"""With it the rule gives what was published of FlashAttention-3 on an H100, forward, FP16, without a mask, 16k tokens
(arXiv:2407.08608, and the chart ``assets/flash3_fp16_fwd.png`` of its repository: 648 TFLOP/s at d = 128, 497 at 64)
within a sixth, where tensor cores, exponentials and issue slots are what counts."""


@dataclass(frozen=True, slots=True)
class Device:
    """Rates from which tile sizes are chosen. They are assumptions (an H200's data sheet, less what a good copy
    reaches), not measurements: only their ratios matter, and a wrong tile costs time, never a result.
    """

    major: int = 9  # compute capability; below 9 there are no warp-group matrix instructions
    processors: int = 132
    resident: int = 2  # blocks of the kernel that one processor holds at a time
    memory: float = 4.3e12  # bytes a second
    cache: float = 5.5e12  # bytes a second, L2
    tensor: float = 989e12  # FLOPs a second of warp-group instructions; half as many of the older ones
    clock: float = 1.75e9

    def resources(self, load: Load) -> Resources:
        """Seconds of each resource."""
        width = 1.0 if load.tile_m >= 64 and self.major >= 9 else 0.5
        products = load.read * load.tile_m * load.kv_heads
        token = 4 * load.head_dim * load.kv_heads  # bytes of a key and a value
        fill = min(
            1.0, load.items * load.kv_heads / self.processors
        )  # of the processors, with at least one block
        moved = max((load.stored * token + load.rows_bytes) / self.memory, load.read * token / self.cache)
        slots = load.read / 64 * load.kv_heads * loop_instructions(load.tile_m, load.head_dim)
        return Resources(
            data=moved / fill + 2 * load.partial_bytes / self.cache,
            tensor=4.0 * products * load.head_dim / (self.tensor * width * fill),
            exponents=products / (self.processors * 16 * self.clock * fill),
            issue=slots / (self.processors * 4 * self.clock * fill),
        )


@dataclass(frozen=True, slots=True)
class Load:
    """What one layer of attention has to do; tokens of one kv head, 16-bit numbers."""

    tile_m: int
    kv_heads: int
    head_dim: int
    stored: float  # tokens of all pages, once
    read: float  # tokens of all tiles' lists
    items: int  # of one kv head
    rows_bytes: float = 0.0  # queries and results
    partial_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Resources:
    """Seconds in which one resource alone would be done."""

    data: float  # memory or L2, whichever takes longer: the same bytes pass through both
    tensor: float
    exponents: float  # sixteen a clock and processor
    issue: float  # instructions, four warps a clock and processor

    @property
    def bound(self) -> float:
        """Seconds when everything overlaps."""
        return max(self.data, self.tensor, self.exponents, self.issue)

    @property
    def seconds(self) -> float:
        """Seconds to expect: of all but the slowest resource ``OVERLAP`` does not overlap."""
        return self.bound + OVERLAP * (self.data + self.tensor + self.exponents + self.issue - self.bound)


def loop_instructions(tile_m: int, head_dim: int) -> float:
    """Instructions of all warps for 64 tokens of a tile, 16 bits: within a sixth of those counted (results/static)."""
    return 600 + tile_m * (14 + 0.085 * head_dim)


H200 = Device()


def device_rates(device: torch.device) -> Device:
    """What CUDA says of a device; the assumptions where it says nothing."""
    if device.type != "cuda":
        return H200
    found = torch.cuda.get_device_properties(device)
    return Device(major=found.major, processors=found.multi_processor_count)
