"""Rows into Parquet and JSONL files of a bounded size, each sealed whole or not there at all."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from wcse.data.disk import Disk, atomic_file

_LARGEST_BLOCK = 2**31 - 1
"""Bytes that pyarrow reads at a time, at most; no row may be longer."""


class Shards:
    """Writes the rows of one format to ``NAME-00000.parquet`` and ``.jsonl``, and so on.

    The same rows give the same bytes. ``close`` seals the last shard and removes shards of an earlier, longer
    export. Syncing the folder's names is left to the caller, who writes several formats into one.

    Attributes:
        rows: written so far.
        files: name -> hex SHA-256 of its content, of the sealed ones.
    """

    def __init__(
        self, folder: Path, name: str, schema: pa.Schema, rows_per_shard: int, disk: Disk | None = None
    ) -> None:
        self._folder = folder
        self._name = name
        self._schema = schema
        self._limit = rows_per_shard
        self._disk = disk
        self._rows: list[dict[str, Any]] = []
        self._count = 0
        self.rows = 0
        self.files: dict[str, str] = {}

    def add(self, row: dict[str, Any]) -> None:
        """Take a row; seals a shard when it is full."""
        self._rows.append(row)
        self.rows += 1
        if len(self._rows) >= self._limit:
            self._seal()

    def close(self) -> None:
        """Seal what is left; an export without rows still has one empty file, so that readers find its columns."""
        if self._rows or not self._count:
            self._seal()
        for pattern in ("parquet", "jsonl"):
            for path in self._folder.glob(f"{self._name}-[0-9]*.{pattern}"):
                if path.name not in self.files:
                    path.unlink()

    def _seal(self) -> None:
        stem = f"{self._name}-{self._count:05d}"
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in self._rows)
        content = lines.encode("utf-8")
        buffer = io.BytesIO()
        pq.write_table(_table(content, self._schema), buffer, compression="zstd")
        for suffix, data in (("parquet", buffer.getvalue()), ("jsonl", content)):
            path = self._folder / f"{stem}.{suffix}"
            with atomic_file(path, disk=self._disk, sync_name=False) as file:
                file.write(data)
            self.files[path.name] = hashlib.sha256(data).hexdigest()
        self._rows = []
        self._count += 1


def _table(lines: bytes, schema: pa.Schema) -> pa.Table:
    """JSON lines as columns. Much faster than from Python rows, for which pyarrow would import pandas first."""
    if not lines:
        return schema.empty_table()
    return pj.read_json(
        io.BytesIO(lines),
        pj.ReadOptions(use_threads=False, block_size=min(len(lines) + 1, _LARGEST_BLOCK)),
        pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )
