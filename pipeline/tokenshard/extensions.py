"""What installed packages add to tokenshard: kinds of tokenizers, forms of images and codecs, by their entry points.

Names in datasets and job specs choose among what is installed; they never name a module, so that no dataset decides
which code is run. Entry points are seen by every process of a job on every node where the package is installed.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tokenshard.errors import SpecError

TOKENIZERS = "tokenshard.tokenizers"
"""Entry points that are a :class:`~tokenshard.tokenizers.registry.Kind`."""
IMAGES = "tokenshard.images"
"""Entry points that are subclasses of :class:`~tokenshard.sources.images.base.ImageSource`."""
CODECS = "tokenshard.codecs"
"""Entry points that are a :class:`~tokenshard.codecs.extension.Coder`."""


@cache
def extensions(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, in the order of their names. Imports none of them."""
    return {entry.name: entry for entry in sorted(entry_points(group=group), key=lambda entry: entry.name)}


def package_of(group: str, name: str) -> str:
    """The installed package that the entry point of that name belongs to, with its version: `NAME==VERSION`."""
    entry = extensions(group)[name]
    return entry.module if entry.dist is None else f"{entry.dist.name}=={entry.dist.version}"


def load_extension(group: str, name: str) -> Any:
    """What the entry point of that name stands for. Raises SpecError where its module cannot be imported."""
    entry = extensions(group)[name]
    try:
        return entry.load()
    except Exception as error:
        package = package_of(group, name).partition("==")[0]
        raise SpecError(f"{name!r} of the installed package {package} cannot be loaded: {error}; repair it") from error
