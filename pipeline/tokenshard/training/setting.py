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
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.manifest import read_manifest
from tokenshard.spec.base import digest
from tokenshard.spec.job import LearnJob
from tokenshard.spec.training import ModelSpec
from tokenshard.store import Store
from tokenshard.training.codes import CodeSpace, check_same_tokenizer, code_space, missing_codebooks
from tokenshard.training.folder import ModelDocument, is_model, read_document, save_model
from tokenshard.training.loop import Learning, Task
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
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    output: str
    samples: int
    steps: int
    fingerprint: str
    """of the weights, empty where the time was up before the end"""
    metrics: dict[str, Any]

    @property
    def finished(self) -> bool:
        return bool(self.fingerprint)

    def json(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "num_samples": self.samples,
            "steps": self.steps,
            "fingerprint": self.fingerprint,
            **self.metrics,
        }


class Setting:
    """Datasets, codes and loaders of a job."""

    def __init__(self, job: LearnJob, say: Callable[[str], None]) -> None:
        self.job, self.say = job, say
        self.output = Store(job.output, job.storage)
        self.device = device_of(job.engine.device)
        source = job.source
        self.train = open_tokens(source.path, job.storage)
        self.val: Dataset | None = None
        if source.val is not None:
            self.val = open_tokens(source.val, job.storage)
            check_same_tokenizer(self.train, self.val)
        elif source.val_where is not None:
            self.val = self.train
        self.codes: CodeSpace = code_space(self.train, source.crop)

    def done(self) -> Outcome | None:
        """What came out where the output holds the model of this very job. SpecError where it holds another one."""
        if not is_model(self.output):
            return None
        document = read_document(self.output)
        if digest(document.job) != digest(self.job.output_fields()):
            raise SpecError(f"{self.job.output}: holds a model trained otherwise; choose another output folder")
        self.say(f"{self.job.output}: holds the trained model already; nothing was done")
        return Outcome(self.job.output, len(self.train), 0, document.fingerprint, dict(document.metrics))

    def loader(self, *columns: str) -> TokenLoader:
        """Shuffled batches of the training samples; all of them full, from one epoch into the next."""
        source, job = self.job.source, self.job
        crop = None if source.crop is None else Crop(source.crop)
        loader = TokenLoader(
            self.train,
            job.batch,
            True,
            job.seed,
            (CODES, *columns),
            remainder="spill",
            where=source.where,
            crop=crop,
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
        return held_out_loader(self.val, self.job.batch, columns, self.job.source.val_where, self.job.source.crop)

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
            grid=spec.grid or self.codes.grid,
            stem=spec.stem,
            stride=spec.stride,
            width=width,
            depth=depth,
            heads=heads,
            drop_path=spec.drop_path,
            dropout=spec.dropout,
        )

    def learn(self, task: Task, loader: TokenLoader, document: ModelDocument) -> Outcome:
        """Run the loop; where it comes to its end, save the model."""
        job = self.job
        run = Learning(job, task, loader, self.output, self.device, self.say)
        weights = sum(parameter.numel() for parameter in task.module.parameters())
        self.say(
            f"{loader.epoch_length(0):,} samples, grids of {'x'.join(map(str, self.codes.grid))} codes, "
            f"{weights:,} weights on {self.device}"
        )
        average = run.run()
        keep = ("loss", "seconds", "images_per_second", "loader_images_per_second")
        last = run.metrics.rows[-1] if run.metrics.rows else {}
        metrics = {name: value for name, value in last.items() if name in keep or name.startswith("val_")}
        fingerprint = ""
        if average is not None:
            datasets = {"train": self.train} | ({} if self.val is None or self.val is self.train else {"val": self.val})
            document = document.model_copy(update={"metrics": metrics, "job": job.output_fields()})
            fingerprint = save_model(self.output, document, average, datasets).fingerprint
            run.finish()
        return Outcome(job.output, loader.epoch_length(0), run.step, fingerprint, metrics)

    def document(self, kind: str, config: dict[str, Any], **fields: Any) -> ModelDocument:
        return ModelDocument(
            kind=kind,
            model=config,
            tokenizer=self.codes.tokenizer,
            preprocess=dict(self.train.manifest.preprocess),
            **fields,
        )


def held_out_loader(
    dataset: Dataset, batch: int, columns: tuple[str, ...], where: str | None, crop: tuple[int, int] | None
) -> TokenLoader:
    """All samples of a dataset as stored, from the middle of their grids where a crop is given."""
    cut = None if crop is None else Crop(crop, "centre")
    return TokenLoader(dataset, batch, False, 0, (CODES, *columns), where=where, crop=cut)
