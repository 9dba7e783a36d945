"""`tokenshard grid` with all its commands: a subject is a file of its own and a name here."""

from __future__ import annotations

from tokenshard.cli import grid_fill, grid_plot, grid_uncertainty, grid_upscale
from tokenshard.cli.grid import grid

COMMANDS = (grid_uncertainty, grid_plot, grid_upscale, grid_fill)
"""Importing them adds their commands."""

__all__ = ["COMMANDS", "grid"]
