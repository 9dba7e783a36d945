"""The `conv` tokenizer: a convolutional encoder, a quantizer, and a convolutional decoder (VQGAN family), trained by
`tokenshard tokenizer train`.

Images of any size: edges are mirrored up to whole tokens, and cut off again by ``decode``. On the CPU images go through
the network one by one in float32, so that ids depend neither on the batch nor on the number of threads.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, JsonValue, ValidationError
from torch import Tensor, nn

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.quantizers.base import Quantizer
from tokenshard.quantizers.lookup import Lookup
from tokenshard.quantizers.registry import make_quantizer
from tokenshard.spec.base import StoredDocument
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.conv_network import AutoEncoder, to_signed, to_uint8, to_unit
from tokenshard.tokenizers.frozen import FrozenEncoder
from tokenshard.tokenizers.int8 import in_int8
from tokenshard.tokenizers.networks import Network, first_error
from tokenshard.tokenizers.patch_network import PatchLocalConfig
from tokenshard.tokenizers.tiling import Span, reach, spans
from tokenshard.tokenizers.weights import check_tensors, weights_sha256, weights_to_bytes

Numerics = Literal["fp32", "bf16", "int8"]
NUMERICS: tuple[Numerics, ...] = ("fp32", "bf16", "int8")
STORED_DTYPES = {"float16": np.float16, "float32": np.float32}
MAX_CODES = 1 << 20
MAX_LEVELS = 64
DECODE_PIXELS = 1 << 21
"""Pixels decoded at a time on an accelerator; larger images go through the network in tiles."""
TILE = 1024
"""Side of a tile in pixels, without its halo."""
MAX_WHOLE_PIXELS = 1 << 22
"""Largest image for a network that sees all of it at once."""
CANVAS = 32
"""Patches along each side of the square in which a patch-local encoder gets them: always the same shape, so that the
arithmetic is always the same."""


class ConvConfig(StoredDocument):
    """`config` of a conv tokenizer in `tokenizer.json`."""

    network: Network
    quantizer: str = Field(description="registered name of the quantizer")
    quantizer_options: dict[str, JsonValue] = Field(default_factory=dict)
    stored: Literal["float16", "float32"] = Field(
        default="float32", description="dtype of the weights file; everything is computed in float32"
    )
    recipe: dict[str, JsonValue] = Field(default_factory=dict, description="how it was trained, for the record")


class ConvVQ:
    """A trained convolutional tokenizer on one device, in one numerics mode.

    ``fp32`` on the CPU is the reproducible mode. ``bf16`` computes the network in bfloat16 (the search stays float32):
    faster on a GPU, a few ids in a hundred differ, so it has a fingerprint of its own. ``int8`` computes convolutions
    in eight bits: half as fast again on x86 CPUs, one id in twenty differs. Raises :class:`SpecError` where ``int8`` is
    to be compiled.
    """

    def __init__(
        self,
        config: ConvConfig,
        network: AutoEncoder,
        quantizer: Quantizer,
        numerics: Numerics = "fp32",
        device: str | torch.device = "cpu",
        compiled: bool = False,
        tables: tuple[str, ...] = (),
    ) -> None:
        self.config, self.numerics, self.device = config, numerics, torch.device(device)
        self._tables = tables
        self._weights = _stored(network, quantizer, config.stored)
        _load(network, quantizer, self._weights)
        self.quantizer = quantizer.to(self.device).eval().requires_grad_(False)
        self.network = network.to(self.device).eval().requires_grad_(False)
        if self.device.type != "cpu":
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        seen = reach(network.encoder)
        self._halo_in = None if seen is None else -(-seen // config.network.downsample)
        self._halo_out = reach(network.decoder)
        if compiled and numerics == "int8":
            raise SpecError("int8 is not compiled; leave --compile out, or use --numerics bf16")
        self._encoder, self._decoder = (self._computed(half, compiled) for half in (network.encoder, network.decoder))

    @classmethod
    def from_tensors(cls, spec: TokenizerSpec, tensors: dict[str, NDArray[Any]]) -> ConvVQ:
        """The tokenizer of a stored description. Raises :class:`FormatError` where the two do not fit."""
        try:
            config = ConvConfig.model_validate(spec.config)
        except ValidationError as error:
            place, message = first_error(error)
            raise FormatError(f"config.{place}: {message}") from error
        side = config.network.downsample
        if not 1 <= len(spec.levels) <= MAX_LEVELS or max(spec.levels) > MAX_CODES or spec.downsample != (side, side):
            raise FormatError(
                f"levels {list(spec.levels)} and downsample {list(spec.downsample)} do not fit an f{side} conv "
                f"tokenizer of at most {MAX_LEVELS} levels of {MAX_CODES} codes"
            )
        with torch.device("meta"):  # shapes only: nothing is allocated before the tensors turn out to fit
            network = AutoEncoder(config.network)
            quantizer = _quantizer(config, spec.levels)
        dtype = STORED_DTYPES[config.stored]
        shapes = {name: tuple(tensor.shape) for name, tensor in _state(network, quantizer).items()}
        check_tensors(tensors, {name: (dtype, shape) for name, shape in shapes.items()})
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise FormatError("weights hold values that are not finite")
        network.to_empty(device="cpu")
        quantizer.to_empty(device="cpu")
        _load(network, quantizer, tensors)
        numerics = next((mode for mode in NUMERICS if mode == spec.numerics), None)
        if numerics is None:
            raise FormatError(f"numerics {spec.numerics!r} is not one of {', '.join(NUMERICS)}")
        return cls(config, network, quantizer, numerics, tables=spec.tables)

    def on(self, device: str, numerics: Numerics | None = None, compiled: bool = False) -> ConvVQ:
        """The same tokenizer on another device, in another numerics mode, or compiled by ``torch.compile``."""
        return ConvVQ(self.config, *self._copies(), numerics or self.numerics, device, compiled, self._tables)

    def with_part(self, part: Literal["encoder", "decoder"], module: nn.Module) -> ConvVQ:
        """The same tokenizer with another module in the place of its encoder or decoder, e.g. to study a layer."""
        made = copy.copy(self)
        if part == "encoder":
            made._encoder = module
        else:
            made._decoder = module
        return made

    def with_tables(self, tables: Sequence[bytes]) -> ConvVQ:
        """The same tokenizer with entropy tables, which are then saved beside it; without any, it has none."""
        names = tuple(hashlib.sha256(table).hexdigest() for table in tables)
        return ConvVQ(self.config, *self._copies(), self.numerics, self.device, tables=names)

    def _copies(self) -> tuple[AutoEncoder, Quantizer]:
        """Network and quantizer once more; a frozen encoder that is not part of the weights is shared."""
        network, quantizer = AutoEncoder(self.config.network), _quantizer(self.config, self.quantizer.levels)
        _load(network, quantizer, self._weights)
        if isinstance(network.encoder, FrozenEncoder) and isinstance(self.network.encoder, FrozenEncoder):
            network.encoder.borrowed = self.network.encoder.borrowed
        return network, quantizer

    @cached_property
    def spec(self) -> TokenizerSpec:
        """Description of this tokenizer, with the hash of its weights."""
        side = self.config.network.downsample
        return TokenizerSpec(
            kind="conv",
            levels=self.quantizer.levels,
            downsample=(side, side),
            config=self.config.model_dump(mode="json"),
            numerics=self.numerics,
            weights_sha256=weights_sha256(weights_to_bytes(self.tensors())),
            tables=self._tables,
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image of that size."""
        side = self.config.network.downsample
        return -(-height // side), -(-width // side)

    def encode(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """uint8 [B, height, width, 3] -> uint16 (int32 above 65,536 codes) [B, levels, rows, columns].

        Edges are mirrored below and to the right up to whole tokens. Large images are encoded in tiles, with as much
        around each as the network sees. Raises :class:`InputError` on other arrays, and on images that are too large
        for a network that sees all of them at once.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or 0 in images.shape[1:]:
            raise InputError(
                f"expected images uint8 [batch, height, width, 3], not {images.dtype} {list(images.shape)}"
            )
        levels, side = self.quantizer.levels, self.config.network.downsample
        dtype = np.uint16 if max(levels) <= 1 << 16 else np.int32
        ids = np.empty((len(images), len(levels), *self.grid(*images.shape[1:3])), dtype)
        if isinstance(self.config.network, PatchLocalConfig):
            self._encode_patches(_pad(images, side), ids)
            return ids
        step = self._images_at_once(images.shape[1], images.shape[2])
        for start in range(0, len(images), step):
            batch = _pad(images[start : start + step], side)
            for down, right in self._windows(ids.shape[2], ids.shape[3], self._halo_in):
                pixels = self._to_device(batch[:, down.read(side), right.read(side)])
                found = self.encode_tensor(pixels)[..., down.inside(1), right.inside(1)]
                ids[start : start + step, :, down.kept(1), right.kept(1)] = found.cpu().numpy()
        return ids

    def _encode_patches(self, images: NDArray[np.uint8], ids: NDArray[Any]) -> None:
        """Fill ids [B, levels, rows, columns] of images of whole patches, a canvas of patches at a time."""
        side = self.config.network.downsample
        batch, levels, rows, columns = ids.shape
        patches = images.reshape(batch, rows, side, columns, side, 3)
        count = CANVAS * CANVAS * (1 if self.device.type == "cpu" else 64)
        for start in range(0, batch * rows * columns, count):
            places = np.arange(start, min(start + count, batch * rows * columns))
            image, row, column = np.unravel_index(places, (batch, rows, columns))
            canvas = np.zeros((count, side, side, 3), np.uint8)
            canvas[: len(places)] = patches[image, row, :, column]
            canvas = canvas.reshape(-1, CANVAS, CANVAS, side, side, 3).swapaxes(2, 3)
            found = self.encode_tensor(self._to_device(canvas.reshape(-1, CANVAS * side, CANVAS * side, 3)))
            flat = found.movedim(1, -1).reshape(-1, levels)[: len(places)]
            ids[image, :, row, column] = flat.cpu().numpy()

    def _to_device(self, images: NDArray[np.uint8]) -> Tensor:
        """[B, height, width, 3] -> [B, 3, height, width] on the device."""
        if any(stride < 0 for stride in images.strides):  # torch takes none of these, even along an axis of one image
            images = images.copy()
        images = np.require(images, requirements=["C", "W"])  # torch warns of arrays that are read-only
        return torch.from_numpy(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def _images_at_once(self, height: int, width: int) -> int:
        """On the CPU one, so that ids do not depend on the batch."""
        return 1 if self.device.type == "cpu" else max(1, DECODE_PIXELS // (height * width))

    def _windows(self, rows: int, columns: int, halo: int | None) -> Iterator[tuple[Span, Span]]:
        """Tiles of a grid with that halo in tokens; one where the image is small, or (halo None) has to be whole."""
        side = self.config.network.downsample
        pixels = rows * columns * side**2
        if halo is None and pixels > MAX_WHOLE_PIXELS:
            raise InputError(
                f"an image of {rows * side}x{columns * side} pixels is too large for this tokenizer: its network has "
                f"normalization or attention over the whole image, so it cannot be tiled, and takes at most "
                f"{MAX_WHOLE_PIXELS:,} pixels at once; give smaller images (--size) or another tokenizer"
            )
        tile = max(1, TILE // side) if halo is not None and pixels > DECODE_PIXELS else max(rows, columns)
        for down in spans(rows, tile, halo or 0):
            for right in spans(columns, tile, halo or 0):
                yield down, right

    @torch.inference_mode()
    def encode_tensor(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, height, width] on the device, sizes multiples of f -> int64 ids [B, levels, rows, columns]."""
        with self._precision():
            z = self._encoder(to_signed(pixels) if self.config.network.pixels == "signed" else to_unit(pixels))
        return self.quantizer.encode(z.float())

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Ids [B, levels, rows, columns] -> uint8 [B, height, width, 3], cropped to ``size`` (height, width).

        Of a residual quantizer the first levels alone will do.
        Raises :class:`FormatError` on ids outside a codebook or a size the grid cannot have come from.
        """
        self._check(codes, size)
        side = self.config.network.downsample
        height, width = size or (codes.shape[2] * side, codes.shape[3] * side)
        images = np.empty((len(codes), height, width, 3), np.uint8)
        step = self._images_at_once(height, width)
        for start in range(0, len(codes), step):
            for down, right in self._windows(codes.shape[2], codes.shape[3], self._halo_out):
                window = codes[start : start + step, :, down.read(1), right.read(1)]
                pixels = self.decode_tensor(torch.from_numpy(window.astype(np.int64)).to(self.device))
                pixels = pixels[:, :, down.inside(side), right.inside(side)]
                place = images[start : start + step, down.kept(side), right.kept(side)]
                place[:] = pixels[:, :, : place.shape[1], : place.shape[2]].permute(0, 2, 3, 1).cpu().numpy()
        return images

    @torch.inference_mode()
    def decode_tensor(self, ids: Tensor) -> Tensor:
        """int64 ids [B, levels, rows, columns] on the device -> uint8 [B, 3, rows * f, columns * f]."""
        vectors = self.quantizer.vectors(ids)
        with self._precision():
            pixels = self._decoder(vectors)
        return to_uint8(pixels, self.config.network.pixels)

    @torch.no_grad()
    def codebooks(self) -> tuple[NDArray[np.float32], ...]:
        """The latent vectors [K, dim] of each level; those of the levels add up."""
        if isinstance(self.quantizer, Lookup):
            return tuple(self.quantizer.codebook(level).cpu().numpy() for level in range(len(self.quantizer.levels)))
        (count,) = self.quantizer.levels
        vectors = self.quantizer.vectors(torch.arange(count, device=self.device)[None, None])
        return (np.ascontiguousarray(vectors[0].T.cpu().numpy()),)

    def with_codebooks(self, codebooks: Sequence[NDArray[np.float32]]) -> ConvVQ:
        """The same network with these codebooks, looked up as they are."""
        normalized = isinstance(self.quantizer, Lookup) and self.quantizer.normalized
        quantizer = Lookup.of([torch.from_numpy(np.array(codebook)) for codebook in codebooks], (), normalized)
        made = {"quantizer": "lookup", "quantizer_options": quantizer.options(), "stored": "float32"}
        return ConvVQ(self.config.model_copy(update=made), self._copies()[0], quantizer, self.numerics, self.device)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights `encoder.*`, `decoder.*` and `quantizer.*`, in the stored dtype."""
        return self._weights

    def _computed(self, half: nn.Module, compiled: bool) -> Callable[[Tensor], Tensor]:
        """Encoder or decoder as it is run."""
        half = in_int8(half) if self.numerics == "int8" and not isinstance(half, FrozenEncoder) else half
        return torch.compile(half) if compiled else half

    def _precision(self) -> AbstractContextManager[Any]:
        """bfloat16 where that is the mode; else float32 in full, without the shorter mantissa of TF32."""
        if self.numerics == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        if self.device.type == "cuda":
            return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        return nullcontext()

    def _check(self, codes: NDArray[Any], size: tuple[int, int] | None) -> None:
        levels = self.quantizer.levels
        if codes.ndim != 4 or not 1 <= codes.shape[1] <= len(levels):
            raise FormatError(f"codes {list(codes.shape)} are not [batch, {len(levels)} levels, rows, columns]")
        for level, (plane, count) in enumerate(zip(codes.swapaxes(0, 1), levels, strict=False)):
            if plane.size and not 0 <= int(plane.min()) <= int(plane.max()) < count:
                raise FormatError(f"ids {plane.min()} to {plane.max()} of level {level} do not fit {count} codes")
        if size is not None and self.grid(*size) != codes.shape[2:]:
            raise FormatError(
                f"a {codes.shape[2]}x{codes.shape[3]} grid of {self.spec.downsample} tokens is not "
                f"{size[0]}x{size[1]} pixels"
            )


def _pad(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Images [B, height, width, 3], mirrored at the lower and right edges up to multiples of ``side``."""
    below, right = -images.shape[1] % side, -images.shape[2] % side
    if below or right:
        images = np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), mode="reflect")
    return images


def _quantizer(config: ConvConfig, levels: tuple[int, ...]) -> Quantizer:
    try:
        made = make_quantizer(config.quantizer, **config.quantizer_options)
    except (SpecError, ValueError) as error:
        raise FormatError(f"config.quantizer: {error}") from error
    if made.levels != tuple(levels) or made.dim != config.network.dim:
        raise FormatError(
            f"quantizer has levels {list(made.levels)} and dim {made.dim}; the description says {list(levels)}, "
            f"the network {config.network.dim}"
        )
    return made


def _state(network: AutoEncoder, quantizer: Quantizer) -> dict[str, Tensor]:
    return network.state_dict() | {f"quantizer.{name}": tensor for name, tensor in quantizer.state_dict().items()}


def _stored(network: AutoEncoder, quantizer: Quantizer, dtype: str) -> dict[str, NDArray[Any]]:
    kind = STORED_DTYPES[dtype]
    return {name: tensor.detach().cpu().numpy().astype(kind) for name, tensor in _state(network, quantizer).items()}


def _load(network: AutoEncoder, quantizer: Quantizer, weights: dict[str, NDArray[Any]]) -> None:
    """Put stored weights into modules of the same shapes."""
    own = _state(network, quantizer)
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(torch.from_numpy(weight.astype(np.float32)))
