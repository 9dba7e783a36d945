"""What an adapter learns from: codes of images beside codes of the same images flipped or cropped, held in memory.

They are made once, of raw images or of a second dataset, and kept with the state of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenshard.errors import FormatError, SpecError
from tokenshard.loading.decoding import Batch
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.schema import KEY
from tokenshard.sources.base import Sample
from tokenshard.sources.images.decoded import decoded_images
from tokenshard.spec.images import ImageSourceSpec
from tokenshard.spec.training import PairsSpec
from tokenshard.spec.videos import VideoSourceSpec
from tokenshard.store import Store
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.training.augment.draws import Draws
from tokenshard.training.augment.vectors import crop_and_resize, random_boxes
from tokenshard.training.codes import check_same_tokenizer

HELD_OUT = 10
"""One in so many images is validated on."""
MAX_BYTES = 1 << 34


@dataclass(frozen=True)
class Pairs:
    """N images in V views each. The first view is flipped and whole."""

    codes: Tensor
    """int32 [N, L, H, W]"""
    wanted: Tensor
    """int32 [N, V, L, H, W]: codes of the views"""
    flips: Tensor
    """bool [N, V]"""
    boxes: Tensor
    """int64 [N, V, 4]: top, left, rows, columns of codes"""

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def views(self) -> int:
        return self.wanted.shape[1]

    def part(self, chosen: NDArray[np.bool_]) -> Pairs:
        rows = torch.from_numpy(np.flatnonzero(chosen))
        return Pairs(self.codes[rows], self.wanted[rows], self.flips[rows], self.boxes[rows])

    def held_out(self) -> tuple[Pairs, Pairs]:
        """Those to learn from, and those to validate on. Raises SpecError where there is but one image."""
        if len(self) < 2:
            raise SpecError("one image is too few to learn from: the one that is validated on must be another")
        place = np.arange(len(self)) % min(HELD_OUT, len(self)) == 0
        return self.part(~place), self.part(place)

    def save(self, store: Store, name: str) -> None:
        store.put(name, safetensors.torch.save({field.name: getattr(self, field.name) for field in fields(self)}))

    @classmethod
    def load(cls, store: Store, name: str) -> Self:
        """Raises FormatError where the file is damaged."""
        try:
            if store.size(name) > MAX_BYTES:
                raise ValueError(f"larger than {MAX_BYTES} bytes")
            return cls(**safetensors.torch.load(store.read(name)))
        except (ValueError, TypeError, safetensors.SafetensorError) as error:
            raise FormatError(f"{store.url(name)}: damaged ({error}); remove it to make the pairs anew") from error


class PairLoader:
    """Shuffled batches of pairs, this process's part of each; the order is a function of seed and epoch alone."""

    def __init__(self, pairs: Pairs, batch: int, seed: int, rank: int, world: int) -> None:
        self.pairs, self.global_batch_size, self.seed = pairs, batch, seed
        self._first, self._rows = rank * (batch // world), batch // world
        self.epoch = self.position = 0
        if self.epoch_length(0) < batch:
            count = self.epoch_length(0)
            raise SpecError(f"{count:,} pairs do not fill a batch of {batch}; give --batch {count}")

    def epoch_length(self, epoch: int) -> int:
        return len(self.pairs) * self.pairs.views

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch; pairs that do not fill a batch are left to others."""
        length, pairs = self.epoch_length(self.epoch), self.pairs
        order = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch])).permutation(length)
        while self.position + self.global_batch_size <= length:
            first = self.position + self._first
            image, view = np.divmod(order[first : first + self._rows], pairs.views)
            at = torch.from_numpy(image), torch.from_numpy(view)
            batch = {"codes": pairs.codes[at[0]], "wanted": pairs.wanted[at]}
            batch |= {"flips": pairs.flips[at], "boxes": pairs.boxes[at]}
            self.position += self.global_batch_size
            if self.position + self.global_batch_size > length:
                self.epoch, self.position = self.epoch + 1, 0
                yield batch
                return
            yield batch


def pairs_of_datasets(spec: PairsSpec, dataset: Dataset, flipped: Dataset) -> Pairs:
    """Samples of the same key. Raises SpecError where there is none, or the ids do not mean the same."""
    check_same_tokenizer(dataset, flipped)
    place = {key: number for number, key in enumerate(flipped.table([KEY])[KEY].to_pylist())}
    keys = dataset.table([KEY])[KEY].to_pylist()
    both = [(number, place[key]) for number, key in enumerate(keys) if key in place]
    if not both:
        raise SpecError(
            f"{flipped.store.root}: has none of the keys of {dataset.store.root}; flip the images and keep their names"
        )
    chosen = np.array(both)[np.linspace(0, len(both) - 1, min(spec.most, len(both))).round().astype(int)]
    codes, wanted = (_by_level(one.codes(part)) for one, part in zip((dataset, flipped), chosen.T, strict=True))
    boxes = torch.tensor([0, 0, *codes.shape[2:]]).expand(len(codes), 1, 4).contiguous()
    return Pairs(codes, wanted[:, None].contiguous(), torch.ones(len(codes), 1, dtype=torch.bool), boxes)


def _by_level(codes: Any) -> Tensor:
    """[n, *grid] or [n, levels, *grid] -> int32 [n, levels, *grid]."""
    ids = torch.from_numpy(np.asarray(codes).astype(np.int32))
    return ids if ids.ndim == 4 else ids[:, None]


def pairs_of_images(
    spec: PairsSpec, dataset: Dataset, tokenizer: Tokenizer, seed: int, storage: Mapping[str, Any]
) -> Pairs:
    """Images, treated as those of the dataset were, encoded as they are, flipped, and in random crops.

    A crop is one of whole codes, resized to the whole image. Raises SpecError where no image has the dataset's grid.
    """
    assert spec.images is not None
    grid = dataset.fixed_grid
    assert grid is not None
    found: list[NDArray[Any]] = []
    flips, boxes = [], []
    source = treated_like(dataset.manifest.preprocess, spec.images)
    for number, item in enumerate(decoded_images(source, storage, most=spec.most)):
        if not isinstance(item, Sample) or tokenizer.grid(*item.data.shape[:2]) != grid:
            continue
        draws = Draws(seed, number)
        box = random_boxes(spec.crops, (grid[0], grid[1]), spec.crop_scale, spec.crop_ratio, draws)
        flip = draws.random(spec.crops) < 0.5
        flips.append(np.concatenate([[True], flip]))
        boxes.append(np.concatenate([[[0, 0, *grid]], box]))
        found.append(tokenizer.encode(np.stack([item.data, *moved_images(item.data, boxes[-1], flips[-1], grid)])))
    if not found:
        raise SpecError(
            f"{spec.images}: none of its images has {'x'.join(map(str, grid))} codes, as those of "
            f"{dataset.store.root} have; give the images that were converted"
        )
    codes = torch.from_numpy(np.stack(found).astype(np.int32))
    flips_, boxes_ = torch.from_numpy(np.stack(flips)), torch.from_numpy(np.stack(boxes).astype(np.int64))
    return Pairs(codes[:, 0].contiguous(), codes[:, 1:].contiguous(), flips_, boxes_)


def moved_images(
    image: NDArray[np.uint8], boxes: NDArray[np.int64], flips: NDArray[np.bool_], grid: tuple[int, ...]
) -> list[NDArray[np.uint8]]:
    """Views uint8 [height, width, 3] of an image: of each the box of codes, resized to the whole, then flipped."""
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    views = []
    for box, flip in zip(boxes, flips, strict=True):
        if box.tolist() == [0, 0, *grid]:
            view = image
        else:
            scale = np.array([height / grid[0], width / grid[1]] * 2)
            cut = torch.from_numpy(np.round(box * scale).astype(np.int64))[None]
            resized = crop_and_resize(pixels, cut, (height, width))[0].permute(1, 2, 0)
            view = resized.round().clamp(0, 255).to(torch.uint8).numpy()
        views.append(np.ascontiguousarray(view[:, ::-1]) if flip else view)
    return views


PICTURES = ("size", "fit", "interpolation", "background", "max_pixels", "max_bytes")
CLIPS = ("fps", "every_n", "keyframes", "scenes", "clip_seconds", "stride_seconds", "stream", "max_frames")


def treated_like(preprocess: Mapping[str, Any], path: str) -> ImageSourceSpec:
    """Raw images, treated as those of a dataset were before they were encoded."""
    kept = {name: preprocess[name] for name in PICTURES if name in preprocess}
    return ImageSourceSpec.model_validate({**kept, "path": path, "labels": "none"})


def clips_like(preprocess: Mapping[str, Any], path: str) -> VideoSourceSpec:
    """Raw videos, cut into clips and treated as those of a dataset were before they were encoded."""
    kept = {name: preprocess[name] for name in (*PICTURES, *CLIPS) if name in preprocess}
    return VideoSourceSpec.model_validate({**kept, "path": path, "labels": "none"})
