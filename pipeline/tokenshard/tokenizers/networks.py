"""The architectures of convolutional tokenizers: which description a document holds is said by its ``architecture``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag, ValidationError

from tokenshard.tokenizers.causal_network import CausalConfig
from tokenshard.tokenizers.conv_network import NetworkConfig
from tokenshard.tokenizers.frozen import FrozenConfig
from tokenshard.tokenizers.grid_network import GridNetworkConfig
from tokenshard.tokenizers.patch_network import PatchLocalConfig
from tokenshard.tokenizers.vqgan_network import VqganConfig

CHAIN = "chain"
"""The architecture of a document that names none."""


def _architecture(value: Any) -> str:
    found = value.get("architecture", CHAIN) if isinstance(value, dict) else getattr(value, "architecture", CHAIN)
    return str(found)


Network = Annotated[
    Annotated[NetworkConfig, Tag(CHAIN)]
    | Annotated[VqganConfig, Tag("vqgan")]
    | Annotated[VqganConfig, Tag("maskgit")]
    | Annotated[PatchLocalConfig, Tag("patch-local")]
    | Annotated[FrozenConfig, Tag("frozen")]
    | Annotated[CausalConfig, Tag("causal")]
    | Annotated[GridNetworkConfig, Tag("grid")],
    Discriminator(_architecture),
]
"""Any of the descriptions, as a field of a pydantic model."""


def first_error(error: ValidationError) -> tuple[str, str]:
    """Dotted place and message of the first thing wrong with a document that holds a network."""
    first = error.errors()[0]
    place = list(first["loc"])
    for number, part in enumerate(place[:-1]):
        if part == "network":
            del place[number + 1 : number + 2]  # pydantic names the architecture there, the document does not
            break
    return ".".join(map(str, place)), first["msg"].removeprefix("Value error, ")
