"""The GGUF container: metadata, the table of tensors, and tensors dequantised to torch on demand.

The header is parsed here rather than by ``gguf.GGUFReader``, which keeps several numpy views for each of
300,000 strings: seconds for a tokenizer of ordinary size, here a fraction of one; and every length is checked
against the file. Block formats are left to ``gguf``. Knows nothing of architectures or tokenizers.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wcse.kernels.packed import QuantizedWeight
from wcse.models.gguf_blocks import decode
from wcse.types import WcseError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FLOATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. ``shape`` is in torch order; ``kind`` is the ggml type number."""

    shape: tuple[int, ...]
    kind: int
    offset: int  # bytes from the start of the file


class GgufFile:
    """An open GGUF file. ``metadata`` holds all its keys, ``tensors`` its table by name."""

    def __init__(self, path: Path) -> None:
        """Map the file and read its header.

        Raises:
            WcseError: no such file, not a GGUF file, an unknown version, or the header is cut off or corrupt.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise WcseError(f"{path}: no such file") from None
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise WcseError(f"{path}: cannot be read ({error})") from None
        try:
            self.metadata, self.tensors = _Header(self._data).read()
        except (struct.error, _Corrupt, UnicodeDecodeError, RecursionError) as error:
            raise WcseError(f"{path}: not a whole GGUF file ({error}); download it again") from None

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor: float32, or the float dtype of the file where it is not quantised.

        Raises:
            WcseError: the data is cut off, or of a quantisation type that the ``gguf`` package cannot undo.
        """
        info = self.tensors[name]
        if info.kind in _FLOATS:
            dtype = _FLOATS[info.kind]
            raw = self._bytes(name, info, prod(info.shape) * dtype.itemsize)
            return torch.from_numpy(raw.copy()).view(dtype).reshape(info.shape)
        return self._dequantise(name, info)

    def quantized(self, name: str) -> QuantizedWeight | None:
        """Read a matrix as the codes that the file holds; None where it is not stored in codes of 4 to 8 bits.

        Raises:
            WcseError: the data is cut off, or of an unknown type.
        """
        info = self.tensors[name]
        if info.kind in _FLOATS or len(info.shape) != 2:
            return None
        raw, kind, block_bytes = self._blocks(name, info)
        return decode(raw, kind.name, block_bytes)

    def _dequantise(self, name: str, info: TensorInfo) -> torch.Tensor:
        raw, kind, _ = self._blocks(name, info)
        try:
            values = _gguf_package().dequantize(raw, kind)
        except NotImplementedError:
            raise WcseError(
                f"{self.path}: tensor {name} is quantised as {kind.name}, which cannot be read; "
                "take a file in F16, Q8_0, Q4_0, Q4_K, Q5_K or Q6_K"
            ) from None
        return torch.from_numpy(values).reshape(info.shape)

    def _blocks(self, name: str, info: TensorInfo) -> tuple[np.ndarray, Any, int]:
        """Rows uint8 [rows, bytes of a row] of a quantised tensor, its type, and the bytes of a block."""
        gguf = _gguf_package()
        try:
            kind = gguf.GGMLQuantizationType(info.kind)
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise WcseError(
                f"{self.path}: tensor {name} has the unknown quantisation type {info.kind}"
            ) from None
        columns = info.shape[-1]
        if columns % block:
            raise WcseError(f"{self.path}: tensor {name} has {columns} columns, not a multiple of {block}")
        rows = prod(info.shape[:-1])
        row_bytes = columns // block * block_bytes
        return self._bytes(name, info, rows * row_bytes).reshape(rows, row_bytes), kind, block_bytes

    def _bytes(self, name: str, info: TensorInfo, count: int) -> np.ndarray:
        if info.offset + count > len(self._data):
            raise WcseError(f"{self.path}: cut off inside tensor {name}; download it again")
        if hasattr(
            mmap, "MADV_DONTNEED"
        ):  # what was read before need not stay in memory: the file still has it
            self._data.madvise(mmap.MADV_DONTNEED)
        return np.frombuffer(self._data, np.uint8, count, info.offset)


class _Corrupt(Exception):
    """The header contradicts itself or the length of the file."""


class _Header:
    """A cursor over the header. Numbers are little-endian; ``struct.error`` means the file ends too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def read(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        if self._data[:4] != b"GGUF":
            raise _Corrupt("it does not start with 'GGUF'")
        self._at = 4
        version, n_tensors, n_keys = self._unpack("IQQ")
        if version not in (2, 3):
            raise _Corrupt(f"version {version}; 2 and 3 are known")
        metadata = {}
        for _ in range(n_keys):
            key = self._string()
            metadata[key] = self._value(*self._unpack("I"))
        table = {}
        for _ in range(n_tensors):
            name, info = self._tensor_info()
            table[name] = info
        return metadata, self._located(table, metadata.get("general.alignment", _DEFAULT_ALIGNMENT))

    def _unpack(self, fields: str) -> tuple[Any, ...]:
        form = "<" + fields
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise _Corrupt("a string reaches beyond the end")
        return self._data[start : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise _Corrupt(f"metadata of unknown type {kind}")
        item, count = self._unpack("IQ")
        if item in _SCALARS:
            if count * struct.calcsize(_SCALARS[item]) > len(self._data):
                raise _Corrupt("an array reaches beyond the end")
            return list(self._unpack(f"{count}{_SCALARS[item]}"))
        if item == _STRING:
            return [self._string() for _ in range(count)]
        return [self._value(item) for _ in range(count)]

    def _tensor_info(self) -> tuple[str, TensorInfo]:
        name = self._string()
        (n_dims,) = self._unpack("I")
        if not 1 <= n_dims <= 4:
            raise _Corrupt(f"tensor {name} with {n_dims} dimensions")
        shape = self._unpack(f"{n_dims}Q")[::-1]
        kind, offset = self._unpack("IQ")
        return name, TensorInfo(shape, kind, offset)

    def _located(self, table: dict[str, TensorInfo], alignment: int) -> dict[str, TensorInfo]:
        """Offsets from the start of the file; the table counts from the start of the data (aligned)."""
        if alignment < 1:
            raise _Corrupt(f"alignment {alignment}")
        start = -(-self._at // alignment) * alignment
        return {name: TensorInfo(t.shape, t.kind, start + t.offset) for name, t in table.items()}


def _gguf_package() -> Any:
    try:
        import gguf
    except ImportError:
        raise WcseError("GGUF files need the gguf package: pip install 'wcse[gguf]'") from None
    return gguf
