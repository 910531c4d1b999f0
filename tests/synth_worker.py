"""A worker process without a model, that dies or hangs where a problem says so; see ``test_synth_run``."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import synth_runs

from wcse.synth.run import OnRecord, Task
from wcse.synth.worker import serve


class Fragile(synth_runs.FakeExecutor):
    def run(self, tasks: Sequence[Task], on_record: OnRecord) -> None:
        for unit, problem in tasks:
            match problem.meta.get("does"):
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "kill once" if _first_time(f"{unit.key}"):
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    threading.Event().wait()
                case "noise":
                    print("a library prints")
            on_record(synth_runs.fake_record(self._recipe, unit, problem))


def _first_time(name: str) -> bool:
    mark = Path(sys.argv[1]) / name.replace("/", "-")
    seen = mark.exists()
    mark.touch()
    return not seen


if __name__ == "__main__":
    serve(Fragile)
