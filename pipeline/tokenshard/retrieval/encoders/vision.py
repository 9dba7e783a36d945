"""Vision language models that encode page images: ColPali (Faysse et al., 2024) and its relatives in transformers.

Of what the model makes of its input, only the tokens of the image are kept: neither prompt nor padding. Attention comes
from one hooked layer, the last; keeping that of all layers would take hundreds of megabytes a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.retrieval.encoders.base import PageVectors, Query, Vectors, normalized
from tokenshard.retrieval.encoders.transformers import checkpoint_spec, imported, loaded
from tokenshard.sources.base import Sample

_BATCH = 4
Places = tuple[NDArray[np.int32], tuple[int, int]]
"""Row and column of each image token [n, 2], and the grid."""


@dataclass(frozen=True)
class _Kind:
    """A family of models."""

    model: str
    processor: str
    places: Callable[[Any, Mapping[str, Tensor], int], Places]
    """of the image tokens of page b of a batch, from the processor and what it made"""


def _square(processor: Any, inputs: Mapping[str, Tensor], page: int) -> Places:
    """ColPali squeezes each page into a square."""
    side = isqrt(int(processor.image_seq_length))
    return raster(side, side)


def _dynamic(processor: Any, inputs: Mapping[str, Tensor], page: int) -> Places:
    """ColQwen2 keeps the proportions of a page; patches of the vision model are merged by squares."""
    merge = int(processor.image_processor.merge_size)
    _, rows, columns = (int(size) for size in inputs["image_grid_thw"][page])
    return raster(rows // merge, columns // merge)


def _tiled(processor: Any, inputs: Mapping[str, Tensor], page: int) -> Places:
    """ColModernVBERT cuts a large page into tiles, and adds the whole of it in small as the last one."""
    side = isqrt(int(processor.image_seq_len))
    known = {int(token): place for place, token in enumerate(processor.row_col_ids)}
    tiles = [divmod(known[token], 6) for token in inputs["input_ids"][page].tolist() if token in known]
    rows, columns = (max((tile[axis] + 1 for tile in tiles), default=1) for axis in range(2))
    inside, _ = raster(side, side)
    whole = ((inside + 0.5) * [rows, columns]).astype(np.int32)
    parts = [inside + np.array(tile, np.int32) * side for tile in tiles]
    return np.concatenate([*parts, whole]), (rows * side, columns * side)


MODELS: Mapping[str, _Kind] = {
    "colpali": _Kind("ColPaliForRetrieval", "ColPaliProcessor", _square),
    "colqwen2": _Kind("ColQwen2ForRetrieval", "ColQwen2Processor", _dynamic),
    "colmodernvbert": _Kind("ColModernVBertForRetrieval", "ColModernVBertProcessor", _tiled),
}
"""By `model_type` of the checkpoint; ColQwen2.5 is a ColQwen2 with another vision language model inside."""


class VisionEncoder:
    """A checkpoint of one of :data:`MODELS`. On CPUs a page runs by itself, elsewhere some of equal size together."""

    def __init__(self, folder: Path, model_type: str, device: str, numerics: str) -> None:
        transformers, self._kind = imported(folder), MODELS[model_type]
        try:
            model_class, processor_class = (
                getattr(transformers, name) for name in (self._kind.model, self._kind.processor)
            )
        except AttributeError as error:
            raise SpecError(f"hf:{folder}: {error}; a newer transformers may have it") from error
        self._model = loaded(folder, model_class, device, numerics)
        self._processor = loaded(folder, processor_class)
        self._device = device
        self._attention = _last_attention(self._model, folder)
        self._spec = checkpoint_spec(folder, "pixels", int(self._model.embedding_dim), None, numerics)

    @property
    def spec(self) -> Any:
        return self._spec

    def fitted(self, pages: Sequence[Sample]) -> Self:
        return self

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {}

    def with_tensors(self, tensors: dict[str, NDArray[Any]]) -> Self:
        if tensors:
            raise FormatError(f"vision models have no fitted tensors, and here are {', '.join(sorted(tensors))}")
        return self

    def encode_pages(self, pages: Sequence[Sample]) -> list[PageVectors]:
        if any(page.data.ndim != 3 or not page.data.size for page in pages):
            raise InputError("the page is not drawn; this encoder reads page images (render: true)")
        by_size: dict[tuple[int, ...], list[int]] = {}
        for place, page in enumerate(pages):
            by_size.setdefault(page.data.shape, []).append(place)
        most = 1 if self._device == "cpu" else _BATCH
        found: dict[int, PageVectors] = {}
        for places in by_size.values():
            for start in range(0, len(places), most):
                some = places[start : start + most]
                found.update(zip(some, self._encoded([pages[place].data for place in some]), strict=True))
        return [found[place] for place in range(len(pages))]

    @torch.inference_mode()
    def _encoded(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[PageVectors]:
        inputs = self._processor.process_images([Image.fromarray(image) for image in images])
        inputs = inputs.to(self._device)
        with _watched(self._attention) as seen:
            embeddings = self._model(**inputs).embeddings
        attention = seen[-1].float().mean(1)  # [B, n, n], over heads
        is_image = (inputs["input_ids"] == self._processor.image_token_id) & inputs["attention_mask"].bool()
        for page, mask in enumerate(is_image):
            last = int(inputs["attention_mask"][page].nonzero().max())
            received = attention[page, last][mask]
            positions, grid = self._kind.places(self._processor, inputs, page)
            vectors = embeddings[page][mask].float().cpu().numpy()
            if len(positions) != len(vectors):
                raise InputError(f"{len(vectors)} image tokens on a grid of {grid[0]} x {grid[1]} patches")
            saliency = (received * (len(vectors) / received.sum().clamp_min(1e-12))).cpu().numpy()
            yield PageVectors(normalized(vectors), positions, grid, saliency)

    @torch.inference_mode()
    def encode_query(self, query: Query) -> Vectors:
        """Vectors of the tokens of a text with the model's own prompt; of an image, those of its patches."""
        if not isinstance(query, str):
            return next(iter(self._encoded([query]))).vectors
        inputs = self._processor.process_queries([query]).to(self._device)
        embeddings = self._model(**inputs).embeddings[0]
        return normalized(embeddings[inputs["attention_mask"][0].bool()].float().cpu().numpy())


def raster(rows: int, columns: int) -> Places:
    """Patches in rows from the top."""
    down, right = np.divmod(np.arange(rows * columns, dtype=np.int32), columns)
    return np.stack([down, right], 1), (rows, columns)


def _last_attention(model: nn.Module, folder: Path) -> nn.Module:
    """The attention of the last layer of the language model."""
    language = next(
        (module for name, module in model.named_modules() if name.endswith(("language_model", "text_model"))), None
    )
    layers = language.named_modules() if language is not None else ()
    found = [module for name, module in layers if name.rpartition(".")[2] in {"self_attn", "attn"}]
    if not found:
        raise SpecError(f"hf:{folder}: {type(model).__name__} has no attention where this version looks for it")
    last: nn.Module = found[-1]
    return last


@contextmanager
def _watched(attention: nn.Module) -> Iterator[list[Tensor]]:
    """The attention weights [B, heads, n, n] that a module computes meanwhile."""
    seen: list[Tensor] = []
    hook = attention.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs[1]))
    try:
        yield seen
    finally:
        hook.remove()
