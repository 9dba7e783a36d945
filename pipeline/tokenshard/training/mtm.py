"""Masked token modeling on token shards: pre-training of encoders, and models to draw images from."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tokenshard.errors import SpecError
from tokenshard.loading.decoding import Batch
from tokenshard.loading.loader import TokenLoader
from tokenshard.loading.order import share
from tokenshard.quantizers.distributed import rank_and_world, summed
from tokenshard.quantizers.lookup import Lookup
from tokenshard.spec.job import TrainMtm
from tokenshard.spec.training import MaskSpec
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.folder import tokenizer_from
from tokenshard.tokenizers.frames import decode_frames
from tokenshard.tokenizers.grid_codes import LatticeTokenizer
from tokenshard.training.augment.draws import Draws
from tokenshard.training.augment.recipe import Augmentation
from tokenshard.training.codes import CodeSpace, ids_of, missing_codebooks, unigram_entropy
from tokenshard.training.heads.two_level import cluster_codes
from tokenshard.training.loop import FOLDER
from tokenshard.training.masks import draw_masks
from tokenshard.training.models.adapter import TokenAdapter
from tokenshard.training.models.masked import LARGE_CODEBOOK, MaskedConfig, MaskedModel, check_whole_positions
from tokenshard.training.models.vit import EncoderConfig
from tokenshard.training.sampling import draw_codes
from tokenshard.training.setting import ModelSetting, Outcome

VALIDATION_SEED = 1


class MtmTask:
    """The likelihood of hidden codes, of those alone; drawn images at each validation."""

    def __init__(
        self,
        module: MaskedModel,
        job: TrainMtm,
        codes: CodeSpace,
        val: TokenLoader | None,
        device: torch.device,
        show: Callable[[Tensor, int], None] | None,
        adapter: TokenAdapter | None = None,
    ) -> None:
        self.module, self._job, self._val, self._device, self._show = module, job, val, device, show
        self._augmentation: Augmentation | None = None
        spec, grid = job.augment, module.config.encoder.grid
        self._quantizer: Lookup | None = None
        moved = spec.crop_scale != (1.0, 1.0) or bool(spec.noise or spec.color_adapt) or grid != codes.grid
        if moved or spec.synonyms or spec.swap or adapter is not None:
            self._augmentation = Augmentation(spec, grid, codes.codebooks or (), adapter).to(device)
        if moved:
            assert codes.codebooks is not None
            self._quantizer = Lookup.of(codes.codebooks).to(device)

    def loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Augmented vectors become ids again, those of the nearest codes."""
        ids = ids_of(batch, self._device, len(self.module.config.encoder.alphabets))
        if self._augmentation is not None:
            ids, boxes = self._augmentation.ids(ids, draws)
            if self._quantizer is not None:
                ids = self._quantizer.encode(self._augmentation.vectors(self._quantizer.vectors(ids), boxes, draws))
        nll = hidden_nll(self.module, ids, self._job.mask, draws)
        # the batch of all processes has one mean: those that hide more codes weigh more
        loss = nll.sum() * rank_and_world()[1] / summed(nll.new_tensor(nll.numel()))[0]
        return loss, bits_per_token(loss, self.module)

    @torch.inference_mode()
    def validate(self, module: nn.Module, step: int) -> dict[str, float]:
        """Nats and bits of held-out samples, with the same masks each time."""
        assert isinstance(module, MaskedModel)
        if self._show is not None and self._job.samples:
            self._show(draw_codes(module, self._job.samples, Draws(VALIDATION_SEED, 0, self._device)), step)
        if self._val is None:
            return {}
        figures = masked_figures(module, self._val, self._job.mask)
        return {f"val_{name}": value for name, value in figures.items()}


def hidden_nll(module: MaskedModel, ids: Tensor, mask: MaskSpec, draws: Draws) -> Tensor:
    """Nats of the hidden codes of ids [B, L, *grid], float32 [hidden positions, covered]."""
    levels, config = ids.shape[1], module.config.encoder
    times = config.positions[0] if mask.tube else 1
    positions = math.prod(config.positions) // times
    masks = draw_masks(mask, len(ids), positions, levels, module.head.by_level, draws).at_times(times)
    return module.nll(module(ids, masks.kept, masks.visible), ids, masks.kept)


def bits_per_token(mean_nll: Tensor, module: MaskedModel) -> dict[str, Tensor]:
    """Bits an id, of the heads that give probabilities of ids; none of `summed`, whose loss is a density."""
    if module.head.by_level:
        return {}
    return {"bits_per_token": mean_nll.detach() / (math.log(2) * len(module.config.encoder.alphabets))}


def masked_figures(module: MaskedModel, loader: TokenLoader, mask: MaskSpec) -> dict[str, float]:
    """`loss` (nats a code, all levels) and `bits_per_token` on all samples of a loader, with fixed masks; in all
    processes that share it."""
    sums = torch.zeros(2, dtype=torch.float64, device=module.shown.device)
    size, samples = loader.global_batch_size, loader.epoch_length(0)
    loader.set_epoch(0)
    device, grid = module.shown.device, module.config.encoder.grid
    for number, batch in enumerate(loader):
        ids = ids_of(batch, device, len(module.config.encoder.alphabets))
        if tuple(ids.shape[2:]) != grid:
            ids = _middle(ids, grid)
        first, _ = share(min(size, samples - number * size), loader.rank, loader.world)
        nll = hidden_nll(module, ids, mask, Draws(VALIDATION_SEED, number, device, first))
        sums += torch.stack([nll.double().sum(), torch.tensor(nll.numel(), dtype=torch.float64, device=device)])
    total, count = summed(sums)[0]
    mean = total / count.clamp_min(1)
    return {"loss": float(mean), **{name: float(value) for name, value in bits_per_token(mean, module).items()}}


def _middle(ids: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The middle of token grids; SpecError where they are smaller."""
    if any(own < side for own, side in zip(ids.shape[2:], grid, strict=True)):
        own, wanted = ("x".join(map(str, shape)) for shape in (ids.shape[2:], grid))
        raise SpecError(f"token grids of {own} are smaller than the {wanted} of the model")
    for axis, side in enumerate(grid, 2):
        ids = ids.narrow(axis, (ids.shape[axis] - side) // 2, side)
    return ids


def train_mtm(job: TrainMtm, device: torch.device, say: Callable[[str], None]) -> Outcome:
    """Train the masked token model of a job, or go on with it."""
    setting = ModelSetting(job, device, say)
    encoder = setting.encoder(job.model)
    check_whole_positions(encoder)
    if job.mask.tube and encoder.frames is None:
        raise SpecError(f"{job.source.path}: holds images; mask.tube hides codes of clips")
    config, clusters = masked_config(job, setting, encoder)
    torch.manual_seed(job.seed)
    module = MaskedModel(config, clusters)
    books = setting.codes.codebooks
    if encoder.embedding == "frozen":
        assert books is not None
        module.encoder.embedding.fill(books)
    elif books is None and _needs_vectors(job):
        raise missing_codebooks(setting.train, "augmentation")
    tokenizer = tokenizer_from(*setting.train.tokenizer_files())
    if encoder.embedding == "learned" and isinstance(tokenizer, LatticeTokenizer):
        module.encoder.embedding.order(tokenizer.levels_of_numbers)
    loader = setting.loader()
    if setting.rank == 0:
        _say_references(setting)
    show = None if setting.rank or tokenizer.spec.kind == "external" else _shower(tokenizer, setting)
    task = MtmTask(module, job, setting.codes, setting.val_loader(), device, show, setting.adapter())
    document = setting.document("mtm", setting.codes, config.model_dump(mode="json"))
    return setting.learn(setting.codes, task, loader, document)


def _needs_vectors(job: TrainMtm) -> bool:
    """Whether the augmentation is another one than none, or an adapter's."""
    default = TrainMtm.model_fields["augment"].get_default()
    return bool(job.augment.model_copy(update={"adapt": default.adapt, "adapt_share": default.adapt_share}) != default)


def masked_config(
    job: TrainMtm, setting: ModelSetting, encoder: EncoderConfig
) -> tuple[MaskedConfig, tuple[Tensor, ...]]:
    """The configuration of the model, and the clusters of codes where its head has some."""
    spec, codes = job.decoder, setting.codes
    head = spec.head
    if head == "auto":
        large = max(codes.alphabets) >= LARGE_CODEBOOK and codes.codebooks is not None
        head = "two-level" if large else "tied"
        if len(codes.alphabets) > 1 and encoder.embedding == "frozen":
            head = "summed"
    if head == "summed" and encoder.embedding != "frozen":
        raise SpecError("the head `summed` predicts vectors of the codebook; it needs --embedding frozen")
    clusters: tuple[Tensor, ...] = ()
    if head in ("two-level", "vq-logits"):
        if codes.codebooks is None:
            raise missing_codebooks(setting.train, f"--head {head}")
        clusters = tuple(cluster_codes(book, spec.clusters, job.seed) for book in codes.codebooks)
    config = MaskedConfig(
        encoder=encoder,
        width=spec.width or encoder.width,
        depth=spec.depth,
        head=head,
        clusters=tuple(int(one.max()) + 1 for one in clusters),
        components=spec.components,
    )
    return config, clusters


def _say_references(setting: ModelSetting) -> None:
    """What the loss is to be compared with."""
    uniform = float(np.mean(np.log2(setting.codes.alphabets)))
    setting.say(
        f"bits an id: {uniform:.2f} where all codes are equally likely (ln: {uniform * math.log(2):.2f}), "
        f"{unigram_entropy(setting.train):.2f} by their frequency alone"
    )


def _shower(tokenizer: Tokenizer, setting: ModelSetting) -> Callable[[Tensor, int], None]:
    """Writes drawn samples as one picture; of clips each is a row."""

    def show(ids: Tensor, step: int) -> None:
        drawn = ids.cpu().numpy().astype(np.int32)
        if ids.ndim == 5:
            clips = [decode_frames(tokenizer, codes) for codes in drawn]
            columns, images = len(clips[0]), np.concatenate(clips)
        else:
            columns, images = math.ceil(len(drawn) ** 0.5), _pictures(tokenizer.decode(drawn))
        blank = np.zeros((-len(images) % columns, *images.shape[1:]), np.uint8)
        rows = np.split(np.concatenate([images, blank]), (len(images) + len(blank)) // columns)
        picture = np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        setting.output.put(f"{FOLDER}/samples-{step:08d}.png", file.getvalue())

    return show


def _pictures(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Images as they are; fields of grids [B, H, W] in grey from the lowest to the highest, black where no value is."""
    if images.ndim == 4:
        return images
    low, high = (float(reduce(images)) if np.isfinite(images).any() else 0.0 for reduce in (np.nanmin, np.nanmax))
    grey = 55 + 200 * (np.nan_to_num(images, nan=low) - low) / max(high - low, 1e-12)
    return np.repeat(np.where(np.isnan(images), 0, grey).astype(np.uint8)[..., None], 3, axis=3)
