"""Weights of linear layers in the forms that the kernels read: float or quantised, in panels of 16 outputs.

A quantised weight is a small integer code for each input, and for each group of consecutive inputs of an output one
scale and, maybe, one minimum: weight = scale * code + minimum, in float32. Codes have 8 bits (-128..127) or 4 bits
(0..15). All GGUF formats of 4 to 8 bits are of this kind, so what they hold passes through here unchanged.
Knows nothing of files, models or the native code, only of the layout that it reads (``csrc/cpu/table.h``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from wcse.types import WcseError

Format = Literal["fp32", "int8", "int4", "w8a8", "w4a8"]

BITS: dict[Format, int] = {"int8": 8, "int4": 4, "w8a8": 8, "w4a8": 4}
"""Of a weight's codes."""

INTEGER: tuple[Format, ...] = ("w8a8", "w4a8")
"""Formats whose inputs are rounded to 8 bits as well."""

PANEL = 16
"""Output columns in one panel of a packed weight."""

BLOCK = 64
"""Output columns of a quantised weight that lie together."""

GROUP = 32
"""Inputs that share a scale in the formats "int8" and "int4"."""

_HALF_NORMAL, _HALF_MAX = 2.0**-14, 65504.0  # smallest normal and largest float16
_CHUNK = 1 << 17  # weights quantised at a time: the working copies stay in the cache
_STEPS = (15.0, 14.4, 15.7, 16.5, 17.5)  # codes of 4 bits in the range of a group


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """A weight [N, K] as codes, before packing.

    Args:
        codes: int8 [N, K]; of four bits 0..15.
        scales: float32 [N, ceil(K / group)].
        minima: as ``scales``; None where they are all 0.
        bits: 8 or 4.
        group: inputs that share a scale, 16 or 32; the last group may be shorter.
    """

    codes: Tensor
    scales: Tensor
    minima: Tensor | None
    bits: int
    group: int

    def weight(self) -> Tensor:
        """The weight [N, K] in float32."""
        k = self.codes.shape[1]
        weight = self.codes * self.scales.repeat_interleave(self.group, 1)[:, :k]
        return weight if self.minima is None else weight + self.minima.repeat_interleave(self.group, 1)[:, :k]

    def select(self, rows: Tensor) -> QuantizedWeight:
        """The rows int64 [R], in this order."""
        minima = None if self.minima is None else self.minima[rows]
        return replace(self, codes=self.codes[rows], scales=self.scales[rows], minima=minima)


@dataclass(frozen=True, slots=True, eq=False)
class PackedLinear:
    """A weight [N, K] cut into panels of 16 outputs that a kernel streams front to back; the last is padded.

    ``panels`` is contiguous. Of 32 bits it is float32 [ceil(N / 16), K, 16]. Of 8 and 4 bits it is uint8
    [ceil(N / 64), ceil(K / group), bytes of a group]: 64 scales, 64 minima if there are any (both float32 where
    ``wide``, else float16), then the codes as ``csrc/cpu/table.h`` has them. With ``integer`` the kernel rounds its
    inputs to 8 bits too.
    """

    panels: Tensor
    n: int
    k: int
    bits: int = 32
    group: int = 0
    wide: bool = False
    minima: bool = False
    integer: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.panels.numel() * self.panels.element_size()

    def weight(self) -> Tensor:
        """The weight [N, K] in float32 (a copy)."""
        return self.rows(torch.arange(self.n))

    def rows(self, index: Tensor) -> Tensor:
        """Rows int64 [R] of the weight: float32 [R, K] (a copy).

        By numpy, not by torch, which would start an OpenMP region that stalls on a busy machine.
        """
        n = index.numpy()
        if self.bits == 32:
            return torch.from_numpy(self.panels.numpy()[n // PANEL, :, n % PANEL])
        block, column = n // BLOCK, n % BLOCK
        scales, minima, codes = _views(self.panels.numpy(), self.bits, self.group, self.wide, self.minima)
        picked = codes[block, :, :, column]  # [R, G, group / 4, 4], of 4 bits [R, G, group / 8, 4]
        if self.bits == 4:
            picked = np.stack([picked & 15, picked >> 4], axis=-2)
        weight = picked.reshape(len(n), -1, self.group) * scales[block, :, column, None].astype("f4")
        if minima is not None:
            weight += minima[block, :, column, None].astype("f4")
        return torch.from_numpy(weight.reshape(len(n), -1)[:, : self.k])


def pack_linear(weight: Tensor, format: Format = "fp32") -> PackedLinear:
    """Pack a weight [N, K] of any float dtype for ``linear``; the result does not share its memory.

    Args:
        weight: the weight.
        format: "fp32"; "int8", codes of 8 bits and a float16 scale per 32 inputs: 8.5 bits a weight; "int4", codes
            of 4 bits, a float16 scale and a float16 minimum per 32 inputs: 5 bits a weight; "w8a8" and "w4a8", the
            same weights multiplied with inputs that ``linear`` rounds to 8 bits.

    Raises:
        WcseError: not a matrix of floats, values that are not finite (quantised formats), or an unknown format.
    """
    if weight.dim() != 2 or not weight.is_floating_point() or 0 in weight.shape:
        raise WcseError(
            f"weight has shape {tuple(weight.shape)}, dtype {weight.dtype}; expected a non-empty float [N, K]"
        )
    if format not in get_args(Format):
        raise WcseError(f"format={format!r} is unknown; use {', '.join(map(repr, get_args(Format)))}")
    if format != "fp32":
        return pack_quantized(quantize(weight, BITS[format]), integer=format in INTEGER)
    n, k = weight.shape
    n_panels = -(-n // PANEL)
    padded = weight.new_zeros((n_panels * PANEL, k), dtype=torch.float32)
    padded[:n] = weight
    return PackedLinear(padded.view(n_panels, PANEL, k).transpose(1, 2).contiguous(), n, k)


def pack_quantized(weight: QuantizedWeight, *, integer: bool = False) -> PackedLinear:
    """Pack codes as they are. Scales and minima are kept in float16 where that loses nothing.

    Args:
        weight: the codes.
        integer: ``linear`` rounds its inputs to 8 bits, in the groups of the weight, and multiplies integers.
    """
    n, k = weight.codes.shape
    params = [weight.scales] + ([] if weight.minima is None else [weight.minima])
    wide = not all(bool((part.half() == part).all()) for part in params)
    n_blocks, n_groups = -(-n // BLOCK), -(-k // weight.group)
    size = len(params) * BLOCK * (4 if wide else 2) + weight.group * BLOCK * weight.bits // 8
    panels = torch.zeros((n_blocks, n_groups, size), dtype=torch.uint8)  # on a cache-line boundary
    scales, minima, codes = _views(panels.numpy(), weight.bits, weight.group, wide, len(params) == 2)
    scales[...] = _in_blocks(weight.scales.numpy(), n_groups).swapaxes(1, 2)
    if minima is not None and weight.minima is not None:
        minima[...] = _in_blocks(weight.minima.numpy(), n_groups).swapaxes(1, 2)
    split = _in_blocks(weight.codes.numpy(), n_groups * weight.group)
    if weight.bits == 4:
        halves = split.view(np.uint8).reshape(n_blocks, BLOCK, n_groups, -1, 2, 4)
        split = halves[..., 0, :] | halves[..., 1, :] << 4
    codes[...] = split.reshape(n_blocks, BLOCK, n_groups, -1, 4).transpose(0, 2, 3, 1, 4)
    return PackedLinear(panels, n, k, weight.bits, weight.group, wide, minima is not None, integer)


def stack(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """The weights below one another, in the narrowest form that holds them all exactly."""
    bits, group = max(p.bits for p in parts), min(p.group for p in parts)
    k = parts[0].codes.shape[1]

    def spread(values: Tensor, part: QuantizedWeight) -> Tensor:
        return values.repeat_interleave(part.group // group, 1)[:, : -(-k // group)]

    minima = None
    if any(p.minima is not None for p in parts):
        minima = torch.cat(
            [spread(torch.zeros_like(p.scales) if p.minima is None else p.minima, p) for p in parts]
        )
    scales = torch.cat([spread(p.scales, p) for p in parts])
    return QuantizedWeight(torch.cat([p.codes for p in parts]), scales, minima, bits, group)


def quantize(weight: Tensor, bits: int) -> QuantizedWeight:
    """A float weight [N, K] in groups of 32: 8 bits around 0 ("int8"), or 4 bits from a minimum ("int4").

    Raises:
        WcseError: the weight holds a NaN or an infinity.
    """
    n, k = weight.shape
    groups = -(-k // GROUP)
    parts = []
    for rows in weight.split(max(1, _CHUNK // k)):
        padded = torch.zeros(len(rows), groups * GROUP)
        padded[:, :k] = rows
        if k % GROUP:  # the last group repeats its last input, which then does not widen its range
            padded[:, k:] = padded[:, k - 1 : k]
        if not bool(padded.isfinite().all()):
            raise WcseError("weight holds a NaN or an infinity; it cannot be quantised")
        parts.append((_symmetric if bits == 8 else _fitted)(padded.view(-1, GROUP)))
    codes, scales, *minima = (torch.cat(column) for column in zip(*parts, strict=True))
    return QuantizedWeight(
        codes.view(n, -1)[:, :k].contiguous(),
        scales.view(n, groups),
        minima[0].view(n, groups) if minima else None,
        bits,
        GROUP,
    )


def _symmetric(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of 8 bits around 0 and scales of groups [B, 32]: the largest weight becomes 127 or -127."""
    scale = _storable(x.abs().amax(1) / 127)
    return _codes(x, scale, 0.0, -127, 127).to(torch.int8), scale


def _fitted(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of 4 bits, scales and minima of groups [B, 32] with a small squared error.

    Several spacings of the codes are tried (below 15 steps in the range: wider than it; above: the ends are cut);
    for each, scale and minimum are the least-squares fit to the codes that it gives. The best of them is kept.
    """
    low, high = x.amin(1), x.amax(1)
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_low = torch.zeros_like(low), torch.zeros_like(low)
    total = x.sum(1)
    unit = (1 / x.abs().amax(1).clamp(min=1e-30))[:, None]  # squares stay in the range of float32
    for steps in _STEPS:
        first = _codes(x, (high - low) / steps, low, 0, 15)
        sums, squares, products = first.sum(1), first.square().sum(1), (first * x).sum(1)
        spread = GROUP * squares - sums * sums
        scale = torch.where(spread > 0, (GROUP * products - sums * total) / spread, 0.0)
        scale = _storable(scale)
        minimum = _storable((total - scale * sums) / GROUP)
        codes = _codes(x, scale, minimum, 0, 15)
        error = ((codes * scale[:, None] + minimum[:, None] - x) * unit).square().sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale, best_low = torch.where(better, scale, best_scale), torch.where(better, minimum, best_low)
    return _codes(x, best_scale, best_low, 0, 15).to(torch.int8), best_scale, best_low


def _codes(x: Tensor, scale: Tensor, minimum: Tensor | float, least: int, most: int) -> Tensor:
    """The nearest codes, as floats [B, 32]; 0 where the scale is 0."""
    low = minimum[:, None] if isinstance(minimum, Tensor) else minimum
    inverse = torch.where(scale != 0, 1 / scale, 0.0)[:, None]
    return ((x - low) * inverse).round_().clamp_(least, most)


def _storable(values: Tensor) -> Tensor:
    """Rounded to float16 where its range holds them, else to 16 significant bits.

    Either way the product with a code is exact in float32, so that every instruction set unpacks the same weights.
    """
    if _HALF_NORMAL <= float(values.abs().max()) <= _HALF_MAX:
        return values.half().float()
    return (values.view(torch.int32) & -256).view(torch.float32)


def _in_blocks(rows: np.ndarray, columns: int) -> np.ndarray:
    """[N, C] as [blocks, 64, columns], padded with zeros."""
    n, c = rows.shape
    padded = np.zeros((-(-n // BLOCK) * BLOCK, columns), rows.dtype)
    padded[:n, :c] = rows
    return padded.reshape(-1, BLOCK, columns)


def _views(
    panels: np.ndarray, bits: int, group: int, wide: bool, has_minima: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Parts of packed panels [B, G, bytes].

    Scales and minima [B, G, 64], codes [B, G, group / 4, 64, 4] (of 4 bits group / 8).
    """
    number = np.float32 if wide else np.float16
    size = BLOCK * np.dtype(number).itemsize
    scales = panels[..., :size].view(number)
    minima = panels[..., size : 2 * size].view(number) if has_minima else None
    packed = panels[..., size * (1 + has_minima) :].view(np.int8 if bits == 8 else np.uint8)
    shape = (*panels.shape[:2], group * bits // 32, BLOCK, 4)
    # Not reshape, which would copy.
    codes = np.lib.stride_tricks.as_strided(packed, shape, (*panels.strides[:2], 4 * BLOCK, 4, 1))
    return scales, minima, codes
