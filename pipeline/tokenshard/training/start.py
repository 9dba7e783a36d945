"""Trainers on tokens by the kind of their job. A new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from tokenshard.errors import SpecError
from tokenshard.quantizers.distributed import rank_and_world
from tokenshard.spec.job import JOB_KINDS, LearnJob, TrainAdapt, TrainClassifier, TrainGridSr, TrainMtm
from tokenshard.training.adapt import train_adapt
from tokenshard.training.classifier import train_classifier
from tokenshard.training.distributed import check_shared, in_processes, is_first
from tokenshard.training.grid_sr import train_grid_sr
from tokenshard.training.mtm import train_mtm
from tokenshard.training.setting import Outcome, device_of, finished


def train(job: LearnJob, say: Callable[[str], None] = print) -> Outcome:
    """Train what a job asks for, or go on with it where its output holds the state of an earlier run.

    Here, in all processes that torchrun started, or in workers of Ray Train. Raises SpecError where data, options and
    state do not fit each other, FormatError where a file is damaged, JobError where workers are lost too often.
    """
    if (done := finished(job, say if is_first() else lambda text: None)) is not None:
        return done
    check_shared(job.batch, job.engine.workers)
    config = {"kind": job.kind, "fields": job.model_dump(mode="json", exclude_unset=True)}
    return Outcome(**in_processes(partial(_train_here, job), _train_on_ray, config, job.engine, say))


def _train_on_ray(config: dict[str, Any], device: str, say: Callable[[str], None]) -> dict[str, Any]:
    job = JOB_KINDS[config["kind"]].model_validate(config["fields"])
    assert isinstance(job, LearnJob)
    return _train_here(job, device, say)


def _train_here(job: LearnJob, device: str, say: Callable[[str], None]) -> dict[str, Any]:
    """This process's part of the training, or all of it."""
    check_shared(job.batch, rank_and_world()[1])
    return asdict(_trained(job, device_of(device), say))


def _trained(job: LearnJob, device: torch.device, say: Callable[[str], None]) -> Outcome:
    if isinstance(job, TrainClassifier):
        return train_classifier(job, device, say)
    if isinstance(job, TrainMtm):
        return train_mtm(job, device, say)
    if isinstance(job, TrainAdapt):
        return train_adapt(job, device, say)
    if isinstance(job, TrainGridSr):
        return train_grid_sr(job, device, say)
    raise SpecError(f"{job.kind}: not a training job on tokens")
