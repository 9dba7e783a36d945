"""What every trainer on tokens begins with: its datasets, their codes, an encoder for them, and where it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tokenshard.errors import SpecError
from tokenshard.loading.crop import Crop
from tokenshard.loading.decoding import CODES
from tokenshard.loading.loader import TokenLoader
from tokenshard.quantizers.distributed import rank_and_world
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.manifest import read_manifest
from tokenshard.spec.base import digest
from tokenshard.spec.job import LearnJob, ModelJob, TrainMtm
from tokenshard.spec.training import ModelSpec
from tokenshard.store import Store
from tokenshard.training.codes import (
    CodeSpace,
    check_same_tokenizer,
    code_space,
    decodes_from_start,
    missing_codebooks,
)
from tokenshard.training.distributed import any_of_all, own_device
from tokenshard.training.folder import ModelDocument, TrainedModel, is_model, load_model, read_document, save_model
from tokenshard.training.loop import FOLDER, Batches, Learning, Task
from tokenshard.training.metrics import last_figures
from tokenshard.training.models.adapter import TokenAdapter
from tokenshard.training.models.vit import SIZES, EncoderConfig

LEARNED_DIM = 32
"""Channels of learned code vectors, as in SeiT++."""


def open_tokens(url: str, storage: dict[str, Any]) -> Dataset:
    """The dataset in a folder or at a URL, to be trained on."""
    store = Store(url, storage)
    dataset = Dataset(store, read_manifest(store))
    if not len(dataset):
        raise SpecError(f"{url}: the dataset has no samples")
    return dataset


def device_of(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one. Raises SpecError where it cannot be used."""
    name = own_device(name)
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Outcome:
    """What training a model on tokens came to."""

    output: str
    samples: int
    """of the training set"""
    steps: int
    """since the start of the job, earlier runs included"""
    fingerprint: str
    """of the weights, empty where the time was up before the end"""
    metrics: dict[str, Any]
    """the last of each, by name"""

    @property
    def finished(self) -> bool:
        """Whether all steps were made."""
        return bool(self.fingerprint)

    def json(self) -> dict[str, Any]:
        """The same as `train --json` prints."""
        return {
            "output": self.output,
            "num_samples": self.samples,
            "steps": self.steps,
            "fingerprint": self.fingerprint,
            **self.metrics,
        }


class Setting:
    """The dataset of a job, its codes, and where the model goes. In each of the processes that share the job."""

    def __init__(self, job: LearnJob, device: torch.device, say: Callable[[str], None]) -> None:
        self.job, self.device = job, device
        self.rank, self.world = rank_and_world()
        self.say: Callable[[str], None] = say if self.rank == 0 else lambda text: None
        self.output = Store(job.output, job.storage)
        self.train = open_tokens(job.source.path, job.storage)
        self.datasets = {"train": self.train}
        """by their part, for the card of the model"""
        self.used: TrainedModel | None = None
        """an adapter that augments, for the card too"""

    def learn(
        self, codes: CodeSpace, task: Task, loader: Batches, document: ModelDocument, half: bool = False
    ) -> Outcome:
        """Run the loop; where it comes to its end, save the model (``half``: in float16)."""
        job = self.job
        run = Learning(job, task, loader, self.output, self.device, self.say)
        weights = sum(parameter.numel() for parameter in task.module.parameters())
        shared = f", {self.world} workers" if self.world > 1 else ""
        self.say(
            f"{loader.epoch_length(0):,} samples, grids of {'x'.join(map(str, codes.grid))} codes, "
            f"{weights:,} weights on {self.device}{shared}"
        )
        average = run.run()
        run.metrics.close()
        metrics = kept_figures(run.metrics.rows[-1]) if run.metrics.rows else {}
        if average is not None and self.rank == 0:
            document = document.model_copy(update={"metrics": metrics, "job": job.output_fields()})
            save_model(self.output, document, average, self.datasets, self.used, half)
            run.finish()
        any_of_all(False, self.device)  # all wait until it is saved
        return outcome_of(job, loader.epoch_length(0), run.step)

    def document(self, kind: str, codes: CodeSpace, config: dict[str, Any], **fields: Any) -> ModelDocument:
        return ModelDocument(
            kind=kind,
            model=config,
            tokenizer=codes.tokenizer,
            preprocess=dict(self.train.manifest.preprocess),
            **fields,
        )


def kept_figures(row: dict[str, Any]) -> dict[str, Any]:
    """What of the last row of the metrics goes to the card of the model."""
    keep = ("loss", "seconds", "images_per_second", "loader_images_per_second")
    return {name: value for name, value in row.items() if name in keep or name.startswith("val_")}


def outcome_of(job: LearnJob, samples: int, steps: int) -> Outcome:
    """What the output of a job holds after so many steps."""
    output = Store(job.output, job.storage)
    if is_model(output):
        document = read_document(output)
        return Outcome(job.output, samples, steps, document.fingerprint, dict(document.metrics))
    return Outcome(job.output, samples, steps, "", kept_figures(last_figures(output, FOLDER)))


def finished(job: LearnJob, say: Callable[[str], None]) -> Outcome | None:
    """What came out where the output holds the model of this very job. SpecError where it holds another one."""
    output = Store(job.output, job.storage)
    if not is_model(output):
        return None
    if digest(read_document(output).job) != digest(job.output_fields()):
        raise SpecError(f"{job.output}: holds a model trained otherwise; choose another output folder")
    say(f"{job.output}: holds the trained model already; nothing was done")
    return outcome_of(job, len(open_tokens(job.source.path, job.storage)), 0)


class ModelSetting(Setting):
    """What models of tokens have beside: a dataset to validate on, loaders, an encoder."""

    job: ModelJob

    def __init__(self, job: ModelJob, device: torch.device, say: Callable[[str], None]) -> None:
        super().__init__(job, device, say)
        source = job.source
        self.val: Dataset | None = None
        if source.val is not None:
            self.val = open_tokens(source.val, job.storage)
            check_same_tokenizer(self.train, self.val, source.crop is not None)
            self.datasets["val"] = self.val
        elif source.val_where is not None:
            self.val = self.train
        self.codes: CodeSpace = code_space(self.train, source.crop)

    def loader(self, *columns: str) -> TokenLoader:
        """Shuffled batches of the training samples; all of them full, from one epoch into the next."""
        source, job = self.job.source, self.job
        crop = None if source.crop is None else Crop(source.crop, from_start=self._from_start)
        loader = TokenLoader(
            self.train,
            shuffle=True,
            seed=job.seed,
            columns=(CODES, *columns),
            global_batch_size=job.batch,
            remainder="spill",
            where=source.where,
            crop=crop,
            threads=job.engine.threads,
            pin_memory=self.device.type == "cuda",
        )
        found = loader.epoch_length(0)
        if found < loader.global_batch_size:
            raise SpecError(
                f"{source.path}: {found:,} samples do not fill a batch of {job.batch}; give --batch {found}"
            )
        return loader

    def val_loader(self, *columns: str) -> TokenLoader | None:
        """All validation samples in the order they are stored."""
        if self.val is None:
            return None
        source = self.job.source
        return held_out_loader(self.val, self.job.batch, columns, source.val_where, source.crop, self._from_start)

    @property
    def _from_start(self) -> bool:
        """Whether crops begin with the first frames: a masked model draws clips that are decoded."""
        return isinstance(self.job, TrainMtm) and decodes_from_start(self.train)

    def encoder(self, spec: ModelSpec) -> EncoderConfig:
        """The encoder that the model spec asks for. Raises SpecError where the codebook it needs is not known."""
        books = self.codes.codebooks
        if spec.embedding == "frozen" and books is None:
            raise missing_codebooks(self.train, "--embedding frozen")
        width, depth, heads = SIZES[spec.size]
        return EncoderConfig(
            alphabets=self.codes.alphabets,
            dim=books[0].shape[1] if books is not None and spec.embedding == "frozen" else LEARNED_DIM,
            embedding=spec.embedding,
            grid=(*self.codes.grid[:-2], *(spec.grid or self.codes.grid[-2:])),
            stem=spec.stem,
            stride=spec.stride,
            tubelet=tubelet_of(spec, self.codes.grid),
            width=width,
            depth=depth,
            heads=heads,
            drop_path=spec.drop_path,
            dropout=spec.dropout,
        )

    def adapter(self) -> TokenAdapter | None:
        """What `augment.adapt` names. Raises SpecError where it reads other codes or grids."""
        url = self.job.augment.adapt
        if url is None:
            return None
        found = load_model(Store(url, self.job.storage), "adapt")
        module = found.module
        assert isinstance(module, TokenAdapter)
        found.check_reads(self.train)
        if len(self.codes.grid) != 2:
            raise SpecError(f"{url}: adapts images; leave it out for the clips of {self.train.store.root}")
        if module.config.grid != self.codes.grid:
            mine, other = ("x".join(map(str, grid)) for grid in (module.config.grid, self.codes.grid))
            raise SpecError(
                f"{url}: adapts grids of {mine} codes, those of {self.train.store.root} are {other}; "
                "train an adapter on this dataset, or give its --crop"
            )
        self.used = found
        return module


def tubelet_of(spec: ModelSpec, grid: tuple[int, ...]) -> int:
    """Frames that a position covers, of samples with such a grid. Raises SpecError where they do not divide it."""
    frames = grid[0] if len(grid) == 3 else 1
    tubelet = spec.tubelet or (2 if frames % 2 == 0 else 1)
    if frames % tubelet:
        found = f"clips of {frames} frames" if len(grid) == 3 else "images"
        raise SpecError(
            f"model.tubelet of {tubelet} frames does not divide {found}; leave it out, or give another --crop"
        )
    return tubelet


def held_out_loader(
    dataset: Dataset,
    batch: int,
    columns: tuple[str, ...],
    where: str | None,
    crop: tuple[int, ...] | None,
    from_start: bool = False,
) -> TokenLoader:
    """All samples of a dataset as stored, from the middle of their grids where a crop is given (in time, with
    ``from_start``, their first steps). Each process gets its part of every batch."""
    cut = None if crop is None else Crop(crop, "centre", from_start)
    return TokenLoader(dataset, columns=(CODES, *columns), global_batch_size=batch, where=where, crop=cut)
