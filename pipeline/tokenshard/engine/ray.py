"""The Ray executor: one unit actor a GPU (or CPU slot), on a given cluster or an embedded one.

Actors do whole units, so only descriptions and receipts cross process borders. Restarts and retries are the
scheduler's business: Ray's own are switched off.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections import deque
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, OutOfMemoryError, RayActorError, RayError

from tokenshard.engine.task import Cause, Died, Event, Failure, Finished, Ready, SetupFailed, Task, WorkerAddress
from tokenshard.engine.worker import Worker
from tokenshard.errors import JobError
from tokenshard.spec.engine import EngineSpec

logger = logging.getLogger("tokenshard.engine")

OBJECT_STORE_BYTES = 128 << 20
"""Object store of an embedded Ray: units pass nothing but descriptions through it."""
CONNECT_SECONDS = 10
PATIENCE = 60
"""Seconds without any worker after which the log says what is being waited for."""


def connect(engine: EngineSpec) -> bool:
    """Join the cluster at the address, or start an embedded Ray; True if it must be shut down afterwards."""
    if ray.is_initialized():
        return False
    address = engine.address or os.environ.get("RAY_ADDRESS")
    try:
        if address is not None:
            _check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            cpus = math.ceil(engine.workers * engine.cpus) if engine.workers else None
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
            )
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise JobError(
            f"cannot connect to Ray at {address or 'this machine'}: {error}; is it up, is it the same "
            "version, and do RAY_AUTH_MODE and the token match the cluster's?"
        ) from error
    return True


def _check_reachable(address: str) -> None:
    """Raises OSError at once where nothing listens: Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def worker_slots(engine: EngineSpec) -> int:
    """Workers the cluster has room for."""
    resources = _resources()
    slots = resources.get("CPU", 0) / engine.cpus
    if engine.gpus:
        slots = min(slots, resources.get("GPU", 0) / engine.gpus)
    return max(1, int(slots))


def _resources() -> dict[str, float]:
    return ray.cluster_resources()  # type: ignore[no-any-return, no-untyped-call]


class UnitActor(Worker):
    """A worker on a cluster. Ray's dashboard lists actors by what they say of themselves."""

    def __init__(self, address: WorkerAddress) -> None:
        super().__init__(address)
        what = "pilot" if address.role == "pilot" else "units"
        self._name = f"{what} of {address.output} (version {address.version})"

    def __repr__(self) -> str:
        return self._name

    def start(self) -> Failure | str:
        """Set up; the node's id."""
        return self.setup() or ray.get_runtime_context().get_node_id()


def _actor_class(engine: EngineSpec) -> Any:
    options: dict[str, Any] = {"num_cpus": engine.cpus, "num_gpus": engine.gpus}
    if engine.memory is not None:
        options["memory"] = int(engine.memory)
    if engine.accelerator is not None:
        options["accelerator_type"] = engine.accelerator
    if engine.labels:
        options["label_selector"] = dict(engine.labels)
    return ray.remote(**options, max_restarts=0, max_task_retries=0)(UnitActor)


class RayExecutor:
    """``size`` unit actors. Pending ones are what an autoscaler sees as demand."""

    def __init__(self, address: WorkerAddress, engine: EngineSpec, size: int) -> None:
        self.size = size
        self._address = address
        self._actors_of = _actor_class(engine)
        self._actors: dict[int, Any] = {}
        self._pending: dict[int, deque[Any]] = {}
        self._ready: set[int] = set()
        self._spawned = 0
        self._alone_since = time.monotonic()

    def spawn(self) -> int:
        self._spawned += 1
        actor = self._actors_of.remote(self._address)
        self._actors[self._spawned] = actor
        self._pending[self._spawned] = deque([actor.start.options(name="set up").remote()])
        return self._spawned

    def submit(self, worker: int, task: Task) -> None:
        run = self._actors[worker].run.options(name=_title(task))
        self._pending[worker].append(run.remote(task))

    def wait(self, timeout: float) -> list[Event]:
        heads = {refs[0]: worker for worker, refs in self._pending.items() if refs}
        if not heads:
            time.sleep(timeout)
            return []
        ready, _ = ray.wait(list(heads), num_returns=1, timeout=timeout, fetch_local=True)
        if ready and len(heads) > 1:
            ready, _ = ray.wait(list(heads), num_returns=len(heads), timeout=0, fetch_local=True)
        self._complain_when_alone()
        return [event for ref in ready if (event := self._receive(heads[ref], ref)) is not None]

    def _receive(self, worker: int, ref: Any) -> Event | None:
        try:
            message = ray.get(ref, timeout=60)
        except (ActorUnavailableError, GetTimeoutError):
            # The node cannot be reached for now. Its actor may still run: end it, then treat it as lost.
            ray.kill(self._actors[worker])
            return self._gone(worker, "node unreachable", blameless=True)
        except OutOfMemoryError as error:
            return self._gone(worker, _reason(error), cause="OutOfMemory")
        except RayActorError as error:
            return self._gone(worker, _reason(error), blameless=bool(getattr(error, "preempted", False)))
        except RayError as error:
            return self._gone(worker, _reason(error))
        self._pending[worker].popleft()
        if worker in self._ready:
            return Finished(worker, message)
        if isinstance(message, Failure):
            ray.kill(self._actors[worker])
            self._forget(worker)
            return SetupFailed(worker, message)
        self._ready.add(worker)
        return Ready(worker, message)

    def _gone(self, worker: int, reason: str, blameless: bool = False, cause: Cause = "WorkerDied") -> Died:
        self._forget(worker)
        return Died(worker, reason, blameless, cause)

    def _forget(self, worker: int) -> None:
        del self._actors[worker], self._pending[worker]
        self._ready.discard(worker)

    def _complain_when_alone(self) -> None:
        if self._ready:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > PATIENCE:
            self._alone_since = time.monotonic()
            logger.warning("no worker could start for %d s; cluster resources: %s", PATIENCE, _resources())

    def kill(self, worker: int) -> None:
        ray.kill(self._actors[worker])

    def close(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        self._pending.clear()
        self._ready.clear()


def _title(task: Task) -> str:
    """What Ray's dashboard calls a task."""
    if task.quarantine is not None:
        return f"{task.place.name}: reject all of it"
    if task.probe is not None:
        return f"{task.place.name}: try rows {task.probe[0]} to {task.probe[1] - 1}"
    return task.place.name


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
