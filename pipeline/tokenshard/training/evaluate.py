"""What a trained model is worth on a dataset, and what it says of images: `tokenshard eval`, `probe` and `predict`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.loading.crop import Crop
from tokenshard.loading.decoding import CODES
from tokenshard.loading.loader import TokenLoader
from tokenshard.shards.dataset import Dataset
from tokenshard.sources.base import Reject, Sample
from tokenshard.sources.images.decoded import decoded_images, decoded_samples
from tokenshard.spec.training import MaskSpec
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.frames import encode_frames
from tokenshard.training.attentive import attentive_accuracy
from tokenshard.training.classifier import accuracy, logits_of
from tokenshard.training.codes import (
    Labels,
    check_same_classes,
    check_same_tokenizer,
    code_space,
    decodes_from_start,
    read_labels,
)
from tokenshard.training.folder import TrainedModel
from tokenshard.training.models.classifier import TokenClassifier
from tokenshard.training.models.masked import MaskedModel
from tokenshard.training.mtm import masked_figures
from tokenshard.training.pairs import clips_like, treated_like
from tokenshard.training.probe import best_layer, knn_accuracy, linear_accuracy, read_features
from tokenshard.training.setting import held_out_loader

ProbeKind = Literal["knn", "linear", "attentive"]


def _crop_of(model: TrainedModel, dataset: Dataset) -> tuple[int, ...] | None:
    """Where samples have grids of their own, or clips more frames than the model sees, the middle that it can take.

    Raises SpecError for clips where the model sees images, and the reverse.
    """
    grid, fixed = model.encoder.config.grid, dataset.fixed_grid
    if len(grid) != len(dataset.manifest.code.grid):
        wanted = "images" if len(grid) == 2 else f"clips of {grid[0]} frames"
        raise SpecError(
            f"{dataset.store.root}: token grids have {len(dataset.manifest.code.grid)} axes; the model of "
            f"{model.store.root} sees {wanted}"
        )
    if fixed is None:
        return grid
    return None if fixed[:-2] == grid[:-2] else (*grid[:-2], *fixed[-2:])


@torch.inference_mode()
def evaluate(model: TrainedModel, dataset: Dataset, batch: int = 256, where: str | None = None) -> dict[str, Any]:
    """Of a classifier `loss`, `top1` and `top5`; of a masked model `loss` and `bits_per_token`, with its own masks.

    Raises SpecError where ids, labels or classes are not those of the model.
    """
    model.check_reads(dataset)
    crop = _crop_of(model, dataset)
    code_space(dataset, crop)
    module = model.module
    if isinstance(module, MaskedModel):
        loader = held_out_loader(dataset, batch, (), where, crop, decodes_from_start(dataset))
        mask = MaskSpec.model_validate(model.document.job.get("mask", {}))
        return {"num_samples": loader.epoch_length(0), **masked_figures(module, loader, mask)}
    assert isinstance(module, TokenClassifier)
    label = model.document.label or "label"
    check_same_classes(Labels(label, module.config.classes, model.document.names), model.store.root, dataset)
    loader = held_out_loader(dataset, batch, (label,), where, crop)
    return {"num_samples": loader.epoch_length(0), **accuracy(module, loader, label)}


def probe(
    model: TrainedModel,
    train: Dataset,
    test: Dataset,
    kind: ProbeKind = "linear",
    *,
    label: str = "label",
    layer: int | None = None,
    neighbours: int = 20,
    batch: int = 256,
    epochs: int = 30,
    where: str | None = None,
    test_where: str | None = None,
) -> dict[str, Any]:
    """Accuracy of a probe on features of the encoder, `top1`; the `layer` (None: the best on held-out train samples).

    Raises SpecError where ids, labels or classes of the datasets do not fit each other or the model.
    """
    model.check_reads(train)
    labels = read_labels(train, label)
    check_same_classes(labels, train.store.root, test)
    encoder, crop = model.encoder, _crop_of(model, train)
    check_same_tokenizer(train, test, crop is not None)
    depth = encoder.config.depth
    if layer is not None and not 0 <= layer <= depth:
        raise SpecError(f"{model.store.root}: has {depth} blocks; --layer must be from 0 to {depth}, or all")
    layers = list(range(depth + 1)) if layer is None else [layer]
    reads = [(train, where), (test, test_where)]
    loaders = [held_out_loader(dataset, batch, (label,), chosen, crop) for dataset, chosen in reads]
    found = read_features(encoder, loaders[0], label, layers)
    place = best_layer(found, neighbours, labels.classes) if layer is None else 0
    result: dict[str, Any] = {"kind": kind, "layer": layers[place], "num_samples": loaders[1].epoch_length(0)}
    if kind == "attentive":
        cut = None if crop is None else Crop(crop)
        shuffled = TokenLoader(train, batch, True, 0, (CODES, label), where=where, crop=cut)
        top1 = attentive_accuracy(encoder, shuffled, loaders[1], label, labels.classes, layers[place], epochs)
        return {**result, "top1": top1}
    mine = found.layer(place)
    other = read_features(encoder, loaders[1], label, [layers[place]])
    if kind == "knn":
        return {**result, "neighbours": neighbours, "top1": knn_accuracy(mine, other, neighbours, labels.classes)}
    return {**result, "top1": linear_accuracy(mine, other, labels.classes)}


def raw_samples(model: TrainedModel, path: str, storage: dict[str, Any]) -> Iterator[Sample | Reject]:
    """Raw images or, where the model sees clips, those of raw videos, as the model learned them."""
    preprocess = model.document.preprocess
    if model.encoder.config.frames is None:
        return decoded_images(treated_like(preprocess, path), storage)
    from tokenshard.sources.video.source import open_video_source

    return decoded_samples(open_video_source(clips_like(preprocess, path), storage))


@torch.inference_mode()
def predict(model: TrainedModel, tokenizer: Tokenizer, image: NDArray[np.uint8], most: int = 5) -> list[dict[str, Any]]:
    """The likeliest classes of an image uint8 [height, width, 3] or of a clip [frames, height, width, 3]: `class`,
    `name` and `probability`. A model of clips sees the middle.

    Raises InputError where a clip has fewer frames than the model sees.
    """
    module = model.module
    if not isinstance(module, TokenClassifier):
        raise SpecError(f"{model.store.root}: is a masked model; predict needs one of `tokenshard train classifier`")
    if tokenizer.spec.fingerprint != model.document.tokenizer:
        raise FormatError(f"{model.store.url('tokenizer')}: another tokenizer than config.json names; copy it again")
    frames = module.config.encoder.frames
    if frames is None:
        codes = tokenizer.encode(image[None])
    else:
        codes = encode_frames(tokenizer, image)[None]
        if codes.shape[2] < frames:
            raise InputError(f"a clip of {codes.shape[2]} frames of tokens; the model sees {frames}")
        first = (codes.shape[2] - frames) // 2
        codes = codes[:, :, first : first + frames]
    ids = torch.from_numpy(codes.astype(np.int64)).to(module.head.weight.device)
    best = logits_of(module, ids).softmax(1)[0].topk(min(most, module.config.classes))
    names = model.document.names
    return [
        {"class": number, "name": names[number] if names else str(number), "probability": probability}
        for number, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
