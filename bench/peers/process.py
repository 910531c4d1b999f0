"""A side as a process: start it, ask it, give up on it after a time, end it. Knows nothing of what it is asked."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class SideError(Exception):
    """A side did not do what it was asked; the message says why. ``alive`` tells whether it can be asked again."""

    def __init__(self, reason: str, *, alive: bool = True, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.alive = alive
        self.timed_out = timed_out


class SideProcess:
    """A running side. Its standard error goes to ``log``.

    Args:
        command: program and arguments.
        env: variables set on top of our own.
        log: file that is written anew.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=os.environ | dict(env),
                start_new_session=True,  # so that the side's own children end with it
            )
        self._unread = b""

    def ask(self, request: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """The reply to a request.

        Args:
            request: see ``sides/side.py``.
            limit: seconds to wait; the process is killed after that.

        Raises:
            SideError: the side refused, died or took too long.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            reply = json.loads(self._line(time.monotonic() + limit))
        except BrokenPipeError:
            raise self._died() from None
        except TimeoutError:
            self.kill()
            raise SideError(f"took longer than {limit:.0f} s", alive=False, timed_out=True) from None
        if not reply.pop("ok"):
            raise SideError(str(reply["error"]))
        return dict(reply)

    def close(self) -> None:
        """Let the side end by itself, or end it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=20)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.kill()
        self._process.stdout.close()

    def kill(self) -> None:
        """End the side and what it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise self._died()
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _died(self) -> SideError:
        code = self._process.wait()
        words = self.log.read_text(errors="replace").strip().splitlines()
        last = words[-1].strip()[:300] if words else "it said nothing"
        return SideError(f"ended with status {code}: {last}", alive=False)
