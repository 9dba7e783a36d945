"""`maskgit`: the tokenizer of MaskGIT in PyTorch, as MAGE and open-muse name its tensors. Pixels in [0, 1].

Chang et al. 2022 (arXiv:2202.04200), Li et al. 2023 (arXiv:2211.09117). A JSON file of open-muse may lie beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenshard.tokenizers.checkpoints.layout import Layout, Settings, quantizer_renames

LAYOUT = Layout(
    name="maskgit",
    architecture="maskgit",
    renames={
        r"encoder\.down\.(\d+)\.block\.": r"encoder.levels.\1.blocks.",
        r"decoder\.up\.(\d+)\.block\.": r"decoder.levels.\1.blocks.",
        r"decoder\.up\.(\d+)\.(?:upsample\.conv|upsample_conv)\.": r"decoder.levels.\1.resample.",
        r"(encoder|decoder)\.mid\.(?:block_1|0)\.": r"\1.middle.blocks.0.",
        r"(encoder|decoder)\.mid\.(?:block_2|1)\.": r"\1.middle.blocks.1.",
        r"(encoder|decoder)\.mid\.(\d+)\.": r"\1.middle.blocks.\2.",
        r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.": r"\1.\2.",
        **quantizer_renames(),
    },
    leaves={"nin_shortcut": "shortcut"},
    unused=r"(loss|discriminator)\.",
    finest_first=True,
    search="nearest",
    pixels="unit",
)


def settings(document: Mapping[str, Any]) -> Settings:
    """Of the JSON file of open-muse."""
    shown: dict[str, Any] = {
        "codes": document.get("num_embeddings"),
        "dim": document.get("quantized_embed_dim"),
        "stem": document.get("hidden_channels"),
        "blocks": document.get("num_res_blocks"),
    }
    if "hidden_channels" in document and "channel_mult" in document:
        shown["channels"] = tuple(document["hidden_channels"] * factor for factor in document["channel_mult"])
    return Settings(shown=shown)
