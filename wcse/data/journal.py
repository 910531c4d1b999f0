"""The append-only journal of a run: the one file that everything else is derived from.

A line is ``crc32 <tab> length <tab> key <tab> body``: CRC and length cover key and body, which are JSON in
ASCII, so ``cut -f4`` prints plain JSON. The first line is the header (recipe, inputs, versions), each further
one is a record with a key of two texts, ``[problem id, strategy]`` for a solved problem. Promises, each with a test:

- a record whose ``append`` returned is on the disk and is never lost, whatever is killed, full or unplugged;
- a record is there once or not at all; a torn tail is cut when the journal is opened again;
- records of two different recipes, or of changed problems or models, never mix;
- two processes never write the same journal.

It knows nothing of models; records are ``wcse.data.record``.
"""

from __future__ import annotations

import errno
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from wcse.data.disk import Disk, atomic_file, clear_unfinished
from wcse.data.record import SolveRecord
from wcse.recipe import changed
from wcse.types import WcseError

FILE = "journal.tsv"
LOCK = "lock"
FORMAT = 1

Key = tuple[str, str]


class Record(Protocol):
    """What a journal stores: ``SolveRecord`` and its like."""

    @property
    def key(self) -> Key:
        """(problem id, what was done with it); one record each."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""


@dataclass(frozen=True)
class Header:
    """What must not change when a run goes on, and what it ran with.

    Attributes:
        recipe: the fields that change results (``Recipe.results()``).
        inputs: fingerprints of what the recipe only names: problems, policy, verifier.
        problems: ids of the problems in their own order; outputs follow it, whatever finished first.
        versions: of the packages when the run began; not compared.
    """

    recipe: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT


class Journal:
    """An open journal, locked for this process. ``Journal.open`` creates or resumes; ``append`` is durable.

    Attributes:
        path: the file.
        done: keys of the records in it.
        torn: bytes of an unfinished last record that were cut when it was opened.
        damaged: unreadable lines before intact ones (a damaged disk); their records count as not done.
    """

    def __init__(self, path: Path, fd: int, lock: int, scan: _Scan, disk: Disk) -> None:
        self.path = path
        self.done = set(scan.places)
        self.torn = scan.torn
        self.damaged = scan.damaged
        self._fd = fd
        self._lock = lock
        self._disk = disk
        self._failed: str | None = None

    @classmethod
    def open(cls, directory: str | Path, header: Header, *, disk: Disk | None = None) -> Journal:
        """Create the journal of a run in ``directory``, or resume it.

        Raises:
            WcseError: the directory cannot be written, another process holds it, the journal is of another
                recipe (each changed field is named with both values), or its header cannot be read.
        """
        disk = disk or Disk()
        folder = Path(directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _acquire(folder)
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            return cls._open_locked(folder, header, lock, disk)
        except OSError as error:
            os.close(lock)
            raise _unwritable(folder, error) from error
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def _open_locked(cls, folder: Path, header: Header, lock: int, disk: Disk) -> Journal:
        clear_unfinished(folder)
        path = folder / FILE
        if path.exists():
            scan = _scan(path)
            if not scan.places and scan.header != header:  # nothing is lost or mixed: the run starts anew
                _create(path, header, disk)
                scan = _scan(path)
            _refuse_changes(folder, scan.header, header)
        else:
            _create(path, header, disk)
            scan = _scan(path)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            if scan.torn:
                disk.truncate(fd, scan.end)
                disk.fsync(fd)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, lock, scan, disk)

    def append(self, record: Record) -> None:
        """Store a record; when this returns, it is on the disk.

        Raises:
            WcseError: it could not be stored. The journal then takes no more records (after a failed sync
                nobody knows what is on the disk); opening it again finds all records that were acknowledged.
        """
        if self._failed:
            raise WcseError(self._failed)
        if record.key in self.done:
            raise ValueError(f"record {record.key} is already in the journal")
        try:
            self._disk.write_all(self._fd, _frame(list(record.key), record.to_json()))
            self._disk.fsync(self._fd)
        except OSError as error:
            fix = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the disk"
            self._failed = (
                f"journal {str(self.path)!r}: cannot be written: {error.strerror or error}; "
                f"nothing stored is lost: {fix}, then run the same command again"
            )
            raise WcseError(self._failed) from error
        except (
            BaseException
        ):  # an interrupt in the middle: the end of the file is unknown until it is opened again
            self._failed = f"journal {str(self.path)!r}: a write was interrupted; open it again"
            raise
        self.done.add(record.key)

    def close(self) -> None:
        """Give the journal back; idempotent."""
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_header(directory: str | Path) -> Header:
    """The header of the journal in ``directory``.

    Raises:
        WcseError: there is none, or it cannot be read.
    """
    path = _existing(directory)
    with path.open("rb") as lines:
        return _header(path, lines.readline())


def read_records(directory: str | Path) -> Iterator[SolveRecord]:
    """The records in the order of the problems, then of the recipe's strategies, whatever finished first.

    One record is in memory at a time. Needs no lock and may run beside a writer.

    Raises:
        WcseError: there is no journal, or its header cannot be read.
    """
    return (SolveRecord.from_json(body) for _, body in read_bodies(directory))


def read_bodies(directory: str | Path) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Key and plain values of every record, in the order of ``read_records``; equal places by key.

    Raises:
        WcseError: as ``read_records``.
    """
    path = _existing(directory)
    scan = _scan(path)
    problems = {name: place for place, name in enumerate(scan.header.problems)}
    strategies = {name: place for place, name in enumerate(scan.header.recipe.get("strategies", ()))}

    def place(key: Key) -> tuple[float, str, float, str]:
        problem, strategy = key
        return problems.get(problem, math.inf), problem, strategies.get(strategy, math.inf), strategy

    with path.open("rb") as lines:
        for key in sorted(scan.places, key=place):
            lines.seek(scan.places[key])
            parts = _unframe(lines.readline())
            assert parts is not None, f"{path} changed while it was read"
            yield key, json.loads(parts[1])


@dataclass(frozen=True)
class _Scan:
    """What a journal holds: where each intact record starts, where the last one ends, and what lies around."""

    header: Header
    places: dict[Key, int]
    end: int
    torn: int
    damaged: int


def _scan(path: Path) -> _Scan:
    with path.open("rb") as lines:
        return _scan_lines(path, lines)


def _scan_lines(path: Path, lines: Iterable[bytes]) -> _Scan:
    """``path`` is for messages."""
    places: dict[Key, int] = {}
    position = end = bad = damaged = 0
    for line in lines:
        start, position = position, position + len(line)
        if end == 0:
            header = _header(path, line)
            end = position
        elif (parts := _unframe(line)) is None:
            bad += 1
        else:
            problem, strategy = json.loads(parts[0])
            places.setdefault((problem, strategy), start)
            end, damaged = position, damaged + bad
            bad = 0
    if end == 0:
        raise _not_a_journal(path)
    return _Scan(header, places, end, torn=position - end, damaged=damaged)


def _frame(key: Any, body: Any) -> bytes:
    # ASCII JSON is total: any str, lone surrogates too, survives the round trip, and no raw tab or newline
    # appears.
    content = f"{_dumps(key)}\t{_dumps(body)}".encode("ascii")
    return b"%08x\t%d\t%s\n" % (zlib.crc32(content), len(content), content)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=str)


def _unframe(line: bytes) -> tuple[bytes, bytes] | None:
    """Key and body of an intact line, else None."""
    head = line.split(b"\t", 2)
    if len(head) != 3 or not line.endswith(b"\n"):
        return None
    crc, length, content = head[0], head[1], head[2][:-1]
    if length != b"%d" % len(content) or crc != b"%08x" % zlib.crc32(content):
        return None
    key, _, body = content.partition(b"\t")
    return key, body


def _header(path: Path, line: bytes) -> Header:
    parts = _unframe(line)
    if parts is None or json.loads(parts[0]) != "wcse":
        raise _not_a_journal(path)
    data = json.loads(parts[1])
    if data["format"] != FORMAT:
        raise WcseError(
            f"journal {str(path)!r}: format {data['format']}, but this version reads format {FORMAT}; "
            "use the version that wrote it, or another directory"
        )
    try:
        return Header(**data | {"problems": tuple(data["problems"])})
    except (KeyError, TypeError) as error:
        raise WcseError(
            f"journal {str(path)!r}: written by another version of wcse ({error}); use that version"
        ) from error


def _create(path: Path, header: Header, disk: Disk) -> None:
    line = _frame("wcse", asdict(header))
    # Whole or not at all: a journal without a readable header never comes from us.
    with atomic_file(path, disk=disk) as file:
        disk.write_all(file.fileno(), line)


def _refuse_changes(folder: Path, old: Header, new: Header) -> None:
    fields = changed(old.recipe, new.recipe)
    parts = [f"{name} was {_show(before)}, now {_show(after)}" for name, (before, after) in fields.items()]
    for name, (before, after) in changed(old.inputs, new.inputs).items():
        if name not in fields:  # another path is another content; say it once
            parts.append(f"the content of {name} changed (fingerprint {_short(before)}, now {_short(after)})")
    if parts:
        raise WcseError(
            f"{str(folder)!r} holds a run of another recipe: {'; '.join(parts)}; "
            "give the same options to resume it, or another --out"
        )


def _acquire(folder: Path) -> int:
    """Lock the directory as long as the returned descriptor is open; it goes with the process."""
    import fcntl

    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(fd, 32).decode("ascii", "replace").strip()
        os.close(fd)
        raise WcseError(
            f"{str(folder)!r} is in use by another wcse process (pid {owner or 'unknown'}); "
            "wait for it, or give another --out"
        ) from error
    except BaseException:
        os.close(fd)
        raise
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except OSError:
        pass  # the number is a courtesy to the reader of the message; a full disk must not prevent resuming
    return fd


def _existing(directory: str | Path) -> Path:
    path = Path(directory) / FILE
    if not path.is_file():
        raise WcseError(f"{str(directory)!r}: no {FILE} in it; give the directory of a wcse run")
    return path


def _unwritable(folder: Path, error: OSError) -> WcseError:
    reason = error.strerror or str(error)
    return WcseError(
        f"{str(folder)!r}: cannot be written: {reason}; give a writable directory with free space (--out)"
    )


def _not_a_journal(path: Path) -> WcseError:
    return WcseError(
        f"journal {str(path)!r}: its first line is not an intact wcse header; nothing was changed; "
        "move the file away or give another directory"
    )


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]
