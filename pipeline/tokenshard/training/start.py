"""Trainers on tokens by the kind of their job. A new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Callable

from tokenshard.errors import SpecError
from tokenshard.spec.job import LearnJob, TrainClassifier, TrainMtm
from tokenshard.training.classifier import train_classifier
from tokenshard.training.mtm import train_mtm
from tokenshard.training.setting import Outcome


def train(job: LearnJob, say: Callable[[str], None] = print) -> Outcome:
    """Train what a job asks for, or go on with it where its output holds the state of an earlier run.

    Raises SpecError where data, options and state do not fit each other, FormatError where a file is damaged.
    """
    if isinstance(job, TrainClassifier):
        return train_classifier(job, say)
    if isinstance(job, TrainMtm):
        return train_mtm(job, say)
    raise SpecError(f"{job.kind}: not a training job on tokens")
