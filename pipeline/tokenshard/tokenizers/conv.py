"""The `conv` tokenizer: a convolutional encoder, a quantizer, and a convolutional decoder (VQGAN family), trained by
`tokenshard tokenizer train`.

Images of any size: edges are mirrored up to whole tokens, and cut off again by ``decode``. On the CPU images go through
the network one by one in float32, so that ids depend neither on the batch nor on the number of threads.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
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
from tokenshard.quantizers.registry import make_quantizer
from tokenshard.spec.base import StoredDocument
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.conv_network import AutoEncoder, NetworkConfig, to_signed, to_uint8
from tokenshard.tokenizers.int8 import in_int8
from tokenshard.tokenizers.weights import check_tensors, weights_sha256, weights_to_bytes

Numerics = Literal["fp32", "bf16", "int8"]
NUMERICS: tuple[Numerics, ...] = ("fp32", "bf16", "int8")
STORED_DTYPES = {"float16": np.float16, "float32": np.float32}
MAX_CODES = 1 << 16
MAX_LEVELS = 64
DECODE_PIXELS = 1 << 21
"""Pixels decoded at a time on an accelerator."""


class ConvConfig(StoredDocument):
    """`config` of a conv tokenizer in `tokenizer.json`."""

    network: NetworkConfig
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
        if compiled and numerics == "int8":
            raise SpecError("int8 is not compiled; leave --compile out, or use --numerics bf16")
        self._encoder, self._decoder = (self._computed(half, compiled) for half in (network.encoder, network.decoder))

    @classmethod
    def from_tensors(cls, spec: TokenizerSpec, tensors: dict[str, NDArray[Any]]) -> ConvVQ:
        """The tokenizer of a stored description. Raises :class:`FormatError` where the two do not fit."""
        try:
            config = ConvConfig.model_validate(spec.config)
        except ValidationError as error:
            first = error.errors()[0]
            raise FormatError(f"config.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
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
        network, quantizer = AutoEncoder(self.config.network), _quantizer(self.config, self.quantizer.levels)
        _load(network, quantizer, self._weights)
        return ConvVQ(self.config, network, quantizer, numerics or self.numerics, device, compiled, self._tables)

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
        network, quantizer = AutoEncoder(self.config.network), _quantizer(self.config, self.quantizer.levels)
        _load(network, quantizer, self._weights)
        return ConvVQ(self.config, network, quantizer, self.numerics, self.device, tables=names)

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

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """uint8 [B, height, width, 3] -> uint16 [B, levels, rows, columns].

        Edges are mirrored below and to the right up to whole tokens. Raises :class:`InputError` on other arrays.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or 0 in images.shape[1:]:
            raise InputError(
                f"expected images uint8 [batch, height, width, 3], not {images.dtype} {list(images.shape)}"
            )
        ids = np.empty((len(images), len(self.quantizer.levels), *self.grid(*images.shape[1:3])), np.uint16)
        step = 1 if self.device.type == "cpu" else max(1, DECODE_PIXELS // (images.shape[1] * images.shape[2]))
        for start in range(0, len(images), step):
            batch = _pad(images[start : start + step], self.config.network.downsample)
            pixels = torch.from_numpy(batch).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            ids[start : start + step] = self.encode_tensor(pixels).cpu().numpy()
        return ids

    @torch.inference_mode()
    def encode_tensor(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, height, width] on the device, sizes multiples of f -> int64 ids [B, levels, rows, columns]."""
        with self._precision():
            z = self._encoder(to_signed(pixels))
        return self.quantizer.encode(z.float())

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Ids [B, levels, rows, columns] -> uint8 [B, height, width, 3], cropped to ``size`` (height, width).

        Raises :class:`FormatError` on ids outside a codebook or a size the grid cannot have come from.
        """
        self._check(codes, size)
        side = self.config.network.downsample
        height, width = size or (codes.shape[2] * side, codes.shape[3] * side)
        images = np.empty((len(codes), height, width, 3), np.uint8)
        step = 1 if self.device.type == "cpu" else max(1, DECODE_PIXELS // (height * width))
        for start in range(0, len(codes), step):
            ids = torch.from_numpy(codes[start : start + step].astype(np.int64)).to(self.device)
            pixels = self.decode_tensor(ids)[:, :, :height, :width]
            images[start : start + step] = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return images

    @torch.inference_mode()
    def decode_tensor(self, ids: Tensor) -> Tensor:
        """int64 ids [B, levels, rows, columns] on the device -> uint8 [B, 3, rows * f, columns * f]."""
        vectors = self.quantizer.vectors(ids)
        with self._precision():
            pixels = self._decoder(vectors)
        return to_uint8(pixels)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights `encoder.*`, `decoder.*` and `quantizer.*`, in the stored dtype."""
        return self._weights

    def _computed(self, half: nn.Module, compiled: bool) -> Callable[[Tensor], Tensor]:
        """Encoder or decoder as it is run."""
        half = in_int8(half) if self.numerics == "int8" else half
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
        if codes.ndim != 4 or codes.shape[1] != len(levels):
            raise FormatError(f"codes {list(codes.shape)} are not [batch, {len(levels)} levels, rows, columns]")
        for level, (plane, count) in enumerate(zip(codes.swapaxes(0, 1), levels, strict=True)):
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
    if any(stride < 0 for stride in images.strides):  # torch takes none of these, even along an axis of one image
        images = images.copy()
    return np.require(images, requirements=["C", "W"])  # torch warns of arrays that are read-only


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
