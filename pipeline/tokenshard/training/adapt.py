"""Training of token adapters: flips and crops for data that has no pixels any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenshard.errors import SpecError
from tokenshard.loading.decoding import Batch
from tokenshard.quantizers.lookup import Lookup
from tokenshard.spec.base import digest
from tokenshard.spec.job import TrainAdapt
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.folder import tokenizer_from
from tokenshard.training.augment.draws import Draws
from tokenshard.training.augment.vectors import crop_and_resize
from tokenshard.training.codes import CodeSpace, code_space
from tokenshard.training.distributed import any_of_all
from tokenshard.training.loop import FOLDER
from tokenshard.training.models.adapter import AdapterConfig, TokenAdapter
from tokenshard.training.pairs import PairLoader, Pairs, pairs_of_datasets, pairs_of_images
from tokenshard.training.setting import LEARNED_DIM, Outcome, Setting, open_tokens

VALIDATION_BATCH = 64


@dataclass
class AdaptTask:
    """The likelihood of the codes of moved images; on held-out ones, how many codes are right."""

    module: TokenAdapter
    val: Pairs
    codes: CodeSpace
    device: torch.device

    def loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        ids, wanted, flips, boxes = (batch[name].to(self.device) for name in ("codes", "wanted", "flips", "boxes"))
        features = self.module(ids.long(), flips, boxes if self.module.config.crops else None)
        return self.module.nll(features, wanted.long()).mean(), {}

    def validate(self, module: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, TokenAdapter)
        return agreement(module, self.val, self.codes, self.device)


@torch.inference_mode()
def agreement(module: TokenAdapter, pairs: Pairs, codes: CodeSpace, device: torch.device) -> dict[str, float]:
    """Shares of codes that are those of the moved images: `val_flip` of whole, flipped ones, and `val_crop` of crops.

    Beside them what comes without an adapter: `val_flip_grid`, where the grid of codes is flipped as it is; and
    `val_crop_grid`, the codes nearest to resized code vectors, where these are known.
    """
    quantizer = None if codes.codebooks is None else Lookup.of(codes.codebooks).to(device)
    right: dict[str, list[Tensor]] = {}

    def note(name: str, found: Tensor, wanted: Tensor) -> None:
        right.setdefault(f"val_{name}", []).append((found == wanted).double().mean((1, 2, 3)).cpu())

    for view in range(pairs.views):
        kind = "crop" if view else "flip"
        for rows in torch.split(torch.arange(len(pairs)), VALIDATION_BATCH):
            ids, wanted = pairs.codes[rows].to(device).long(), pairs.wanted[rows, view].to(device).long()
            flips, boxes = pairs.flips[rows, view].to(device), pairs.boxes[rows, view].to(device)
            cut = boxes if module.config.crops else None
            note(kind, module.moved(ids, flips, cut), wanted)
            plain = ids
            if view and quantizer is not None:
                plain = quantizer.encode(crop_and_resize(quantizer.vectors(ids), boxes, codes.grid))
            if not view or quantizer is not None:
                note(f"{kind}_grid", torch.where(flips[:, None, None, None], plain.flip(3), plain), wanted)
    return {name: float(torch.cat(parts).mean()) for name, parts in right.items()}


def train_adapt(job: TrainAdapt, device: torch.device, say: Callable[[str], None]) -> Outcome:
    """Train the adapter of a job, or go on with it."""
    setting = Setting(job, device, say)
    if setting.train.fixed_grid is None:
        raise SpecError(f"{job.source.path}: samples have token grids of their own; convert --size, and adapt that")
    codes = code_space(setting.train)
    if len(codes.grid) != 2:
        raise SpecError(f"{job.source.path}: holds clips; an adapter learns from images")
    learn, val = _pairs(job, setting).held_out()
    books = codes.codebooks
    config = AdapterConfig(
        alphabets=codes.alphabets,
        dim=LEARNED_DIM if books is None else books[0].shape[1],
        embedding="learned" if books is None else "frozen",
        grid=(codes.grid[0], codes.grid[1]),
        width=job.adapter.width,
        depth=job.adapter.depth,
        channels=job.adapter.channels,
        crops=job.source.crops > 0,
    )
    torch.manual_seed(job.seed)
    module = TokenAdapter(config)
    if books is not None:
        module.embedding.fill(books)
    loader = PairLoader(learn, job.batch, job.seed, setting.rank, setting.world)
    document = setting.document("adapt", codes, config.model_dump(mode="json"))
    outcome = setting.learn(codes, AdaptTask(module, val, codes, device), loader, document, half=True)
    if outcome.finished and setting.rank == 0:
        setting.output.delete(_name(job))
    return outcome


def _pairs(job: TrainAdapt, setting: Setting) -> Pairs:
    """The pairs of a job, which the first process makes where the output does not hold them yet."""
    name, source = _name(job), job.source
    if setting.rank == 0 and not setting.output.exists(name):
        if source.flipped is not None:
            flipped = open_tokens(source.flipped, job.storage)
            made = pairs_of_datasets(source, setting.train, flipped)
        else:
            tokenizer: Any = tokenizer_from(*setting.train.tokenizer_files())
            if isinstance(tokenizer, ConvVQ) and setting.device.type != "cpu":
                tokenizer = tokenizer.on(str(setting.device))
            made = pairs_of_images(source, setting.train, tokenizer, job.seed, job.storage)
        made.save(setting.output, name)
        setting.say(f"{len(made):,} images in {made.views} views each")
    any_of_all(False, setting.device)  # all wait until they are saved
    return Pairs.load(setting.output, name)


def _name(job: TrainAdapt) -> str:
    return f"{FOLDER}/pairs-{digest(job.output_fields())[:16]}.safetensors"
