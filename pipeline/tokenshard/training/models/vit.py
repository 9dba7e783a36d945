"""A plain vision transformer on code vectors (Dosovitskiy et al. 2021, arXiv:2010.11929): stem, positions, blocks.

A clip has positions for every few of its frames, tubelets (ViViT, Arnab et al. 2021, arXiv:2103.15691), which attend
to all others; where they are is factorised into the place in the frame and the time.

Letters in shapes: B samples, d channels of a code vector, T frames (of images: no such axis), H x W codes,
N = (T / tubelet x) (H / stride) x (W / stride) positions, D width, h heads.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.errors import SpecError
from tokenshard.spec.base import StoredDocument
from tokenshard.training.models.embedding import CodeEmbedding

SIZES: dict[str, tuple[int, int, int]] = {
    "micro": (96, 4, 3),
    "nano": (192, 6, 3),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}
"""Width, depth, heads."""
EPS = 1e-6
MOST_POSITIONS = 1 << 16


class EncoderConfig(StoredDocument):
    """Everything that decides the shapes of an encoder."""

    alphabets: tuple[int, ...] = Field(min_length=1, max_length=64, description="codes of each level")
    dim: int = Field(ge=1, le=1 << 16, description="channels of a code vector")
    embedding: Literal["frozen", "learned"]
    grid: tuple[int, ...] = Field(
        min_length=2, max_length=3, description="rows and columns of code vectors it sees; of clips frames before them"
    )
    stem: Literal["overlap", "patch"]
    stride: int = Field(ge=1, le=16)
    tubelet: int = Field(default=1, ge=1, le=16, description="frames of a clip that a position covers")
    width: int = Field(ge=1, le=1 << 14)
    depth: int = Field(ge=1, le=256)
    heads: int = Field(ge=1, le=256)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        count, shape = math.prod(map(abs, self.positions)), "x".join(map(str, self.positions))
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} is no multiple of 4 and of {self.heads} heads")
        if self.grid[0] % self.tubelet if len(self.grid) == 3 else self.tubelet > 1:
            raise ValueError(f"a tubelet of {self.tubelet} frames does not divide {self.frames or 'images'}")
        if count > MOST_POSITIONS or count * self.width > 1 << 28:
            raise ValueError(f"{shape} positions of width {self.width} are more than a model may have")
        return self

    @property
    def positions(self) -> tuple[int, ...]:
        """Rows and columns of positions; of clips times, rows and columns."""
        times = tuple(frames // self.tubelet for frames in self.grid[:-2])
        return *times, self.grid[-2] // self.stride, self.grid[-1] // self.stride

    @property
    def frames(self) -> int | None:
        """Frames of a clip; None where it sees images."""
        return self.grid[0] if len(self.grid) == 3 else None

    @property
    def covered(self) -> int:
        """Codes of a level that a position covers."""
        return self.tubelet * self.stride**2


class Attention(nn.Module):
    """Multi-head self-attention, [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape  # q, k and v get [B, h, N, D / h]
        q, k, v = (
            self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )  # [B,h,N,·]
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then a two-layer perceptron; each behind a LayerNorm, added to what came in.

    drop_path: probability with which a sample skips each of the two in training (Huang et al. 2016, arXiv:1603.09382).
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attention = Attention(width, heads, dropout)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._kept(self.drop(self.attention(self.norm1(x))))
        return x + self._kept(self.drop(self.perceptron(self.norm2(x))))

    def _kept(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return x
        keep = 1 - self.drop_path
        return x * torch.empty(len(x), 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep) / keep


def positions_2d(rows: int, columns: int, width: int) -> Tensor:
    """Fixed sine-cosine positions float32 [rows * columns, width]: a half of the channels for each axis."""
    if width % 4:
        raise SpecError(f"width {width} is not a multiple of 4, as positions along two axes need")
    y, x = _along(rows, width // 2), _along(columns, width // 2)
    both = torch.cat([y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)], 2)
    return both.reshape(rows * columns, width).float()


def positions_of(shape: tuple[int, ...], width: int) -> Tensor:
    """Fixed positions float32 [N, width] of rows and columns; of times, rows and columns those of time are added."""
    spatial = positions_2d(shape[-2], shape[-1], width)
    if len(shape) == 2:
        return spatial
    return (_along(shape[0], width)[:, None] + spatial).float().flatten(0, 1)


def _along(length: int, width: int) -> Tensor:
    """Sines and cosines of places 0, 1, … along an axis, float64 [length, width]."""
    rates = 10_000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class TokenEncoder(nn.Module):
    """Ids [B, L, (T,) H, W] -> code vectors [B, d, (T,) H, W] -> positions [B, N, D] -> transformer [B, 1 + N, D],
    class token first.

    stem `overlap`: SeiT's stem adaptor (Park et al. 2023, arXiv:2303.11114), a convolution whose kernel is twice its
    stride; `patch`: kernel = stride, so that a position knows nothing of the codes of another one. Of clips it sees a
    tubelet, some frames that no other position has; their vectors are its channels, frame by frame.
    """

    positions: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        if min(config.positions) < 1:
            raise SpecError(
                f"a grid of {'x'.join(map(str, config.grid))} codes is too small for a stride of {config.stride}; "
                "give --stride 1, or a larger --grid"
            )
        self.embedding = CodeEmbedding(config.alphabets, config.dim, config.embedding == "frozen")
        kernel, padding = _kernel(config.stem, config.stride)
        self.stem = nn.Conv2d(config.tubelet * config.dim, config.width, kernel, config.stride, padding)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("positions", positions_of(config.positions, config.width), persistent=False)
        rates = torch.linspace(0, config.drop_path, config.depth).tolist()
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout, rate) for rate in rates)
        initialise(self)

    def embed(self, ids: Tensor, kept: Tensor | None = None) -> Tensor:
        """Ids [B, L, *grid] -> vectors [B, d, *grid]; ``kept`` as :class:`CodeEmbedding` has it."""
        vectors: Tensor = self.embedding(ids, kept)
        return vectors

    def patches(self, vectors: Tensor) -> Tensor:
        """Vectors [B, d, (T,) H, W] -> positions [B, N, D], with where they are added."""
        rows, columns = self.config.positions[-2:]
        batch = len(vectors)
        if vectors.ndim == 5:  # the tubelets of all clips, [B x T / tubelet, tubelet x d, H, W]
            vectors = vectors.transpose(1, 2).reshape(-1, self.stem.in_channels, *vectors.shape[-2:])
        found: Tensor = self.stem(vectors)[:, :, :rows, :columns]
        found = found.flatten(2).transpose(1, 2).reshape(batch, -1, self.config.width)
        return found + self.positions

    def forward(self, x: Tensor) -> Tensor:
        """Positions [B, n, D] (all N, or some of them) -> [B, 1 + n, D]."""
        x = torch.cat([self.class_token.expand(len(x), -1, -1).to(x.dtype), x], 1)
        for block in self.blocks:
            x = block(x)
        return x


def inflated(state: dict[str, Tensor], frames: int) -> dict[str, Tensor]:
    """The state of an encoder with tubelets so many times as long: each frame gets its share of the stem, so that a
    clip that stands still gives what its frame gave (Carreira and Zisserman 2017, arXiv:1705.07750)."""
    return {**state, "stem.weight": state["stem.weight"].repeat(1, frames, 1, 1) / frames}


def _kernel(stem: str, stride: int) -> tuple[int, int]:
    """Kernel and padding of a stem: output sizes are input sizes divided by the stride in both."""
    if stem == "patch":
        return stride, 0
    kernel = 2 * stride if stride > 1 else 3
    return kernel, (kernel - stride) // 2


def initialise(module: nn.Module) -> None:
    """Matrices normal with standard deviation 0.02 (cut at two of them), biases 0; as ViTs have it."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=0.02, a=-0.04, b=0.04)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
