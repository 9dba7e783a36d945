"""`tokenshard demo`: the whole way on real images that ship with scikit-learn and scikit-image, in a minute or two.

1. 1,797 handwritten digits (labelled) go into WebDataset tars, and through Ray into token shards.
2. A small classifier is trained from the shards, and the same one from the pixels.
3. Photographs are cut into tiles, converted, decoded again and compared: bytes, bits per token, PSNR.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.api import convert_images, open_dataset
from tokenshard.engine.progress import Progress
from tokenshard.errors import SpecError
from tokenshard.readable import readable_bytes
from tokenshard.report.charts import StorageRow, storage_chart
from tokenshard.report.quality import psnr
from tokenshard.report.samples import draw_samples
from tokenshard.shards.stats import dataset_stats

Say = Callable[[str], None]
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "camera", "rocket", "hubble_deep_field", "brick", "grass", "gravel")
TILE = 128
TRAIN_SHARE = 0.8
SEED = 0


@dataclass(frozen=True)
class Result:
    """Figures of one dataset."""

    name: str
    samples: int
    raw_bytes: int
    """decoded pixels"""
    png_bytes: int
    jpeg_bytes: int
    """quality 75"""
    token_bytes: int
    """the shard files, all columns included"""
    bits_per_token: float
    psnr: float
    accuracy_tokens: float | None = None
    accuracy_pixels: float | None = None


def run_demo(folder: Path, engine: str = "ray", say: Say = print) -> list[Result]:
    """Run the demo below ``folder`` (removed first if an earlier demo made it); the figures it printed."""
    _prepare(folder)
    results = [_digits(folder, engine, say), _photographs(folder, engine, say)]
    chart = folder / "storage.png"
    storage_chart([row for result in results for row in _bars(result)], chart)
    say("")
    for line in _table(results):
        say(line)
    say("")
    for path in sorted(folder.glob("*.png")):
        say(f"picture: {path}")
    say(f"try: tokenshard info {folder / 'digits-tokens'}")
    return results


def _prepare(folder: Path) -> None:
    marker = folder / ".tokenshard-demo"
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise SpecError(f"{folder}: is not empty and was not made by the demo; choose another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()


# -- labelled digits --------------------------------------------------------------------------------------------------


def _digits(folder: Path, engine: str, say: Say) -> Result:
    images, labels = _load_digits()
    say(f"digits: {len(images):,} handwritten digits of 8 x 8 pixels, as WebDataset")
    png_bytes = _write_webdataset(folder / "digits", images, labels)
    out = folder / "digits-tokens"
    convert_images(
        folder / "digits",
        out,
        tokenizer="patch:2x2,k=64",
        engine={"kind": engine, "workers": 2},
        unit={"samples": 450},
        progress=Progress.on_stderr(),
    )
    dataset = open_dataset(out)
    codes = np.asarray(dataset.codes(range(len(dataset))))
    label = dataset.table(["label"]).column("label").to_numpy()
    keys = dataset.table(["key"]).column("key").to_pylist()
    pixels = np.stack([images[int(key)] for key in keys])
    say("digits: training the same small classifier from the shards and from the pixels")
    held_out = np.random.default_rng(SEED).permutation(len(codes))[: round(len(codes) * (1 - TRAIN_SHARE))]
    draw_samples(dataset, (), 8, folder / "digits.png")
    reconstruction = dataset.tokenizer.decode(codes[:, None])
    return Result(
        name="digits 8x8",
        samples=len(codes),
        raw_bytes=pixels[..., 0].nbytes,
        png_bytes=png_bytes,
        jpeg_bytes=sum(_jpeg_bytes(image) for image in pixels),
        token_bytes=dataset.manifest.totals.token_bytes,
        bits_per_token=float(dataset_stats(dataset)["bits_per_token"]),
        psnr=psnr(pixels, reconstruction),
        accuracy_tokens=_accuracy(codes.reshape(len(codes), -1), label, held_out, codebook=64),
        accuracy_pixels=_accuracy(pixels[..., 0].reshape(len(codes), -1), label, held_out, codebook=None),
    )


def _load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """uint8 [1797, 8, 8, 3] and int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SpecError("the demo needs scikit-learn and scikit-image: pip install 'tokenshard[demo]'") from error
    found = load_digits()
    grey = np.round(found.images * (255 / 16)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), found.target.astype(np.int64)


def _write_webdataset(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> int:
    """Shards of png + cls; bytes of the PNG files."""
    from webdataset import ShardWriter

    folder.mkdir()
    total = 0
    with ShardWriter(str(folder / "digits-%03d.tar"), maxcount=600, verbose=0) as writer:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            data = _encoded(image[..., 0], "PNG")
            total += len(data)
            writer.write({"__key__": f"{number:05d}", "png": data, "cls": int(label)})
    return total


def _accuracy(inputs: NDArray[Any], labels: NDArray[np.int64], held_out: NDArray[Any], codebook: int | None) -> float:
    """Held-out accuracy of a two-layer perceptron on ids (learned embedding of each id) or on pixel values."""
    import torch
    from torch import nn

    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the model is so small that threads would only wait for each other
    train = np.setdiff1d(np.arange(len(inputs)), held_out)
    target = torch.from_numpy(labels)
    if codebook is None:
        values = torch.from_numpy(inputs.astype(np.float32) / 255)
        stem: nn.Module = nn.Linear(inputs.shape[1], 256)
    else:
        values = torch.from_numpy(inputs.astype(np.int64))
        stem = nn.Sequential(nn.Embedding(codebook, 16), nn.Flatten(), nn.Linear(inputs.shape[1] * 16, 256))
    model = nn.Sequential(stem, nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, int(labels.max()) + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    order = torch.Generator().manual_seed(SEED)
    for _ in range(40):
        shuffled = torch.from_numpy(train)[torch.randperm(len(train), generator=order)]
        for batch in torch.split(shuffled, 128):
            loss = nn.functional.cross_entropy(model(values[batch]), target[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        guess = model(values[held_out]).argmax(1)
    return float((guess == target[held_out]).float().mean())


# -- photographs ------------------------------------------------------------------------------------------------------


def _photographs(folder: Path, engine: str, say: Say) -> Result:
    tiles = folder / "photographs"
    pixels = {}
    for key, tile in _tiles():
        path = tiles / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encoded(tile, "PNG"))
        pixels[key] = tile
    say(f"photographs: {len(pixels)} tiles of {TILE} x {TILE} pixels, as PNG files in folders")
    out = folder / "photographs-tokens"
    convert_images(
        tiles, out, tokenizer="patch:4x4,k=1024", engine={"kind": engine, "workers": 2}, progress=Progress.on_stderr()
    )
    dataset = open_dataset(out)
    codes = np.asarray(dataset.codes(range(len(dataset))))
    originals = np.stack([pixels[key] for key in dataset.table(["key"]).column("key").to_pylist()])
    draw_samples(dataset, (), 6, folder / "photographs.png")
    return Result(
        name=f"photographs {TILE}x{TILE}",
        samples=len(originals),
        raw_bytes=originals.nbytes,
        png_bytes=sum(len(_encoded(tile, "PNG")) for tile in originals),
        jpeg_bytes=sum(_jpeg_bytes(tile) for tile in originals),
        token_bytes=dataset.manifest.totals.token_bytes,
        bits_per_token=float(dataset_stats(dataset)["bits_per_token"]),
        psnr=psnr(originals, dataset.tokenizer.decode(codes[:, None])),
    )


def _tiles() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    import skimage.data

    for name in PHOTOGRAPHS:
        try:
            image = np.asarray(getattr(skimage.data, name)())
        except (OSError, ModuleNotFoundError):
            continue  # not bundled in this version of scikit-image, and there may be no network
        rgb = np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image[..., :3]
        for top in range(0, rgb.shape[0] - TILE + 1, TILE):
            for left in range(0, rgb.shape[1] - TILE + 1, TILE):
                yield f"{name}/{top:04d}-{left:04d}.png", rgb[top : top + TILE, left : left + TILE]


# -- bytes and figures ------------------------------------------------------------------------------------------------


def _encoded(image: NDArray[np.uint8], form: str, **options: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


def _jpeg_bytes(image: NDArray[np.uint8]) -> int:
    return len(_encoded(image, "JPEG", quality=75))


def _bars(result: Result) -> list[StorageRow]:
    return [
        StorageRow(result.name, "raw", result.raw_bytes, None, result.accuracy_pixels),
        StorageRow(result.name, "PNG", result.png_bytes),
        StorageRow(result.name, "JPEG", result.jpeg_bytes),
        StorageRow(result.name, "tokens", result.token_bytes, result.psnr, result.accuracy_tokens),
    ]


def _table(results: list[Result]) -> list[str]:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    cells: dict[str, Callable[[Result], str]] = {
        "samples": lambda r: f"{r.samples:,}",
        "raw pixels": lambda r: readable_bytes(r.raw_bytes),
        "PNG": lambda r: readable_bytes(r.png_bytes),
        "JPEG (quality 75)": lambda r: readable_bytes(r.jpeg_bytes),
        "token shards": lambda r: readable_bytes(r.token_bytes),
        "raw : tokens": lambda r: f"{r.raw_bytes / r.token_bytes:.1f}",
        "bits per token": lambda r: f"{r.bits_per_token:.2f}",
        "PSNR of decoded tokens": lambda r: f"{r.psnr:.1f} dB",
        "accuracy from tokens": lambda r: percent(r.accuracy_tokens),
        "accuracy from pixels": lambda r: percent(r.accuracy_pixels),
    }
    rows = [["", *(result.name for result in results)]]
    rows += [[title, *(cell(result) for result in results)] for title, cell in cells.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
