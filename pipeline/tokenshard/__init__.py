"""Keep a dataset as tokens instead of pixels, and train from them.

The names below are the public Python face; each is imported from its room when first used, so that
``import tokenshard`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenshard.api import convert_images, loader, run
    from tokenshard.api import open_dataset as open
    from tokenshard.errors import FormatError, InputError, JobError, SpecError, StoreError, TokenshardError
    from tokenshard.loading.crop import Crop
    from tokenshard.loading.loader import TokenLoader
    from tokenshard.loading.mixture import MixtureLoader
    from tokenshard.loading.order import Shuffle
    from tokenshard.loading.sequences import SequenceLoader
    from tokenshard.shards.cache import Cache
    from tokenshard.shards.dataset import Dataset

__version__ = "0.1.0"

_HOMES = {
    "open": "tokenshard.api:open_dataset",
    "Cache": "tokenshard.shards.cache:Cache",
    "Crop": "tokenshard.loading.crop:Crop",
    "Dataset": "tokenshard.shards.dataset:Dataset",
    "loader": "tokenshard.api:loader",
    "TokenLoader": "tokenshard.loading.loader:TokenLoader",
    "MixtureLoader": "tokenshard.loading.mixture:MixtureLoader",
    "SequenceLoader": "tokenshard.loading.sequences:SequenceLoader",
    "Shuffle": "tokenshard.loading.order:Shuffle",
    "run": "tokenshard.api:run",
    "convert_images": "tokenshard.api:convert_images",
    **{
        name: f"tokenshard.errors:{name}"
        for name in ("TokenshardError", "SpecError", "StoreError", "FormatError", "InputError", "JobError")
    },
}
__all__ = [
    "Cache",
    "Crop",
    "Dataset",
    "FormatError",
    "InputError",
    "JobError",
    "MixtureLoader",
    "SequenceLoader",
    "Shuffle",
    "SpecError",
    "StoreError",
    "TokenLoader",
    "TokenshardError",
    "convert_images",
    "loader",
    "open",
    "run",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tokenshard' has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    return getattr(import_module(module), attribute)
