"""A worker process: recipe and tasks come in as JSON lines on stdin, records leave on stdout.

``python -m wcse.synth.worker``; see ``wcse.synth.workers``. It writes no file and ends when its input ends.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import SynthRecord
from wcse.synth.run import Executor
from wcse.synth.workers import task_from_json


def serve(make: Callable[[SynthRecipe], Executor]) -> None:
    """Answer until the input ends or nobody listens any more."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the records
    executor: Executor | None = None

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message, default=str).encode("ascii") + b"\n")
        out.flush()

    def send(record: SynthRecord) -> None:
        say({"key": list(record.key), "body": record.to_json()})

    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "recipe" in message:
            executor = make(SynthRecipe.parse(message["recipe"]))
            say({"ready": True})
        else:
            assert executor is not None
            executor.run([task_from_json(task) for task in message["tasks"]], send)


def main() -> None:
    from wcse.synth.generate import LocalExecutor

    try:
        serve(LocalExecutor)
    except BrokenPipeError:
        os._exit(0)  # the parent is gone


if __name__ == "__main__":
    main()
