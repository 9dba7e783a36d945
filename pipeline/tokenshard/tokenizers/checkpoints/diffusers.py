"""`diffusers`: VQModel of the diffusers library, with its `config.json`. Pixels in [-1, 1].

Attention is stored as linear layers, which are convolutions of 1x1 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenshard.errors import FormatError
from tokenshard.tokenizers.checkpoints.layout import Layout, Settings, quantizer_renames

LAYOUT = Layout(
    name="diffusers",
    architecture="vqgan",
    renames={
        r"encoder\.down_blocks\.(\d+)\.resnets\.": r"encoder.levels.\1.blocks.",
        r"encoder\.down_blocks\.(\d+)\.attentions\.": r"encoder.levels.\1.attention.",
        r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.conv\.": r"encoder.levels.\1.resample.",
        r"decoder\.up_blocks\.(\d+)\.resnets\.": r"decoder.levels.\1.blocks.",
        r"decoder\.up_blocks\.(\d+)\.attentions\.": r"decoder.levels.\1.attention.",
        r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.conv\.": r"decoder.levels.\1.resample.",
        r"(encoder|decoder)\.mid_block\.resnets\.": r"\1.middle.blocks.",
        r"(encoder|decoder)\.mid_block\.attentions\.": r"\1.middle.attention.",
        r"(encoder|decoder)\.conv_norm_out\.": r"\1.norm_out.",
        r"(encoder|decoder)\.(conv_in|conv_out)\.": r"\1.\2.",
        **quantizer_renames(),
    },
    leaves={
        "conv_shortcut": "shortcut",
        "group_norm": "norm",
        "(?:to_q|query)": "q",
        "(?:to_k|key)": "k",
        "(?:to_v|value)": "v",
        r"(?:to_out\.0|proj_attn)": "out",
    },
    unused=r"$^",
    finest_first=False,
    search="nearest",
)


def settings(document: Mapping[str, Any]) -> Settings:
    """Of `config.json`. Raises FormatError on models that are not these."""
    for name, only in {"_class_name": "VQModel", "act_fn": "silu", "norm_type": "group"}.items():
        if document.get(name, only) != only:
            raise FormatError(f"{name} is {document[name]!r}; only {only!r} can be imported")
    channels = document.get("block_out_channels")
    return Settings(
        groups=document.get("norm_num_groups"),
        shown={
            "codes": document.get("num_vq_embeddings"),
            "dim": document.get("vq_embed_dim") or document.get("latent_channels"),
            "stem": channels[0] if channels else None,
            "channels": tuple(channels) if channels else None,
            "blocks": document.get("layers_per_block"),
        },
    )
