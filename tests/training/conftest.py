"""Small labelled token datasets, made of real image files by real tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokenshard.api import convert_images
from tokenshard.engine.progress import Progress
from tokenshard.quantizers.lookup import Lookup
from tokenshard.spec.job import TrainAdapt, TrainClassifier, TrainMtm, build_job
from tokenshard.store import Store
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import AutoEncoder, NetworkConfig, StackConfig
from tokenshard.tokenizers.folder import save_tokenizer
from tokenshard.tokenizers.trained import ConvConfig
from tokenshard.training.setting import Outcome
from tokenshard.training.start import train

CLASSES = ("horizontal", "rings", "vertical")
SIDE = 32


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Such small tensors gain nothing from threads, and lose much where other work runs beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(name: str, number: int) -> np.ndarray:
    """Stripes or rings of some period, place and colours, with noise: uint8 [32, 32, 3]."""
    rng = np.random.default_rng([CLASSES.index(name), number])
    y, x = np.mgrid[:SIDE, :SIDE] - rng.uniform(8, 24, (2, 1, 1))
    along = {"horizontal": y, "vertical": x, "rings": np.hypot(y, x)}[name]
    wave = np.sin(along * rng.uniform(0.5, 0.9) + rng.uniform(0, 6))[..., None]
    low, high = rng.uniform(20, 120, 3), rng.uniform(130, 230, 3)
    return np.clip(low + (high - low) * (wave + 1) / 2 + rng.normal(0, 8, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def images(root: Path, count: int, first: int = 0) -> Path:
    """A folder of each class with so many images."""
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for number in range(first, first + count):
            Image.fromarray(draw(name, number)).save(root / name / f"{number:03d}.png", compress_level=1)
    return root


def converted(src: Path, out: Path, tokenizer: str) -> Path:
    convert_images(src, out, tokenizer, engine={"kind": "local", "workers": 0}, progress=Progress.silent())
    return out


@pytest.fixture(scope="package")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` with 96 images and `val/` with 48 others, in folders of three classes."""
    root = tmp_path_factory.mktemp("pictures")
    images(root / "train", 32)
    images(root / "val", 16, first=100)
    return root


@pytest.fixture(scope="package")
def tokens(pictures: Path) -> Path:
    """Token datasets `train` and `val` of those, grids of 8 x 8 codes of 32."""
    root = pictures / "tokens"
    converted(pictures / "train", root / "train", "patch:4x4,k=32")
    fitted = next((root / "train" / "tokenizer").iterdir())
    converted(pictures / "val", root / "val", str(fitted))
    return root


@pytest.fixture(scope="package")
def residual_tokens(pictures: Path) -> Path:
    """A token dataset of residual codes: three levels of 16 codes, grids of 8 x 8."""
    stack = StackConfig(stem=4, channels=(16,), blocks=(1,))
    network = NetworkConfig(dim=4, encoder=stack, decoder=stack)
    torch.manual_seed(0)
    quantizer = Lookup.of([torch.randn(16, 4) / 2**level for level in range(3)])
    config = ConvConfig(network=network, quantizer="lookup", quantizer_options=quantizer.options())
    save_tokenizer(ConvVQ(config, AutoEncoder(network), quantizer), Store(pictures / "residual"), "")
    return converted(pictures / "train", pictures / "residual-tokens", str(pictures / "residual"))


def quiet(text: str) -> None:
    """Where nobody listens."""


def classifier_job(tokens: Path, out: Path, **changes: Any) -> TrainClassifier:
    fields: dict[str, Any] = {
        "source": {"path": str(tokens / "train"), "val": str(tokens / "val")},
        "output": str(out),
        "model": {"size": "micro"},
        "optimizer": {"lr": 2e-3, "ema": 0.9},
        "augment": {"cutmix": 0, "synonyms": 0, "swap": 0, "noise": 0, "crop_scale": [0.6, 1]},
        "batch": 16,
        "steps": 100,
        "log": {"every": 25, "checkpoint_every": 50},
    }
    job = build_job(TrainClassifier, {**fields, **changes})
    assert isinstance(job, TrainClassifier)
    return job


def mtm_job(tokens: Path, out: Path, **changes: Any) -> TrainMtm:
    fields: dict[str, Any] = {
        "source": {"path": str(tokens / "train"), "val": str(tokens / "val")},
        "output": str(out),
        "model": {"size": "micro", "stem": "patch"},
        "decoder": {"depth": 1},
        "optimizer": {"lr": 1e-3, "ema": 0.9},
        "mask": {"mean": 0.3, "low": 0.3, "drop": 0.3},
        "batch": 16,
        "steps": 200,
        "samples": 5,
        "log": {"every": 100, "checkpoint_every": 200},
    }
    job = build_job(TrainMtm, {**fields, **changes})
    assert isinstance(job, TrainMtm)
    return job


def adapt_job(tokens: Path, pictures: Path, out: Path, **changes: Any) -> TrainAdapt:
    fields: dict[str, Any] = {
        "source": {"path": str(tokens / "train"), "images": str(pictures / "train"), "crops": 1},
        "output": str(out),
        "adapter": {"width": 64},
        "optimizer": {"lr": 5e-3, "ema": 0.9},
        "batch": 16,
        "steps": 100,
        "log": {"every": 50, "checkpoint_every": 50},
    }
    job = build_job(TrainAdapt, {**fields, **changes})
    assert isinstance(job, TrainAdapt)
    return job


@pytest.fixture(scope="package")
def classified(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("models") / "classifier"
    return out, train(classifier_job(tokens, out), quiet)


@pytest.fixture(scope="package")
def pretrained(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("models") / "mtm"
    return out, train(mtm_job(tokens, out), quiet)
