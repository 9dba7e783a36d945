"""The loop of all trainers on tokens: steps, averaged weights, metrics, checkpoints, and going on exactly in between.

What a step does is a function of seed and step; which samples it gets is one of the loader's state. So a run that is
killed goes on from its checkpoint to the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tokenshard.errors import FormatError, JobError, SpecError
from tokenshard.loading.decoding import Batch
from tokenshard.loading.loader import TokenLoader
from tokenshard.spec.base import digest
from tokenshard.spec.job import LearnJob
from tokenshard.store import Store
from tokenshard.training.augment.draws import Draws
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
        """The loss to be minimized, and figures to be averaged over steps, all scalars on the device."""
        ...

    def validate(self, module: nn.Module, step: int) -> dict[str, float]:
        """Figures of a module (the averaged weights) on held-out samples; empty without any."""
        ...


class Learning:
    """One run. Resumes what ``output`` holds of it.

    The loader may be that of one rank of several: draws differ by rank.
    """

    def __init__(
        self,
        job: LearnJob,
        task: Task,
        loader: TokenLoader,
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
        self.metrics = MetricsLog(output, FOLDER)
        self._resume()
        if job.engine.compile:
            self.module.compile()
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
                up = time.monotonic() > stop and not last
                if (checkpoint or up) and not last:
                    self._checkpoint()
                if up:
                    self._say(f"time is up at step {self.step:,} of {self.steps:,}; run again to go on")
                    return None
                self._start_interval()
        return self.average

    def finish(self) -> None:
        """Remove the state: what it led to is saved."""
        found = load_state(self.output, FOLDER)
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
        draws = Draws(job.seed, self.step, self.device, self.loader.rank)
        torch.manual_seed(draws.word)  # dropout and drop path
        self.module.train()
        rate = learning_rate(job.optimizer, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=job.precision == "bf16"):
            loss, figures = self.task.loss(batch, draws)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), job.optimizer.clip)
        self.optimizer.step()
        self._follow()
        self.step += 1
        self._images += len(batch["codes"])
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
        means = {name: float(value) / self._summed for name, value in self._sums.items()}  # waits for the device
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
        self.metrics.add(row)
        self._say(_line(row, self.steps))

    def _facts(self) -> dict[str, Any]:
        state = {"step": self.step, "seconds": self.seconds, "loader": self.loader.state_dict()}
        return {**state, "job": digest(self.job.output_fields())}

    def _checkpoint(self) -> None:
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


def total_steps(job: LearnJob, loader: TokenLoader) -> int:
    """Steps of a run: as many as said, or what the epochs make."""
    return job.steps or max(1, round(job.epochs * loader.epoch_length(0) / loader.global_batch_size))


def _line(row: dict[str, Any], steps: int) -> str:
    parts = [f"step {row['step']:>7,}/{steps:,}", f"{row['seconds']:8.1f} s"]
    hidden = {"step", "epoch", "seconds", "lr", "images_per_second", "loader_images_per_second", "grad_norm"}
    parts += [f"{name} {_number(value)}" for name, value in row.items() if name not in hidden]
    parts += [f"{row['images_per_second']:,.0f} images/s (loader {row['loader_images_per_second']:,.0f})"]
    return "  ".join(parts)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
