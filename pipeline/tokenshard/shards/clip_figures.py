"""What codebooks of clips are worth: figures of datasets that the `clip-codebook` tokenizer made."""

from __future__ import annotations

import numpy as np

from tokenshard.shards.dataset import Dataset
from tokenshard.shards.schema import NUM_TOKENS

CODEBOOK, CODEWORDS, COSINE = "codebook", "codewords", "cosine"
"""Columns of a clip: its codewords, their number, and the mean cosine of a feature to its codeword."""


def clip_figures(dataset: Dataset) -> dict[str, float]:
    """Of a dataset of clips with codebooks of their own; nothing of others.

    `codewords_per_clip`; `token_reduction`: features for each codeword; `reconstruction_cosine`: mean over features;
    `tok_dense` and `tok_dense_of_features`: what a retained token tells, TokDense of VQToken (arXiv:2503.16980), with
    the cosine in the place of a task's accuracy, which a dataset does not know: cosine / codewords of a clip, beside
    1 / features of a clip.
    """
    roles = {column.name: column.role for column in dataset.manifest.columns}
    if roles.get(CODEBOOK) != "stream" or CODEWORDS not in roles or COSINE not in roles or not len(dataset):
        return {}
    table = dataset.table([NUM_TOKENS, CODEWORDS, COSINE])
    features, codewords, cosine = (table[name].to_numpy().astype(np.float64) for name in table.column_names)
    mean_cosine = float((cosine * features).sum() / features.sum())
    return {
        "codewords_per_clip": float(codewords.mean()),
        "token_reduction": float(features.sum() / codewords.sum()),
        "reconstruction_cosine": mean_cosine,
        "tok_dense": mean_cosine / float(codewords.mean()),
        "tok_dense_of_features": 1 / float(features.mean()),
    }
