"""Several processes train together: each computes its part of every batch; gradients and statistics are those of all.

The processes are started by torchrun, which describes them in environment variables, or by Ray Train, on a cluster or
on an embedded Ray. The only place beside the engine that knows Ray.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from threading import Event, Thread
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tokenshard.errors import JobError, SpecError, TokenshardError
from tokenshard.quantizers.distributed import rank_and_world, summed
from tokenshard.scratch import scratch_folder
from tokenshard.spec.engine import EngineSpec
from tokenshard.spec.train import TrainingEngineSpec

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torchrun sets in each process it starts."""


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return all(name in os.environ for name in TORCHRUN)


def is_first() -> bool:
    """Whether this process is the one that speaks for all."""
    return os.environ["RANK"] == "0" if started_by_torchrun() else rank_and_world()[0] == 0


def own_device(name: str) -> str:
    """The device of this process: ``auto`` is a GPU where there is one, each process of a machine its own."""
    if name != "auto":
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """The group of the processes that torchrun started, while the context lasts, or the one that is up; else none."""
    if not started_by_torchrun() or torch.distributed.is_initialized():
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        gc.collect()  # what holds on to the group goes before it, not with the interpreter
        torch.distributed.destroy_process_group()


def check_shared(batch: int, workers: int) -> None:
    """Raises SpecError where a batch cannot be shared equally."""
    if batch % workers:
        raise SpecError(f"a batch of {batch} cannot be shared equally by {workers} workers; change one of them")


def own_part(count: int) -> slice:
    """This process's part of a global batch of ``count`` samples, which the number of processes divides."""
    rank, world = rank_and_world()
    return slice(rank * count // world, (rank + 1) * count // world)


def data_parallel(module: nn.Module) -> nn.Module:
    """The module with gradients averaged over all processes, of those weights that want one now."""
    if rank_and_world()[1] == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the option's new name is not known to earlier versions
        return DistributedDataParallel(module, broadcast_buffers=False)


def any_of_all(flag: bool, device: torch.device) -> bool:
    """Whether it is true in one of the processes."""
    return bool(summed(torch.tensor(float(flag), device=device))[0] > 0)


def check_equal(facts: Mapping[str, int], device: torch.device) -> None:
    """Raises :class:`JobError` where whole numbers below 2^53 are not the same in all processes."""
    rank, world = rank_and_world()
    if world == 1:
        return
    numbers = torch.zeros(world, len(facts), dtype=torch.float64, device=device)
    numbers[rank] = torch.tensor(list(facts.values()), dtype=torch.float64)
    (all_numbers,) = summed(numbers)
    for name, found in zip(facts, all_numbers.T.tolist(), strict=True):
        if len(set(found)) > 1:
            raise JobError(
                f"workers differ in {name}: {', '.join(f'{number:.0f}' for number in found)}; source and output must "
                "be the same files for all of them, e.g. on a shared disk or in a bucket"
            )


# -- where the processes come from --------------------------------------------------------------------------------


Say = Callable[[str], None]
Task = Callable[[dict[str, Any], str, Say], Any]
"""What a worker of Ray does, given a JSON-able description of the job, the device that is the worker's, and where to
talk. What it came to is JSON-able, too."""


def in_processes(
    here: Callable[[str, Say], Any], on_worker: Task, config: dict[str, Any], engine: TrainingEngineSpec, say: Say
) -> Any:
    """Do a training in this process, in all processes that torchrun started, or in ``engine.workers`` of Ray Train.

    ``here`` gets the device of this process, and where to talk; what it, or the first worker, came to is returned.
    """
    if started_by_torchrun():
        device = own_device(engine.device)
        with process_group(device):
            return here(device, say)
    if engine.workers > 1:
        return on_ray(on_worker, config, engine, say)
    return here(own_device(engine.device), say)


def on_ray(task: Task, config: dict[str, Any], engine: TrainingEngineSpec, say: Say) -> Any:
    """Run a task in ``engine.workers`` processes that share a process group; what the first one says is said here, and
    what it came to is returned.

    When workers are lost all are started again; the task goes on from its last checkpoint. An error of ours is no loss:
    it is raised at once. Raises :class:`JobError` where workers are lost too often.
    """
    import ray
    from ray.util.queue import Queue

    from tokenshard.engine.ray import connect

    started = connect(EngineSpec(address=engine.address, workers=engine.workers, cpus=engine.cpus))
    try:
        for attempt in range(engine.restarts + 1):
            if attempt:
                say(f"workers were lost; starting them again ({attempt} of {engine.restarts})")
            heard = _Heard(say)
            queue, done = Queue(), Event()
            listening = Thread(target=heard.listen, args=(queue, done), daemon=True)
            listening.start()
            try:
                lost = _fit(partial(_loop, task, queue), {"job": config, "device": engine.device}, engine)
            finally:
                done.set()
                listening.join()
                queue.shutdown()
            if lost is None:
                return heard.found
            if heard.error is not None:
                raise heard.error from lost
        raise JobError(f"training on Ray failed: {_cause(lost)}") from lost
    finally:
        if started:
            ray.shutdown()


def _fit(
    loop: Callable[[dict[str, Any]], None], config: dict[str, Any], engine: TrainingEngineSpec
) -> Exception | None:
    """Run a loop in workers of Ray Train once; the error where one of them failed."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": engine.cpus} | ({"GPU": engine.gpus} if engine.gpus else {})
    with scratch_folder() as scratch:
        trainer = TorchTrainer(
            loop,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(
                num_workers=engine.workers, use_gpu=engine.gpus > 0, resources_per_worker=resources
            ),
            # checkpoints are ours; Ray writes only notes there
            run_config=ray.train.RunConfig(storage_path=str(scratch)),
            torch_config=TorchConfig(backend="nccl" if engine.gpus else "gloo"),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            return error
    return None


def _cause(error: Exception | None) -> str:
    failures = list(getattr(error, "worker_failures", {}).values())
    return str(failures[0] if failures else error)


def _loop(task: Task, queue: Any, config: dict[str, Any]) -> None:
    """What each worker of Ray Train runs."""
    from ray.train.torch import get_device

    first = rank_and_world()[0] == 0
    try:
        device = config["device"] if config["device"] != "auto" else str(get_device())
        found = task(config["job"], device, (lambda text: queue.put(("said", text))) if first else lambda text: None)
    except TokenshardError as error:
        queue.put(("error", error))
        raise
    if first:
        queue.put(("found", found))


class _Heard:
    """What came from the workers: what they say is said here at once."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.found: Any = None
        self.error: TokenshardError | None = None

    def listen(self, queue: Any, done: Event) -> None:
        """Until the work is done and nothing is left."""
        from ray.exceptions import RayError
        from ray.util.queue import Empty

        with suppress(RayError):
            while True:
                try:
                    kind, value = queue.get(timeout=0.5)
                except Empty:
                    if done.is_set():
                        return
                    continue
                if kind == "said":
                    self._say(value)
                elif kind == "found":
                    self.found = value
                elif self.error is None:
                    self.error = value
