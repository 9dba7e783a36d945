"""What processes of `test_learning_together.py` do, each started with the variables that torchrun sets: some jobs.

Called with a folder to note in which samples each step got, and files of job specs. A sample is known by its codes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from tokenshard.api import load_job
from tokenshard.quantizers.distributed import rank_and_world
from tokenshard.training import adapt, classifier, mtm
from tokenshard.training.augment.draws import Draws
from tokenshard.training.distributed import process_group
from tokenshard.training.start import train

TASKS: dict[str, Any] = {
    "train-classifier": classifier.ClassifierTask,
    "train-mtm": mtm.MtmTask,
    "train-adapt": adapt.AdaptTask,
}


def noted(loss: Any, notes: Path) -> Any:
    """A loss that notes the samples it is asked for, one file a step, rank and world."""

    def noting(self: Any, batch: Any, draws: Draws) -> Any:
        rank, world = rank_and_world()
        names = [hashlib.sha1(sample.numpy().tobytes()).hexdigest()[:12] for sample in batch["codes"]]
        (notes / f"{draws.step:03d}-{rank}-{world}.json").write_text(json.dumps(names))
        return loss(self, batch, draws)

    return noting


def run(job: Any, notes: Path) -> Any:
    """Train as a job says; what each step got is noted."""
    task = TASKS[job.kind]
    before = task.loss
    notes.mkdir(parents=True, exist_ok=True)
    task.loss = noted(before, notes)
    try:
        return train(job, lambda text: None)
    finally:
        task.loss = before


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu"):
        for name in sys.argv[2:]:
            run(load_job(name), Path(sys.argv[1]) / Path(name).stem)
