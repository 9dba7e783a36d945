"""Training of an arm: the package's trainers on tokens; on pixels the same loop, optimizer and network with the stem of
a vision transformer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from accuracy.images import Labels, Pixels
from tokenshard.spec.job import LearnJob, TrainAdapt, TrainClassifier, TrainMtm, build_job
from tokenshard.spec.training import AugmentSpec
from tokenshard.store import Store
from tokenshard.training.augment.draws import Draws
from tokenshard.training.augment.recipe import Augmentation, smoothed_targets
from tokenshard.training.loop import Learning
from tokenshard.training.models.classifier import ClassifierConfig, TokenClassifier
from tokenshard.training.models.vit import SIZES, EncoderConfig
from tokenshard.training.setting import device_of
from tokenshard.training.start import train

FLIP = 0.5
SMOOTHING = 0.1


@dataclass(frozen=True)
class Recipe:
    """What all arms have in common."""

    size: str
    positions: int
    """along an axis"""
    steps: int
    pretrain: int
    """steps of masked token modeling, which come before"""
    adapter: int
    """width of token adapters, which have as many steps as classifiers"""
    batch: int
    cutmix: float
    lr: float
    ema: float
    device: str
    precision: str

    def job(self, kind: type[LearnJob], source: dict[str, Any], output: Path, seed: int, **fields: Any) -> LearnJob:
        engine = {"device": self.device}
        log = {"every": max(1, self.steps // 4), "checkpoint_every": max(500, self.steps)}
        common = {"output": str(output), "seed": seed, "batch": self.batch, "precision": self.precision}
        optimizer = {"lr": self.lr, "ema": self.ema}
        return build_job(
            kind, {"source": source, **common, "engine": engine, "log": log, "optimizer": optimizer, **fields}
        )


@dataclass(frozen=True)
class Trained:
    """What a run came to."""

    top1: float
    """percent"""
    cpu_seconds: float
    images_per_second: float


# -- tokens -----------------------------------------------------------------------------------------------------------


def stride_of(grid: int, positions: int) -> int:
    """Codes a position covers along an axis; a grid of fewer codes than positions has a position for each."""
    return max(1, grid // positions)


def train_tokens(
    recipe: Recipe,
    source: dict[str, Any],
    grid: int,
    output: Path,
    seed: int,
    start: Path | None = None,
    adapter: Path | None = None,
) -> Trained:
    """A classifier on a token dataset, from scratch or from a masked model, augmented with an adapter or without."""
    before = time.process_time()
    model: dict[str, Any] = {}
    if start is None:
        model = {"model": {"size": recipe.size, "stride": stride_of(grid, recipe.positions)}}
    job = recipe.job(
        TrainClassifier,
        source,
        output,
        seed,
        steps=recipe.steps,
        start=None if start is None else str(start),
        augment={"cutmix": recipe.cutmix, **adapting(adapter)},
        **model,
    )
    metrics = train(job, lambda text: None).metrics
    return Trained(100 * metrics["val_top1"], time.process_time() - before, metrics["images_per_second"])


def pretrain(
    recipe: Recipe, source: dict[str, Any], grid: int, output: Path, seed: int, adapter: Path | None = None
) -> None:
    """A masked token model."""
    model = {"size": recipe.size, "stride": stride_of(grid, recipe.positions), "stem": "patch"}
    optimizer = {"lr": recipe.lr, "ema": recipe.ema, "betas": (0.9, 0.95)}
    fields = {"model": model, "optimizer": optimizer, "decoder": {"depth": 2}, "samples": 0}
    fields["augment"] = adapting(adapter)
    train(recipe.job(TrainMtm, source, output, seed, steps=recipe.pretrain, **fields), lambda text: None)


def adapting(adapter: Path | None) -> dict[str, Any]:
    return {} if adapter is None else {"adapt": str(adapter)}


def train_adapter(recipe: Recipe, tokens: Path, images: Path, output: Path) -> None:
    """A token adapter for the tokenizer of a dataset, from the images it was made of."""
    fields = {"adapter": {"width": recipe.adapter}, "steps": recipe.steps}
    train(recipe.job(TrainAdapt, {"path": str(tokens), "images": str(images)}, output, 0, **fields), lambda text: None)


# -- pixels -----------------------------------------------------------------------------------------------------------


class PixelBatches:
    """Shuffled batches of images in memory, all of them full: what a loader is to the loop. `codes` are the pixels."""

    def __init__(self, images: Pixels, labels: Labels, batch: int, seed: int) -> None:
        self._images, self._labels, self._seed = torch.tensor(images), torch.tensor(labels), seed
        self.global_batch_size, self._next = batch, 0

    def epoch_length(self, epoch: int) -> int:
        return len(self._images)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._next = int(state["next"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            first = self._next * self.global_batch_size
            chosen = torch.from_numpy(self._order(first, first + self.global_batch_size))
            self._next += 1
            yield {"codes": self._images[chosen], "label": self._labels[chosen]}

    def _order(self, first: int, last: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Numbers of the images at places of the epochs that follow each other."""
        count = len(self._images)
        epochs = range(first // count, (last - 1) // count + 1)
        orders = [np.random.default_rng([self._seed, epoch]).permutation(count) for epoch in epochs]
        start = first - epochs.start * count
        return np.concatenate(orders)[start : start + last - first]


class PixelTask:
    """Cross-entropy of images: flipped, cropped and mixed like code vectors, which they are to the network."""

    def __init__(self, module: TokenClassifier, recipe: Recipe, images: Pixels, device: torch.device) -> None:
        self.module, self._device = module, device
        spec = AugmentSpec(synonyms=0, swap=0, noise=0, cutmix=recipe.cutmix)
        self._augmentation = Augmentation(spec, module.config.encoder.grid, ())
        values = images[:: max(1, len(images) // 1000)].reshape(-1, 3) / 255
        self.mean, self.deviation = (
            torch.tensor(found, dtype=torch.float32, device=device)[:, None, None]
            for found in (values.mean(0), values.std(0))
        )

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 of mean 0 and variance 1."""
        return (images.float() / 255 - self.mean) / self.deviation

    def _moved(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, 3, H, W] on the device."""
        return images.to(self._device, non_blocking=True).permute(0, 3, 1, 2)

    def loss(self, batch: dict[str, Any], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        images = self._moved(batch["codes"])
        flipped = draws.chosen(len(images), FLIP)[:, None, None, None]
        images = torch.where(flipped, images.flip(3), images)
        targets = smoothed_targets(batch["label"].to(self._device), self.module.config.classes, SMOOTHING)
        pixels, targets = self._augmentation.mixtures(images, targets, self.normalised, draws)
        return functional.cross_entropy(self.module(pixels).float(), targets), {}

    def validate(self, module: nn.Module, step: int) -> dict[str, float]:
        return {}

    @torch.inference_mode()
    def accuracy(self, module: nn.Module, images: Pixels, labels: Labels, batch: int) -> float:
        """Top-1 in percent."""
        module.eval()
        right = 0
        for start in range(0, len(images), batch):
            logits = module(self.normalised(self._moved(torch.from_numpy(images[start : start + batch]))))
            right += int((logits.argmax(1).cpu().numpy() == labels[start : start + batch]).sum())
        return 100 * right / len(images)


def train_pixels(
    recipe: Recipe,
    train_set: tuple[Pixels, Labels],
    test_set: tuple[Pixels, Labels],
    classes: int,
    output: Path,
    seed: int,
) -> Trained:
    """A classifier on images uint8 [N, side, side, 3]. The stem has the strides and the overlap of that on codes."""
    before = time.process_time()
    images, labels = train_set
    side, device = images.shape[1], device_of(recipe.device)
    job = recipe.job(TrainClassifier, {"path": str(output)}, output, seed, steps=recipe.steps)
    torch.manual_seed(seed)
    width, depth, heads = SIZES[recipe.size]
    encoder = EncoderConfig(
        alphabets=(1,),  # no codes: the table of one vector is not used
        dim=images.shape[3],
        embedding="frozen",
        grid=(side, side),
        stem="overlap",
        stride=side // recipe.positions,
        width=width,
        depth=depth,
        heads=heads,
    )
    task = PixelTask(TokenClassifier(ClassifierConfig(encoder=encoder, classes=classes)), recipe, images, device)
    run = Learning(
        job, task, PixelBatches(images, labels, recipe.batch, seed), Store(str(output)), device, lambda text: None
    )
    average = run.run()
    assert average is not None
    top1 = task.accuracy(average, *test_set, recipe.batch)
    run.finish()
    return Trained(top1, time.process_time() - before, float(run.metrics.rows[-1]["images_per_second"]))
