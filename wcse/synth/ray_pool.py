"""An executor over a Ray cluster: one actor with one engine a worker, records streamed back as they are made.

The rest is that of any pool: work is handed out as workers come free, a lost actor is replaced and its units done
again, and the caller alone owns the journal. A node needs wcse and the models under the same names; an actor whose
models are not those of the caller refuses to work.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from wcse.synth.pool import Died, Pool, Said, Worker
from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import SynthRecord
from wcse.synth.run import Executor, Task
from wcse.synth.workers import task_from_json, task_to_json
from wcse.types import WcseError

LOCAL = "local"
"""Address of a cluster that is started on this machine, for this run alone."""

_REACH_SECONDS = 10.0

Make = Callable[[SynthRecipe], Executor]
Row = tuple[tuple[str, str], dict[str, Any]]
"""A record's key and content."""


@dataclass(eq=False)
class _Actor(Worker):
    """An actor, and the stream of records that it is making."""

    handle: Any = None
    stream: Any = None


class Seat:
    """What runs inside an actor.

    Args:
        recipe: as JSON values.
        fingerprints: of the caller's models; this node's must be the same.
        make: an executor of a recipe; None is ``LocalExecutor``.

    Raises:
        WcseError: from the first batch: a model is missing here, or another one.
    """

    def __init__(self, recipe: Mapping[str, Any], fingerprints: Mapping[str, str], make: Make | None) -> None:
        self._recipe = SynthRecipe.parse(recipe)
        self._fingerprints = dict(fingerprints)
        self._make = make
        self._executor: Executor | None = None

    def run(self, tasks: Sequence[Mapping[str, Any]]) -> Iterator[Row | None]:
        """None, for it has begun; then the records of a batch, each as soon as it is made."""
        yield None
        made: queue.SimpleQueue[SynthRecord | BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                self._ready().run([task_from_json(dict(task)) for task in tasks], made.put)
                made.put(None)
            except BaseException as error:  # handed to the caller, whose thread this is not
                made.put(error)

        threading.Thread(target=work, daemon=True).start()
        while (record := made.get()) is not None:
            if isinstance(record, BaseException):
                raise record
            yield record.key, record.to_json()

    def _ready(self) -> Executor:
        if self._executor is None:
            if self._fingerprints:
                from wcse.synth.generate import model_fingerprints

                _same_models(self._fingerprints, model_fingerprints(self._recipe))
            self._executor = (self._make or _local)(self._recipe)
        return self._executor


def _local(recipe: SynthRecipe) -> Executor:
    from wcse.synth.generate import LocalExecutor  # heavy: an actor starts at once, and loads when it works

    return LocalExecutor(recipe)


def _same_models(wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    for name, digest in wanted.items():
        if found.get(name) != digest:
            raise WcseError(
                f"{name}: a worker's node has another model than this machine; put the same files on every node"
            )


class RayPool(Pool[_Actor]):
    """An executor over the actors of a Ray cluster.

    Args:
        recipe: what the actors are told. Each takes ``threads`` cores (one, where the recipe names no count), and a GPU
            where the recipe's device is one.
        workers: how many actors; 0 takes as many as the cluster has cores for.
        address: of a cluster (``auto``, ``host:port``, ``ray://host:port``), or ``local`` for one of this run's own.
        make, fingerprints: see ``Seat``.

    Raises:
        WcseError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self,
        recipe: SynthRecipe,
        workers: int,
        address: str,
        *,
        make: Make | None = None,
        fingerprints: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise WcseError(f"ray={address!r} needs an extra package: pip install 'wcse[ray]'") from error
        self._ray = ray
        self._owns = not ray.is_initialized()
        if self._owns:
            _connect(ray, address)
        self._threads = recipe.threads or 1
        super().__init__(
            recipe, workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // self._threads)
        )
        told = recipe.model_copy(update={"threads": self._threads}).model_dump(mode="json")
        gpus = int((recipe.device or "cpu").startswith("cuda"))
        actor = ray.remote(num_cpus=self._threads, num_gpus=gpus, max_restarts=0)(Seat)
        self._make_actor = lambda: actor.remote(told, dict(fingerprints), make)

    def close(self) -> None:
        super().close()
        if self._owns and self._ray.is_initialized():
            self._ray.shutdown()

    def _start(self) -> _Actor:
        return _Actor(handle=self._make_actor())

    def _give(self, worker: _Actor, batch: Sequence[Task]) -> None:
        worker.stream = worker.handle.run.options(num_returns="streaming").remote(
            [task_to_json(task) for task in batch]
        )

    def _hear(self, timeout: float) -> Said[_Actor] | Died[_Actor] | None:
        streams = {worker.stream: worker for worker in self._workers if worker.stream is not None}
        ready, _ = self._ray.wait(list(streams), timeout=timeout, num_returns=1)
        if not ready:
            return None
        worker = streams[ready[0]]
        try:
            row: Row | None = self._ray.get(next(worker.stream))
        except StopIteration:
            worker.stream = None
            return Died(worker, "ended early") if self._list.busy(worker) else Said(worker)
        except self._ray.exceptions.RayActorError as error:
            worker.stream = None
            return Died(worker, type(error).__name__)
        except self._ray.exceptions.RayTaskError as error:
            raise WcseError(f"ray: {' '.join(str(error.cause).split())[:500]}") from error
        return Said(worker, *(row or ()))

    def _kill(self, worker: _Actor) -> None:
        self._ray.kill(worker.handle, no_restart=True)

    def _end(self, worker: _Actor) -> None:
        worker.stream = None
        if self._ray.is_initialized():
            self._ray.kill(worker.handle, no_restart=True)


def _connect(ray: Any, address: str) -> None:
    """Join a cluster, or start one here."""
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {"address": address}
    try:
        host, colon, port = address.rpartition(":")
        if colon and "//" not in host:  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()
        ray.init(log_to_driver=False, logging_level="error", **options)
    except Exception as error:  # Ray raises its own, the network's and plain ones
        raise WcseError(
            f"ray={address!r}: no cluster there: {' '.join(str(error).split())[:300]}; give --ray alone to start one "
            "on this machine, or the address of one that runs (ray start --head)"
        ) from error
