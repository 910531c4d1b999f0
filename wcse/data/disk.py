"""The few file operations that durability rests on, in one place so that tests can make each of them fail.

Knows nothing of records or formats.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class Disk:
    """Real files. A test passes a subclass that fails or forgets."""

    def write(self, fd: int, data: bytes) -> int:
        """Write some of ``data``; returns how many bytes went in."""
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def write_all(self, fd: int, data: bytes) -> None:
        """Write all of ``data``; a full disk may take a part of it and then refuse."""
        view = memoryview(data)
        while view:
            view = view[self.write(fd, bytes(view)) :]

    def sync_directory(self, directory: Path) -> None:
        """Make new names in a directory survive a power cut."""
        fd = os.open(directory, os.O_RDONLY)
        try:
            self.fsync(fd)
        finally:
            os.close(fd)


def clear_unfinished(directory: Path) -> None:
    """Remove what killed processes of this machine left of ``atomic_file``.

    Whether a process of another machine lives cannot be seen from here: on a shared disk its file stays.
    """
    host = _host()
    for path in directory.glob(".*.tmp"):
        *_, where, owner, _suffix = path.name.split(".")
        if where == host and owner.isdecimal() and not _lives(int(owner)):
            path.unlink(missing_ok=True)


def temporary(path: Path) -> Path:
    """The file that this process fills before it becomes ``path``: its name says whose it is."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")


def _host() -> str:
    """This machine's name as a part of a file's name, without dots."""
    return re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextmanager
def atomic_file(path: Path, *, disk: Disk | None = None, sync_name: bool = True) -> Iterator[BinaryIO]:
    """A binary file to fill; on leaving, ``path`` holds all of it, or after any failure its old content.

    Args:
        sync_name: the new name survives a power cut, too. A caller that writes many files into one directory leaves
            it out and calls ``Disk.sync_directory`` once.

    Raises:
        OSError: as the disk said it; ``path`` is untouched and the temporary file is gone.
    """
    disk = disk or Disk()
    unfinished = temporary(path)
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            disk.fsync(file.fileno())
        disk.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    if sync_name:
        disk.sync_directory(path.parent)
