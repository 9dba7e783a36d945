"""`llamagen`: LlamaGen and the tokenizer of Janus. Codes and latents of length one; pixels in [-1, 1].

Sun et al. 2024 (arXiv:2406.06525), Wu et al. 2024 (arXiv:2410.13848). There is no document beside a checkpoint: all is
in its tensors.
"""

from __future__ import annotations

from tokenshard.tokenizers.checkpoints.layout import Layout, quantizer_renames

LAYOUT = Layout(
    name="llamagen",
    architecture="vqgan",
    renames={
        r"(encoder|decoder)\.conv_blocks\.(\d+)\.res\.": r"\1.levels.\2.blocks.",
        r"(encoder|decoder)\.conv_blocks\.(\d+)\.attn\.": r"\1.levels.\2.attention.",
        r"encoder\.conv_blocks\.(\d+)\.downsample\.conv\.": r"encoder.levels.\1.resample.",
        r"decoder\.conv_blocks\.(\d+)\.upsample\.conv\.": r"decoder.levels.\1.resample.",
        r"(encoder|decoder)\.mid\.0\.": r"\1.middle.blocks.0.",
        r"(encoder|decoder)\.mid\.1\.": r"\1.middle.attention.0.",
        r"(encoder|decoder)\.mid\.2\.": r"\1.middle.blocks.1.",
        r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.": r"\1.\2.",
        **quantizer_renames(),
    },
    leaves={"nin_shortcut": "shortcut", "proj_out": "out"},
    unused=r"quantize\.codebook_used$",
    finest_first=False,
    search="cosine",
)
