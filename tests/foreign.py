"""Libraries of others that some tests need: imported where installed, else the test is skipped and says why."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import pytest


def library(name: str) -> Any:
    """A module of another project; skips the test where it is not installed (extras `exchange` and `mds`)."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported ({error}); see the extras `exchange` and `mds`")


def mosaic_streaming() -> Any:
    """MosaicML's `streaming`.

    Its package imports torchvision, for datasets of images that nothing here touches; where no torchvision fits the
    installed torch, an empty module stands in for it. All code under test is theirs.
    """
    if importlib.util.find_spec("streaming") is None:
        pytest.skip("mosaicml-streaming is not installed; it is in the extra `mds`")
    try:
        importlib.import_module("torchvision.transforms.functional")
    except (ImportError, RuntimeError):
        for name, attributes in {
            "torchvision": {},
            "torchvision.datasets": {"VisionDataset": object},
            "torchvision.transforms": {},
            "torchvision.transforms.functional": {"to_tensor": None},
        }.items():
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.__dict__.update(attributes)
            sys.modules[name] = module
    return library("streaming")
