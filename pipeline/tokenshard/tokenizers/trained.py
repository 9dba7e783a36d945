"""What tokenizers made of a trained network have in common, whatever they encode: weights, numerics modes, devices.

A network is an encoder and a decoder; between them stands a quantizer. Images are :class:`~.conv.ConvVQ`'s, clips
:class:`~.video.VideoVQ`'s.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, JsonValue, ValidationError
from torch import Tensor, nn

from tokenshard.errors import FormatError, SpecError
from tokenshard.quantizers.base import Quantizer
from tokenshard.quantizers.lookup import Lookup
from tokenshard.quantizers.registry import make_quantizer
from tokenshard.spec.base import StoredDocument
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.conv_network import AutoEncoder
from tokenshard.tokenizers.frozen import FrozenEncoder
from tokenshard.tokenizers.int8 import in_int8
from tokenshard.tokenizers.networks import Network, first_error
from tokenshard.tokenizers.weights import check_tensors, weights_sha256, weights_to_bytes

Numerics = Literal["fp32", "bf16", "int8"]
NUMERICS: tuple[Numerics, ...] = ("fp32", "bf16", "int8")
STORED_DTYPES = {"float16": np.float16, "float32": np.float32}
MAX_CODES = 1 << 20
MAX_LEVELS = 64
DEVICE_PIXELS = 1 << 21
"""Pixels that go through a network at a time on an accelerator."""
MAX_WHOLE_PIXELS = 1 << 22
"""Largest image or frame for a network that gets all of it at once."""


class ConvConfig(StoredDocument):
    """`config` of a tokenizer with a trained network in `tokenizer.json`."""

    network: Network
    quantizer: str = Field(description="registered name of the quantizer")
    quantizer_options: dict[str, JsonValue] = Field(default_factory=dict)
    stored: Literal["float16", "float32"] = Field(
        default="float32", description="dtype of the weights file; everything is computed in float32"
    )
    recipe: dict[str, JsonValue] = Field(default_factory=dict, description="how it was trained, for the record")


class TrainedTokenizer(ABC):
    """A network and a quantizer on one device, in one numerics mode.

    ``fp32`` on the CPU is the reproducible mode. ``bf16`` computes the network in bfloat16 (the search stays float32):
    faster on a GPU, a few ids in a hundred differ, so it has a fingerprint of its own. ``int8`` computes convolutions
    in eight bits: half as fast again on x86 CPUs, one id in twenty differs. Raises :class:`SpecError` where ``int8`` is
    to be compiled.
    """

    kind: ClassVar[str]
    modality: ClassVar[str]

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
        if compiled and numerics == "int8":
            raise SpecError("int8 is not compiled; leave --compile out, or use --numerics bf16")
        self.config, self.numerics, self.device = config, numerics, torch.device(device)
        self._tables = tables
        self._weights = _stored(network, quantizer, config.stored)
        _load(network, quantizer, self._weights)
        self.quantizer = quantizer.to(self.device).eval().requires_grad_(False)
        self.network = network.to(self.device).eval().requires_grad_(False)
        if self.device.type != "cpu":
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._encoder, self._decoder = (self._computed(half, compiled) for half in (network.encoder, network.decoder))

    @classmethod
    @abstractmethod
    def cells(cls, network: Network) -> tuple[int, ...]:
        """Input cells a token covers along each grid axis. Raises :class:`FormatError` for a network of other input."""

    @classmethod
    def quantized(cls, network: Network, levels: tuple[int, ...]) -> tuple[int, ...]:
        """Of the levels of a description, what its quantizer has. Raises :class:`FormatError` where they do not fit."""
        return levels

    @property
    def levels(self) -> tuple[int, ...]:
        """Alphabets of the levels of ids."""
        return self.quantizer.levels

    @classmethod
    def from_tensors(cls, spec: TokenizerSpec, tensors: dict[str, NDArray[Any]]) -> Self:
        """The tokenizer of a stored description. Raises :class:`FormatError` where the two do not fit."""
        try:
            config = ConvConfig.model_validate(spec.config)
        except ValidationError as error:
            place, message = first_error(error)
            raise FormatError(f"config.{place}: {message}") from error
        cells = cls.cells(config.network)
        if not 1 <= len(spec.levels) <= MAX_LEVELS or max(spec.levels) > MAX_CODES or spec.downsample != cells:
            raise FormatError(
                f"levels {list(spec.levels)} and downsample {list(spec.downsample)} do not fit an f{cells[-1]} "
                f"{cls.kind} tokenizer of at most {MAX_LEVELS} levels of {MAX_CODES} codes"
            )
        levels = cls.quantized(config.network, spec.levels)
        with torch.device("meta"):  # shapes only: nothing is allocated before the tensors turn out to fit
            network = AutoEncoder(config.network)
            quantizer = _quantizer(config, levels)
        dtype = STORED_DTYPES[config.stored]
        shapes = {name: tuple(tensor.shape) for name, tensor in _state(network, quantizer).items()}
        check_tensors(tensors, {name: (dtype, shape) for name, shape in shapes.items()})
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise FormatError("weights hold values that are not finite")
        network.to_empty(device="cpu")
        quantizer = _quantizer(config, levels)  # anew: it may hold tensors that are not stored
        _load(network, quantizer, tensors)
        numerics = next((mode for mode in NUMERICS if mode == spec.numerics), None)
        if numerics is None:
            raise FormatError(f"numerics {spec.numerics!r} is not one of {', '.join(NUMERICS)}")
        return cls(config, network, quantizer, numerics, tables=spec.tables)

    def on(self, device: str, numerics: Numerics | None = None, compiled: bool = False) -> Self:
        """The same tokenizer on another device, in another numerics mode, or compiled by ``torch.compile``."""
        return type(self)(self.config, *self._copies(), numerics or self.numerics, device, compiled, self._tables)

    def with_tables(self, tables: Sequence[bytes]) -> Self:
        """The same tokenizer with entropy tables, which are then saved beside it; without any, it has none."""
        names = tuple(hashlib.sha256(table).hexdigest() for table in tables)
        return type(self)(self.config, *self._copies(), self.numerics, self.device, tables=names)

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
        return TokenizerSpec(
            kind=self.kind,
            modality=self.modality,
            levels=self.levels,
            downsample=self.cells(self.config.network),
            config=self.config.model_dump(mode="json"),
            numerics=self.numerics,
            weights_sha256=weights_sha256(weights_to_bytes(self.tensors())),
            tables=self._tables,
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image or frame of that size."""
        side = self.config.network.downsample
        return -(-height // side), -(-width // side)

    @abstractmethod
    def encode(self, images: NDArray[np.uint8]) -> NDArray[Any]: ...

    @abstractmethod
    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]: ...

    @torch.no_grad()
    def codebooks(self) -> tuple[NDArray[np.float32], ...]:
        """The latent vectors [K, dim] of each level; those of the levels add up."""
        if isinstance(self.quantizer, Lookup):
            return tuple(self.quantizer.codebook(level).cpu().numpy() for level in range(len(self.quantizer.levels)))
        (count,) = self.quantizer.levels
        vectors = self.quantizer.vectors(torch.arange(count, device=self.device)[None, None])
        return (np.ascontiguousarray(vectors[0].T.cpu().numpy()),)

    def with_codebooks(self, codebooks: Sequence[NDArray[np.float32]]) -> Self:
        """The same network with these codebooks, looked up as they are."""
        normalized = isinstance(self.quantizer, Lookup) and self.quantizer.normalized
        quantizer = Lookup.of([torch.from_numpy(np.array(codebook)) for codebook in codebooks], (), normalized)
        made = {"quantizer": "lookup", "quantizer_options": quantizer.options(), "stored": "float32"}
        return type(self)(self.config.model_copy(update=made), self._copies()[0], quantizer, self.numerics, self.device)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights `encoder.*`, `decoder.*` and `quantizer.*`, in the stored dtype."""
        return self._weights

    def _id_dtype(self) -> type[np.uint16] | type[np.int32]:
        return np.uint16 if max(self.quantizer.levels) <= 1 << 16 else np.int32

    def _at_once(self, pixels: int) -> int:
        """Samples of so many pixels that go through the network together: on a CPU each by itself."""
        return 1 if self.device.type == "cpu" else max(1, DEVICE_PIXELS // pixels)

    def _to_device(self, images: NDArray[np.uint8]) -> Tensor:
        """[B, height, width, 3] -> [B, 3, height, width] on the device."""
        if any(stride < 0 for stride in images.strides):  # torch takes none of these, even along an axis of one image
            images = images.copy()
        images = np.require(images, requirements=["C", "W"])  # torch warns of arrays that are read-only
        return torch.from_numpy(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def _computed(self, half: nn.Module, compiled: bool) -> Callable[..., Any]:
        """Encoder or decoder as it is run."""
        half = in_int8(half) if self.numerics == "int8" and not isinstance(half, FrozenEncoder) else half
        return torch.compile(self._called(half)) if compiled else self._called(half)

    def _called(self, half: nn.Module) -> Callable[..., Any]:
        """What is called of an encoder or decoder."""
        return half

    def _precision(self) -> AbstractContextManager[Any]:
        """bfloat16 where that is the mode; else float32 in full, without the shorter mantissa of TF32."""
        if self.numerics == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        if self.device.type == "cuda":
            return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        return nullcontext()

    def _check(self, codes: NDArray[Any], size: tuple[int, int] | None) -> None:
        """Raises :class:`FormatError` for ids [B, levels, *grid] that are none of these codebooks, or another size."""
        levels, axes = self.quantizer.levels, len(self.spec.downsample)
        if codes.ndim != 2 + axes or not 1 <= codes.shape[1] <= len(levels):
            expected = ", ".join(("frames", "rows", "columns")[-axes:])
            raise FormatError(f"codes {list(codes.shape)} are not [batch, {len(levels)} levels, {expected}]")
        for level, (plane, count) in enumerate(zip(codes.swapaxes(0, 1), levels, strict=False)):
            if plane.size and not 0 <= int(plane.min()) <= int(plane.max()) < count:
                raise FormatError(f"ids {plane.min()} to {plane.max()} of level {level} do not fit {count} codes")
        if size is not None and self.grid(*size) != codes.shape[-2:]:
            raise FormatError(
                f"a {codes.shape[-2]}x{codes.shape[-1]} grid of {self.spec.downsample[-2:]} tokens is not "
                f"{size[0]}x{size[1]} pixels"
            )


def pad_edges(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
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
