"""The loop of all trainers on tokens: steps, averaged weights, metrics, checkpoints, and going on exactly in between.

What a step does is a function of seed and step; which samples it gets is one of the loader's state. So a run that is
killed goes on from its checkpoint to the same weights, bit for bit on a CPU.

In several processes (see :mod:`.distributed`) each computes its part of the batch, and the first one writes. What a
sample is given does not depend on their number, so that a run may go on with another one.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tokenshard.errors import FormatError, JobError, SpecError
from tokenshard.loading.decoding import Batch
from tokenshard.quantizers.distributed import rank_and_world, summed
from tokenshard.spec.base import digest
from tokenshard.spec.job import LearnJob
from tokenshard.store import Store
from tokenshard.training.augment.draws import Draws
from tokenshard.training.distributed import any_of_all, check_equal, data_parallel
from tokenshard.training.metrics import MetricsLog
from tokenshard.training.optimizer import learning_rate, make_optimizer
from tokenshard.training.state import load_optimizer, load_state, optimizer_tensors, save_state

FOLDER = "training"
"""Below the output: state and metrics of the run."""


class Task(Protocol):
    """What is learned: a module, its loss on a batch, and how good it is."""

    @property
    def module(self) -> nn.Module:
        """What learns, on the CPU until a run takes it."""
        ...

    def loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to be minimized, and figures to be averaged over steps, all scalars on the device.

        Of several processes each has a loss of its own; the mean over them is that of the batch.
        """
        ...

    def validate(self, module: nn.Module, step: int) -> dict[str, float]:
        """Figures of a module (the averaged weights) on held-out samples, the same in all processes; empty without
        any."""
        ...


class Batches(Protocol):
    """Where batches come from: :class:`~tokenshard.loading.loader.TokenLoader`, or what can do as much."""

    global_batch_size: int

    def __iter__(self) -> Iterator[Batch]: ...

    def epoch_length(self, epoch: int) -> int: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class _Step(nn.Module):
    """A step of a task as the forward of a module: what gradients are averaged for."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module, self._task = task.module, task

    def forward(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        return self._task.loss(batch, draws)


class Learning:
    """One run. Resumes what ``output`` holds of it."""

    def __init__(
        self,
        job: LearnJob,
        task: Task,
        loader: Batches,
        output: Store,
        device: torch.device,
        say: Callable[[str], None] = print,
    ) -> None:
        self.job, self.task, self.loader, self.output, self.device, self._say = job, task, loader, output, device, say
        self.module = task.module.to(device)
        self.average = copy.deepcopy(self.module).requires_grad_(False)
        self.optimizer = make_optimizer(self.module, job.optimizer, fused=device.type == "cuda")
        self.steps = total_steps(job, loader)
        self.step = 0
        self.seconds = 0.0
        self.rank, self.world = rank_and_world()
        self.metrics = MetricsLog(output, FOLDER, **_outlets(job, self.rank))
        self._resume()
        check_equal({"step": self.step, "samples": loader.epoch_length(0)}, device)
        if job.engine.compile:
            self.module.compile()
        self._forward = data_parallel(_Step(task))
        self._start_interval()

    def run(self) -> nn.Module | None:
        """Train to the end; the averaged weights, or None where the time was up before."""
        log, limit = self.job.log, self.job.engine.max_minutes
        stop = math.inf if limit is None else time.monotonic() + 60 * limit
        for batch in self._batches():
            self._one_step(batch)
            last = self.step == self.steps
            checkpoint = last or self.step % log.checkpoint_every == 0
            validated = last or self.step % (log.validate_every or log.checkpoint_every) == 0
            if checkpoint or validated or self.step % log.every == 0 or self.step == 1:
                self._log(validated)
                up = any_of_all(time.monotonic() > stop, self.device) and not last
                if (checkpoint or up) and not last:
                    self._checkpoint()
                if up:
                    self._say(f"time is up at step {self.step:,} of {self.steps:,}; run again to go on")
                    return None
                self._start_interval()
        return self.average

    def finish(self) -> None:
        """Remove the state: what it led to is saved."""
        found = None if self.rank else load_state(self.output, FOLDER)
        if found is not None:
            with suppress(FileNotFoundError):
                self.output.delete(f"{FOLDER}/state.json")
                self.output.delete(found[1]["tensors"])

    # -- one step -----------------------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[Batch]:
        """Batches for all steps that are left; the time it takes to get them is added up."""
        while self.step < self.steps:
            batches = iter(self.loader)
            while self.step < self.steps:
                before = time.monotonic()
                batch = next(batches, None)
                self._waited += time.monotonic() - before
                if batch is None:
                    break
                yield batch

    def _one_step(self, batch: Batch) -> None:
        job = self.job
        draws = Draws(job.seed, self.step, self.device, self.rank * (job.batch // self.world))
        torch.manual_seed(draws.word)  # dropout and drop path
        self.module.train()
        rate = learning_rate(job.optimizer, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=job.precision == "bf16"):
            loss, figures = self._forward(batch, draws)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), job.optimizer.clip)
        self.optimizer.step()
        self._follow()
        self.step += 1
        self._images += job.batch
        for name, value in {"loss": loss, "grad_norm": norm, **figures}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
        self._summed += 1

    @torch.no_grad()
    def _follow(self) -> None:
        """The average follows the weights, faster in the beginning."""
        kept = min(self.job.optimizer.ema, (self.step + 1) / (self.step + 10))
        pairs = zip(self.average.parameters(), self.module.parameters(), strict=True)
        mine, own = zip(*((a, b) for a, b in pairs if b.requires_grad), strict=True)
        torch._foreach_lerp_(mine, own, 1 - kept)

    # -- what a run leaves behind -------------------------------------------------------------------------------------

    def _start_interval(self) -> None:
        self._sums: dict[str, Any] = {}
        self._summed, self._images, self._waited = 0, 0, 0.0
        self._since = time.monotonic()

    def _log(self, validated: bool) -> None:
        values = torch.stack(list(self._sums.values())) / (self._summed * self.world)
        means = dict(zip(self._sums, summed(values)[0].tolist(), strict=True))  # waits for the device
        now = time.monotonic()
        elapsed = max(1e-9, now - self._since)
        if not math.isfinite(means["loss"]):
            raise JobError(f"the loss is {means['loss']} before step {self.step}; lower --lr, or use --precision fp32")
        self.seconds += elapsed
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.step * self.loader.global_batch_size / self.loader.epoch_length(0), 3),
            "seconds": round(self.seconds, 2),
            "lr": learning_rate(self.job.optimizer, self.step - 1, self.steps),
            **means,
            "images_per_second": self._images / elapsed,
            "loader_images_per_second": self._images / max(1e-9, self._waited),
        }
        if validated:
            self.average.eval()
            with torch.inference_mode():
                row |= self.task.validate(self.average, self.step)
        if self.rank == 0:
            self.metrics.add(row)
            self._say(_line(row, self.steps))

    def _facts(self) -> dict[str, Any]:
        state = {"step": self.step, "seconds": self.seconds, "loader": self.loader.state_dict()}
        return {**state, "job": digest(self.job.output_fields())}

    def _checkpoint(self) -> None:
        if self.rank:
            return
        tensors = {f"learner.{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.named_parameters()}
        tensors |= optimizer_tensors(self.optimizer, self.module, "optimizer")
        save_state(self.output, FOLDER, tensors, self._facts())

    def _resume(self) -> None:
        found = load_state(self.output, FOLDER)
        if found is None:
            return
        tensors, facts = found
        where = self.output.url(f"{FOLDER}/state.json")
        if facts.get("job") != self._facts()["job"]:
            raise SpecError(f"{where}: belongs to a run with other options; give those, or another output folder")
        try:
            for head, module in (("learner.", self.module), ("average.", self.average)):
                mine = {name.removeprefix(head): value for name, value in tensors.items() if name.startswith(head)}
                module.load_state_dict({**module.state_dict(), **mine})
            load_optimizer(self.optimizer, self.module, tensors, "optimizer")
            self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
            self.loader.load_state_dict(facts["loader"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{where}: does not fit the job ({error}); remove it to train anew") from error
        self.metrics.read(self.step)
        self._say(f"going on from step {self.step:,}")


def total_steps(job: LearnJob, loader: Batches) -> int:
    """Steps of a run: as many as said, or what the epochs make."""
    return job.steps or max(1, round(job.epochs * loader.epoch_length(0) / loader.global_batch_size))


def _outlets(job: LearnJob, rank: int) -> dict[str, Any]:
    """Where the metrics go beside the files they always go to; nowhere but from the first process."""
    return {} if rank else {"tensorboard": job.log.tensorboard, "wandb": job.log.wandb}


def _line(row: dict[str, Any], steps: int) -> str:
    parts = [f"step {row['step']:>7,}/{steps:,}", f"{row['seconds']:8.1f} s"]
    hidden = {"step", "epoch", "seconds", "lr", "images_per_second", "loader_images_per_second", "grad_norm"}
    parts += [f"{name} {_number(value)}" for name, value in row.items() if name not in hidden]
    parts += [f"{row['images_per_second']:,.0f} images/s (loader {row['loader_images_per_second']:,.0f})"]
    return "  ".join(parts)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
