"""The description of a network from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import ValidationError
from torch import Tensor

from tokenshard.errors import FormatError
from tokenshard.tokenizers.checkpoints.layout import Layout, Settings
from tokenshard.tokenizers.vqgan_network import VqganConfig, VqganStack


def inferred_network(layout: Layout, tensors: Mapping[str, Tensor], settings: Settings) -> VqganConfig:
    """Of tensors under their names here. Raises :class:`FormatError` when they are not those of one network."""
    first, last = _shape(tensors, "encoder.conv_in.weight"), _shape(tensors, "encoder.conv_out.weight")
    encoder, decoder = _stack(tensors, "encoder"), _stack(tensors, "decoder")
    try:
        config = VqganConfig(
            architecture=layout.architecture,
            stem=first[0],
            encoder=encoder,
            decoder=_reversed(decoder),
            latent=last[0],
            dim=_shape(tensors, "codebook")[1],
            projected="encoder.project.weight" in tensors,
            groups=settings.groups or 32,
            pixels=layout.pixels,
        )
    except ValidationError as error:
        first_error = error.errors()[0]
        place = ".".join(map(str, first_error["loc"]))
        message = first_error["msg"].removeprefix("Value error, ")
        raise FormatError(f"is not a network that can be imported: {place and place + ': '}{message}") from error
    found = {
        "codes": _shape(tensors, "codebook")[0],
        "dim": config.dim,
        "stem": config.stem,
        "channels": config.encoder.channels,
        "blocks": config.encoder.blocks[0],
    }
    for name, value in settings.shown.items():
        if value is not None and value != found[name]:
            raise FormatError(
                f"{name} are {found[name]} in the tensors and {value} in the document beside them; they do not belong "
                "together"
            )
    return config


def _stack(tensors: Mapping[str, Tensor], side: str) -> VqganStack:
    """Levels in the order they are computed in."""
    levels = _count(tensors, rf"{side}\.levels\.(\d+)\.")
    blocks = tuple(_count(tensors, rf"{side}\.levels\.{level}\.blocks\.(\d+)\.") for level in range(levels))
    if not levels or not all(blocks):
        raise FormatError(f"lacks tensors of the levels of the {side}")
    return VqganStack.model_construct(
        channels=tuple(_shape(tensors, f"{side}.levels.{level}.blocks.0.conv1.weight")[0] for level in range(levels)),
        blocks=blocks,
        attention=tuple(
            _count(tensors, rf"{side}\.levels\.{level}\.attention\.(\d+)\.") > 0 for level in range(levels)
        ),
        middle=_count(tensors, rf"{side}\.middle\.blocks\.(\d+)\."),
        middle_attention=_count(tensors, rf"{side}\.middle\.attention\.(\d+)\.") > 0,
    )


def _reversed(stack: VqganStack) -> VqganStack:
    """The same levels from the finest to the coarsest, as descriptions have them."""
    return stack.model_copy(update={name: getattr(stack, name)[::-1] for name in ("channels", "blocks", "attention")})


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number at this place of a name."""
    return max((int(match[1]) + 1 for name in tensors if (match := re.match(pattern, name))), default=0)


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim < 2:
        raise FormatError(f"lacks {name}" if name not in tensors else f"{name} is not a matrix")
    return tuple(tensors[name].shape)
