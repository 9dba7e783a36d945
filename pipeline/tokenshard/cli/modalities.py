"""`tokenshard convert` with all it converts: a modality is a file of its own and a name here."""

from __future__ import annotations

from tokenshard.cli import documents, grids, video
from tokenshard.cli.convert import convert

MODALITIES = (documents, grids, video)
"""Importing them adds their commands."""

__all__ = ["MODALITIES", "convert"]
