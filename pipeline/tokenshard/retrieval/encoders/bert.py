"""The states of a BERT encoder (Devlin et al., 2019) in plain torch, from the files that `save_pretrained` writes.

Written out here so that the embedded default needs no transformers, and because its last attention is asked for.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tokenshard.errors import FormatError


@dataclass(frozen=True)
class BertShape:
    """What `config.json` says of the network."""

    width: int
    layers: int
    heads: int
    positions: int
    """longest sequence"""
    vocabulary: int
    epsilon: float


class Bert:
    """Token ids -> states of the last layer, and the attention that each token gets there.

    Raises FormatError where the folder does not hold a BERT encoder with the tensors its description names.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.shape = _shape(folder)
        self._weights = load_file(folder / "model.safetensors", device=str(device))
        self._device = device
        _check(self._weights, self.shape, folder)

    @torch.inference_mode()
    def states(self, ids: Tensor, first: bool = False) -> tuple[Tensor, Tensor]:
        """int64 [B, n] without padding -> states float32 [B, n, width], attention received float32 [B, n].

        The latter is the mean over heads and tokens (``first``: that of the first token alone) of the attention paid to
        a token, in even shares: 1 on average.
        """
        ids = ids.to(self._device)
        length = ids.shape[1]
        weight = self._weights
        x = F.embedding(ids, weight["embeddings.word_embeddings.weight"])
        x = x + weight["embeddings.position_embeddings.weight"][:length]
        x = self._normed(x + weight["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        received = torch.ones(ids.shape, device=self._device)
        for layer in range(self.shape.layers):
            at = f"encoder.layer.{layer}."
            q, k, v = (self._heads(self._linear(x, f"{at}attention.self.{name}")) for name in ("query", "key", "value"))
            if layer + 1 < self.shape.layers:
                mixed = F.scaled_dot_product_attention(q, k, v)
            else:
                attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)  # [B, heads, n, n]
                received = (attention[:, :, 0].mean(1) if first else attention.mean((1, 2))) * length
                mixed = attention @ v
            mixed = mixed.transpose(1, 2).flatten(2)
            x = self._normed(x + self._linear(mixed, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
            inner = F.gelu(self._linear(x, f"{at}intermediate.dense"))
            x = self._normed(x + self._linear(inner, f"{at}output.dense"), f"{at}output.LayerNorm")
        return x, received

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _normed(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, (self.shape.width,), weight, bias, self.shape.epsilon)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, n, width] -> [B, heads, n, width / heads]."""
        return x.view(*x.shape[:2], self.shape.heads, -1).transpose(1, 2)


def _shape(folder: Path) -> BertShape:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise FormatError(f"{folder}: not a BERT encoder with the activation gelu")
        return BertShape(
            width=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            positions=int(config["max_position_embeddings"]),
            vocabulary=int(config["vocab_size"]),
            epsilon=float(config["layer_norm_eps"]),
        )
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{folder}: config.json does not describe a BERT encoder: {error}") from error


def _check(weights: dict[str, Tensor], shape: BertShape, folder: Path) -> None:
    expected = {
        "embeddings.word_embeddings.weight": (shape.vocabulary, shape.width),
        "embeddings.position_embeddings.weight": (shape.positions, shape.width),
        **{f"encoder.layer.{n}.attention.self.query.weight": (shape.width, shape.width) for n in range(shape.layers)},
    }
    for name, size in expected.items():
        if name not in weights or tuple(weights[name].shape) != size:
            raise FormatError(f"{folder}: model.safetensors has no tensor {name} of shape {list(size)}")
