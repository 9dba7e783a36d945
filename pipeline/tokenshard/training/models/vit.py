"""A plain vision transformer on code vectors (Dosovitskiy et al. 2021, arXiv:2010.11929): stem, positions, blocks.

Letters in shapes: B samples, d channels of a code vector, H x W codes, N = (H / stride) x (W / stride) positions,
D width, h heads.
"""

from __future__ import annotations

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
    grid: tuple[int, int] = Field(description="rows and columns of code vectors it sees")
    stem: Literal["overlap", "patch"]
    stride: int = Field(ge=1, le=16)
    width: int = Field(ge=1, le=1 << 14)
    depth: int = Field(ge=1, le=256)
    heads: int = Field(ge=1, le=256)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        rows, columns = self.positions
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} is no multiple of 4 and of {self.heads} heads")
        if rows * columns > MOST_POSITIONS or rows * columns * self.width > 1 << 28:
            raise ValueError(f"{rows}x{columns} positions of width {self.width} are more than a model may have")
        return self

    @property
    def positions(self) -> tuple[int, int]:
        """Rows and columns of positions."""
        return self.grid[0] // self.stride, self.grid[1] // self.stride


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
    rates = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def axis(length: int) -> Tensor:
        angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], 1)

    y, x = axis(rows), axis(columns)
    both = torch.cat([y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)], 2)
    return both.reshape(rows * columns, width).float()


class TokenEncoder(nn.Module):
    """Ids [B, L, H, W] -> code vectors [B, d, H, W] -> positions [B, N, D] -> transformer [B, 1 + N, D], class token
    first.

    stem `overlap`: SeiT's stem adaptor (Park et al. 2023, arXiv:2303.11114), a convolution whose kernel is twice its
    stride; `patch`: kernel = stride, so that a position knows nothing of the codes of another one.
    """

    positions: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.positions
        if rows < 1 or columns < 1:
            raise SpecError(
                f"a grid of {config.grid[0]}x{config.grid[1]} codes is too small for a stride of {config.stride}; "
                "give --stride 1, or a larger --grid"
            )
        self.embedding = CodeEmbedding(config.alphabets, config.dim, config.embedding == "frozen")
        kernel, padding = _kernel(config.stem, config.stride)
        self.stem = nn.Conv2d(config.dim, config.width, kernel, config.stride, padding)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("positions", positions_2d(rows, columns, config.width), persistent=False)
        rates = torch.linspace(0, config.drop_path, config.depth).tolist()
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout, rate) for rate in rates)
        initialise(self)

    def embed(self, ids: Tensor, kept: Tensor | None = None) -> Tensor:
        """Ids [B, L, H, W] -> vectors [B, d, H, W]; ``kept`` as :class:`CodeEmbedding` has it."""
        vectors: Tensor = self.embedding(ids, kept)
        return vectors

    def patches(self, vectors: Tensor) -> Tensor:
        """Vectors [B, d, H, W] -> positions [B, N, D], with where they are added."""
        rows, columns = self.config.positions
        found: Tensor = self.stem(vectors)[:, :, :rows, :columns]
        return found.flatten(2).transpose(1, 2) + self.positions

    def forward(self, x: Tensor) -> Tensor:
        """Positions [B, n, D] (all N, or some of them) -> [B, 1 + n, D]."""
        x = torch.cat([self.class_token.expand(len(x), -1, -1).to(x.dtype), x], 1)
        for block in self.blocks:
            x = block(x)
        return x


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
