"""Blocks of GGUF's formats of 4 to 8 bits as codes, scales and minima, which is what they are made of.

Nothing is rounded: ``QuantizedWeight.weight()`` gives the bits that dequantising the block gives. Formats with code
books (IQ...) and of fewer bits are not of this kind. Layouts: ``ggml-quants.h`` and ``ggml-common.h`` of llama.cpp.
Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from wcse.kernels.packed import QuantizedWeight

Parts = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Codes [blocks, weights of a block], scales and minima (or None) [blocks, groups of a block]."""


def decode(raw: np.ndarray, name: str, block_bytes: int) -> QuantizedWeight | None:
    """The weight [N, K] in rows uint8 [N, bytes of a row] of whole blocks; None for another kind of format.

    Args:
        raw: the stored bytes.
        name: of the format, as the gguf package has it ("Q4_K").
        block_bytes: bytes of one block.
    """
    if name not in _FORMATS:
        return None
    bits, group, parts = _FORMATS[name]
    codes, scales, minima = parts(raw.reshape(-1, block_bytes))

    def rows(values: np.ndarray, dtype: type) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype).reshape(len(raw), -1))

    return QuantizedWeight(
        rows(codes, np.int8),
        rows(scales, np.float32),
        None if minima is None else rows(minima, np.float32),
        bits,
        group,
    )


def _halves(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte ``at`` of each block: float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: np.ndarray, run: int) -> np.ndarray:
    """Half bytes [blocks, 2 * bytes]; of each ``run`` bytes first the low halves, then the high ones."""
    runs = packed.reshape(len(packed), -1, 1, run)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(len(packed), -1)


def _bits(packed: np.ndarray, width: int) -> np.ndarray:
    """Fields of ``width`` bits in runs of 32 bytes [blocks, n]: of each run the lowest fields first."""
    shifts = np.arange(0, 8, width, dtype=np.uint8).reshape(1, 1, -1, 1)
    fields = packed.reshape(len(packed), -1, 1, 32) >> shifts & ((1 << width) - 1)
    return fields.reshape(len(packed), -1)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """Bit i of the 32 of each block, shifted to the place of a fifth bit: uint8 [blocks, 32]."""
    return np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little") << 4


def _q8_0(b: np.ndarray) -> Parts:
    return b[:, 2:].view(np.int8), _halves(b, 0), None


def _q4_0(b: np.ndarray) -> Parts:
    scale = _halves(b, 0)
    return _nibbles(b[:, 2:], 16), scale, -8 * scale


def _q4_1(b: np.ndarray) -> Parts:
    return _nibbles(b[:, 4:], 16), _halves(b, 0), _halves(b, 2)


def _q5_0(b: np.ndarray) -> Parts:
    codes = _nibbles(b[:, 6:], 16) | _fifth_bits(b[:, 2:6])
    return codes.astype(np.int8) - 16, _halves(b, 0), None


def _q5_1(b: np.ndarray) -> Parts:
    return _nibbles(b[:, 8:], 16) | _fifth_bits(b[:, 4:8]), _halves(b, 0), _halves(b, 2)


def _k_scales(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima [blocks, 8] of Q4_K and Q5_K: six-bit factors of the block's own scale and minimum."""
    low, high, rest = (b[:, at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate([low & 63, rest & 15 | low >> 2 & 48], axis=1)
    minima = np.concatenate([high & 63, rest >> 4 | high >> 2 & 48], axis=1)
    return _halves(b, 0) * scales, -(_halves(b, 2) * minima)


def _q4_k(b: np.ndarray) -> Parts:
    return _nibbles(b[:, 16:], 32), *_k_scales(b)


def _q5_k(b: np.ndarray) -> Parts:
    return _nibbles(b[:, 48:], 32) | _bits(b[:, 16:48], 1) << 4, *_k_scales(b)


def _q6_k(b: np.ndarray) -> Parts:
    codes = (_nibbles(b[:, :128], 64) | _bits(b[:, 128:192], 2) << 4).astype(np.int8) - 32
    return codes, _halves(b, 208) * b[:, 192:208].view(np.int8), None


_FORMATS: dict[str, tuple[int, int, Callable[[np.ndarray], Parts]]] = {
    "Q8_0": (8, 32, _q8_0),
    "Q4_0": (4, 32, _q4_0),
    "Q4_1": (4, 32, _q4_1),
    "Q5_0": (8, 32, _q5_0),
    "Q5_1": (8, 32, _q5_1),
    "Q4_K": (4, 32, _q4_k),
    "Q5_K": (8, 32, _q5_k),
    "Q6_K": (8, 16, _q6_k),
}
"""Bits of our codes, weights per scale, and the reader, by name."""
