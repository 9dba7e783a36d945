"""`taming`: taming-transformers and latent diffusion (VQ and Gumbel), and IBQ, which chooses codes by dot product.

Esser et al. 2021 (arXiv:2012.09841), Rombach et al. 2022 (arXiv:2112.10752), Shi et al. 2024 (arXiv:2412.02692).
Lightning checkpoints with a YAML file beside them; pixels in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenshard.errors import FormatError
from tokenshard.tokenizers.checkpoints.layout import Layout, Search, Settings, quantizer_renames

LAYOUT = Layout(
    name="taming",
    architecture="vqgan",
    renames={
        r"encoder\.down\.(\d+)\.block\.": r"encoder.levels.\1.blocks.",
        r"encoder\.down\.(\d+)\.attn\.": r"encoder.levels.\1.attention.",
        r"encoder\.down\.(\d+)\.downsample\.conv\.": r"encoder.levels.\1.resample.",
        r"decoder\.up\.(\d+)\.block\.": r"decoder.levels.\1.blocks.",
        r"decoder\.up\.(\d+)\.attn\.": r"decoder.levels.\1.attention.",
        r"decoder\.up\.(\d+)\.upsample\.conv\.": r"decoder.levels.\1.resample.",
        r"(encoder|decoder)\.mid\.block_1\.": r"\1.middle.blocks.0.",
        r"(encoder|decoder)\.mid\.block_2\.": r"\1.middle.blocks.1.",
        r"(encoder|decoder)\.mid\.attn_1\.": r"\1.middle.attention.0.",
        r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.": r"\1.\2.",
        **quantizer_renames(),
        r"quantize\.embed\.weight$": "codebook",
        r"quantize\.proj\.": "logits.",
    },
    leaves={"nin_shortcut": "shortcut", "proj_out": "out"},
    unused=r"(loss|discriminator|inception_model|lpips\w*|perceptual_loss|colorize)\b",
    finest_first=True,
    search="nearest",
)


def settings(document: Mapping[str, Any]) -> Settings:
    """Of the YAML file: `model.target` says how codes are chosen. Raises FormatError on networks that are not these."""
    model = document.get("model", document)
    target, params = str(model.get("target", model.get("class_path", ""))), model.get("params", model.get("init_args"))
    if not isinstance(params, Mapping) or not isinstance(params.get("ddconfig"), Mapping):
        raise FormatError("there is no model.params.ddconfig")
    network = params["ddconfig"]
    for name, only in {"double_z": False, "resamp_with_conv": True, "in_channels": 3, "out_ch": 3}.items():
        if network.get(name, only) != only:
            raise FormatError(f"{name} is {network[name]!r}; only {only!r} can be imported")
    if network.get("attn_type", "vanilla") not in ("vanilla", "none"):
        raise FormatError(f"attn_type is {network['attn_type']!r}; only vanilla attention can be imported")
    if params.get("remap") is not None:
        raise FormatError("ids are remapped to the used ones (remap); only plain codebooks can be imported")
    search: Search = "cosine" if params.get("l2_normalize") else "dot" if target.endswith("IBQ") else "nearest"
    shown: dict[str, Any] = {"codes": params.get("n_embed"), "dim": params.get("embed_dim"), "stem": network.get("ch")}
    if "ch" in network and "ch_mult" in network:
        shown["channels"] = tuple(network["ch"] * factor for factor in network["ch_mult"])
    shown["blocks"] = network.get("num_res_blocks")
    return Settings(search, shown=shown)
