"""A vision transformer on tokens that tells classes apart."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from tokenshard.spec.base import StoredDocument
from tokenshard.training.models.vit import EPS, EncoderConfig, TokenEncoder


class ClassifierConfig(StoredDocument):
    """Everything that decides the shapes of a classifier."""

    encoder: EncoderConfig
    classes: int = Field(ge=2, le=1 << 24)


class TokenClassifier(nn.Module):
    """Code vectors [B, d, H, W] (of ``encoder.embed``, perhaps augmented) -> logits [B, classes].

    The mean over the positions, a LayerNorm and a linear layer.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TokenEncoder(config.encoder)
        self.norm = nn.LayerNorm(config.encoder.width, EPS)
        self.head = nn.Linear(config.encoder.width, config.classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        x = self.encoder(self.encoder.patches(vectors))
        logits: Tensor = self.head(self.norm(x[:, 1:].mean(1)))
        return logits
