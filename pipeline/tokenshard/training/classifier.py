"""Training of classifiers on token shards, from scratch or from a trained encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.errors import SpecError
from tokenshard.loading.decoding import Batch
from tokenshard.loading.loader import TokenLoader
from tokenshard.quantizers.distributed import summed
from tokenshard.spec.job import TrainClassifier
from tokenshard.store import Store
from tokenshard.training.augment.draws import Draws
from tokenshard.training.augment.recipe import Augmentation, smoothed_targets
from tokenshard.training.augment.vectors import resize
from tokenshard.training.codes import check_same_classes, ids_of, read_labels
from tokenshard.training.folder import load_model
from tokenshard.training.models.adapter import TokenAdapter
from tokenshard.training.models.classifier import ClassifierConfig, TokenClassifier
from tokenshard.training.models.vit import SIZES, EncoderConfig, TokenEncoder, inflated
from tokenshard.training.setting import ModelSetting, Outcome, tubelet_of


class ClassifierTask:
    """Soft-target cross-entropy of augmented samples; accuracy on held-out ones."""

    def __init__(
        self,
        module: TokenClassifier,
        job: TrainClassifier,
        val: TokenLoader | None,
        device: torch.device,
        adapter: TokenAdapter | None = None,
    ) -> None:
        self.module, self._job, self._val, self._device = module, job, val, device
        embedding, grid = module.encoder.embedding, module.config.encoder.grid
        codebooks = [embedding.codebook(level).detach() for level in range(len(embedding.alphabets))]
        self._augmentation = Augmentation(job.augment, grid, codebooks, adapter).to(device)

    def loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        labels = batch[self._job.label].to(self._device, non_blocking=True).long()
        targets = smoothed_targets(labels, self.module.config.classes, self._job.smoothing)
        ids = ids_of(batch, self._device, len(self.module.encoder.embedding.alphabets))
        vectors, targets = self._augmentation.mixtures(ids, targets, self.module.encoder.embed, draws)
        logits = self.module(vectors)
        return functional.cross_entropy(logits.float(), targets), {}

    def validate(self, module: nn.Module, step: int) -> dict[str, float]:
        if self._val is None:
            return {}
        assert isinstance(module, TokenClassifier)
        return {f"val_{name}": value for name, value in accuracy(module, self._val, self._job.label).items()}


def logits_of(module: TokenClassifier, ids: Tensor) -> Tensor:
    """Float32 logits [B, classes] of ids [B, L, *grid], without augmentation; grids are resized to the model's."""
    vectors = resize(module.encoder.embed(ids), module.config.encoder.grid)
    logits: Tensor = module(vectors)
    return logits.float()


@torch.inference_mode()
def accuracy(module: TokenClassifier, loader: TokenLoader, label: str) -> dict[str, float]:
    """`loss` (nats), `top1` and `top5` of all samples of a loader, in all processes that share it."""
    device, levels = module.head.weight.device, len(module.encoder.embedding.alphabets)
    module.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    loader.set_epoch(0)
    for batch in loader:
        labels = batch[label].to(device).long()
        logits = logits_of(module, ids_of(batch, device, levels))
        best = logits.topk(min(5, logits.shape[1]), 1).indices == labels[:, None]
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        count = torch.tensor(len(labels), dtype=torch.float64, device=device)
        sums += torch.stack([loss.double(), best[:, 0].sum().double(), best.sum().double(), count])
    total = summed(sums)[0]
    loss, top1, top5, _ = (total / total[3].clamp_min(1)).tolist()
    return {"loss": loss, "top1": top1, "top5": top5}


def train_classifier(job: TrainClassifier, device: torch.device, say: Callable[[str], None]) -> Outcome:
    """Train the classifier of a job, or go on with it."""
    setting = ModelSetting(job, device, say)
    labels = read_labels(setting.train, job.label, job.classes)
    if setting.val is not None and setting.val is not setting.train:
        check_same_classes(labels, job.source.path, setting.val)
    torch.manual_seed(job.seed)
    start = None if job.start is None else _started_from(job, setting)
    config = ClassifierConfig(
        encoder=setting.encoder(job.model) if start is None else _adopted(job, start.config, setting.codes.grid),
        classes=labels.classes,
    )
    module = TokenClassifier(config)
    if start is not None:
        module.encoder.load_state_dict(inflated(start.state_dict(), config.encoder.tubelet // start.config.tubelet))
    elif config.encoder.embedding == "frozen":
        assert setting.codes.codebooks is not None
        module.encoder.embedding.fill(setting.codes.codebooks)
    loader, val = setting.loader(job.label), setting.val_loader(job.label)
    task = ClassifierTask(module, job, val, device, setting.adapter())
    shapes = config.model_dump(mode="json")
    document = setting.document("classifier", setting.codes, shapes, label=job.label, names=labels.names)
    return setting.learn(setting.codes, task, loader, document)


def _started_from(job: TrainClassifier, setting: ModelSetting) -> TokenEncoder:
    """The encoder to begin with. Raises SpecError where it reads other codes or has another shape than asked for."""
    assert job.start is not None
    found = load_model(Store(job.start, job.storage))
    found.check_reads(setting.train)
    config = found.encoder.config
    given = job.model.model_fields_set
    asked: dict[str, Any] = {name: getattr(job.model, name) for name in sorted({"embedding", "stem", "stride"} & given)}
    if "size" in given:
        asked |= dict(zip(("width", "depth", "heads"), SIZES[job.model.size], strict=True))
    for name, value in asked.items():
        if getattr(config, name) != value:
            raise SpecError(
                f"{job.start}: is another model: its {name} is {getattr(config, name)}, not {value}; "
                "leave size, embedding, stem and stride out to take those of the model"
            )
    return found.encoder


def _adopted(job: TrainClassifier, config: EncoderConfig, grid: tuple[int, ...]) -> EncoderConfig:
    """The configuration of a trained encoder with what may differ in another run, for samples with a ``grid``: one of
    images may go on with clips, one of clips with longer ones.

    Raises SpecError for an encoder of clips where samples are images, or have frames that its tubelets do not fill.
    """
    frames, tubelet = grid[:-2], config.tubelet if config.frames else tubelet_of(job.model, grid)
    if config.frames is not None and (not frames or frames[0] % tubelet or job.model.tubelet not in (None, tubelet)):
        found = f"clips of {frames[0]} frames" if frames else "images"
        raise SpecError(
            f"{job.start}: sees clips in tubelets of {tubelet} frames, {job.source.path} gives {found}; give clips, a "
            f"--crop with a multiple of {tubelet} frames, and leave model.tubelet out"
        )
    changed = {
        "tubelet": tubelet,
        "grid": (*frames, *(job.model.grid or config.grid[-2:])),
        "drop_path": job.model.drop_path,
        "dropout": job.model.dropout,
    }
    return EncoderConfig.model_validate({**config.model_dump(), **changed})
