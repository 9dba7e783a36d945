"""Several processes train together: each computes its part of every batch; gradients and statistics are those of all.

The processes are started by torchrun, which describes them in environment variables, or by Ray Train, on a cluster or
on an embedded Ray. The only place beside the engine that knows Ray.
"""

from __future__ import annotations

import os
import tempfile
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

from tokenshard.engine.ray import connect
from tokenshard.errors import JobError, TokenshardError
from tokenshard.quantizers.distributed import rank_and_world, summed
from tokenshard.spec.job import EngineSpec
from tokenshard.spec.train import TrainingEngineSpec

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torchrun sets in each process it starts."""


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return all(name in os.environ for name in TORCHRUN)


def is_first() -> bool:
    """Whether this process is the one that speaks for all."""
    return os.environ["RANK"] == "0" if started_by_torchrun() else rank_and_world()[0] == 0


def device_of(name: str) -> str:
    """The device of this process: ``auto`` is a GPU where there is one, each process of a machine its own."""
    if name != "auto":
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """The group of the processes that torchrun started, while the context lasts; elsewhere nothing."""
    if not started_by_torchrun():
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


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


# -- Ray Train ----------------------------------------------------------------------------------------------------


Task = Callable[[dict[str, Any], str, Callable[[str], None]], None]
"""What a worker does, given a JSON-able description of the job, the device that is the worker's, and where to talk."""


def on_ray(
    task: Task,
    config: dict[str, Any],
    engine: TrainingEngineSpec,
    say: Callable[[str], None],
) -> None:
    """Run a task in ``engine.workers`` processes that share a process group; what the first one says is said here.
    When workers are lost all are started again; the task goes on from its last checkpoint.

    Raises the error of a worker where it is one of ours, else :class:`JobError`.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    started = connect(EngineSpec(address=engine.address, workers=engine.workers, cpus=engine.cpus))
    try:
        said, done = Queue(), Event()
        printing = Thread(target=_print, args=(said, done, say), daemon=True)
        printing.start()
        resources = {"CPU": engine.cpus} | ({"GPU": engine.gpus} if engine.gpus else {})
        with tempfile.TemporaryDirectory(prefix="tokenshard-") as scratch:
            trainer = TorchTrainer(
                partial(_loop, task, said),
                train_loop_config=config,
                scaling_config=ray.train.ScalingConfig(
                    num_workers=engine.workers, use_gpu=engine.gpus > 0, resources_per_worker=resources
                ),
                run_config=ray.train.RunConfig(
                    storage_path=scratch,  # checkpoints are ours; Ray writes only its own notes there
                    failure_config=ray.train.FailureConfig(max_failures=engine.restarts),
                ),
                torch_config=TorchConfig(backend="nccl" if engine.gpus else "gloo"),
            )
            try:
                trainer.fit()
            except ray.train.TrainingFailedError as error:
                failures = list(getattr(error, "worker_failures", {}).values())
                for failure in (*failures, error.__cause__):
                    if isinstance(failure, TokenshardError):
                        raise failure from error
                raise JobError(f"training on Ray failed: {failures[0] if failures else error}") from error
            finally:
                done.set()
                printing.join()
    finally:
        if started:
            ray.shutdown()


def _loop(task: Task, said: Any, config: dict[str, Any]) -> None:
    """What each worker of Ray Train runs."""
    from ray.train.torch import get_device

    task(config, str(get_device()), said.put if rank_and_world()[0] == 0 else lambda text: None)


def _print(said: Any, done: Event, say: Callable[[str], None]) -> None:
    """Say what comes through the queue, until the work is done and nothing is left."""
    from ray.exceptions import RayError
    from ray.util.queue import Empty

    with suppress(RayError):
        while True:
            try:
                say(said.get(timeout=0.5))
            except Empty:
                if done.is_set():
                    return
