"""Pictures of a dataset's samples: original beside reconstruction beside codes, as `tokenshard show` draws them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenshard.engine.job_folder import JobFolder
from tokenshard.errors import FormatError, SpecError, StoreError
from tokenshard.parquet import read_parquet
from tokenshard.report.pages import page_rows
from tokenshard.report.pictures import HEADINGS, PictureRow, reconstruction_grid
from tokenshard.report.quality import psnr
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.schema import KEY
from tokenshard.sources.base import Sample
from tokenshard.sources.registry import open_source
from tokenshard.spec.conversion import TokenizeJob
from tokenshard.spec.job import ConvertDocuments
from tokenshard.spec.tokenizer import PAGES
from tokenshard.store import Store
from tokenshard.tokenizers.base import FileTokenizer, Tokenizer
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.tokenizers.frames import clip_size, decode_frames

FRAMES_SHOWN = 4
"""Frames of a clip in a picture."""


def draw_samples(dataset: Dataset, keys: Sequence[str], count: int, picture: str | Path) -> list[str]:
    """Draw the samples with these keys (none: ``count`` evenly spaced ones) into a PNG; a line of text for each.

    Originals are shown where the source is still at hand; of pages the attention that their patches received, too.
    Raises SpecError for an unknown key.
    """
    numbers = sample_numbers(dataset, keys, count)
    drawn = picture_rows(dataset, numbers, dict(originals(dataset, keys_of(dataset, numbers))))
    reconstruction_grid([row for sample in drawn.samples for row in sample.rows], drawn.headings).save(picture, "PNG")
    return [sample.line for sample in drawn.samples]


class DrawnSample(NamedTuple):
    """What is shown of a sample: its rows (of clips one a frame), a line of text, and PSNR in dB where it is known."""

    key: str
    rows: list[PictureRow]
    line: str
    psnr: float | None = None


class Drawn(NamedTuple):
    """Samples with what the columns of their pictures hold."""

    samples: list[DrawnSample]
    headings: tuple[str, str, str]


def picture_rows(dataset: Dataset, numbers: Sequence[int], known: Mapping[str, NDArray[Any]]) -> Drawn:
    """The samples with these numbers as pictures: original (of ``known``, by key), reconstruction, codes.

    Of pages: the page and the attention of its patches. Raises SpecError where the tokenizer cannot decode.
    """
    samples = [dataset[number] for number in numbers]
    keys = [sample["key"] for sample in samples]
    if dataset.tokenizer_files()[0].kind == PAGES:
        pages, said = page_rows(samples, known)
        drawn = [DrawnSample(*of) for of in zip(keys, ([page] for page in pages), said, strict=True)]
        return Drawn(drawn, ("page", "attention", ""))
    tokenizer = load_tokenizer(dataset.store, f"tokenizer/{dataset.manifest.tokenizer.fingerprint}")
    one_level = len(dataset.manifest.code.levels) == 1
    return Drawn([_drawn(sample, tokenizer, one_level, known.get(sample["key"])) for sample in samples], HEADINGS)


def _drawn(
    sample: dict[str, Any], tokenizer: Tokenizer, one_level: bool, original: NDArray[np.uint8] | None
) -> DrawnSample:
    codes = np.asarray(sample["codes"])
    codes = codes[None] if one_level else codes
    size = (sample["height"], sample["width"]) if "height" in sample else None
    if codes.ndim == 4:
        clip = decode_frames(tokenizer, codes, clip_size(sample) if size else None)
        step = tokenizer.spec.downsample[0] if tokenizer.spec.modality == "video" else 1
        known = psnr(original, clip) if original is not None and original.shape == clip.shape else None
        line = f"{sample['key']}  {len(clip)} frames, {codes.size:,} ids"
        return DrawnSample(sample["key"], _frames_of(sample, codes, clip, original, step), line, known)
    image = tokenizer.decode(codes[None], size)[0]
    caption, known = sample["key"], None
    if original is not None and original.shape == image.shape:
        known = psnr(original, image)
        caption += f"  {known:.1f} dB"
    row = PictureRow(original, image, caption, codes[0] if codes.ndim == 3 else None)
    line = f"{caption}  {image.shape[1]} x {image.shape[0]} pixels, {codes.size:,} ids"
    return DrawnSample(sample["key"], [row], line, known)


def _frames_of(
    sample: dict[str, Any], codes: NDArray[Any], clip: NDArray[np.uint8], original: NDArray[np.uint8] | None, step: int
) -> list[PictureRow]:
    """Evenly spaced frames of a clip, a row each, with codes, which cover ``step`` frames each, or the first alone."""
    rows = []
    for number in sorted({int(place) for place in np.linspace(0, len(clip) - 1, FRAMES_SHOWN)}):
        caption = f"{sample['key']}  frame {number}"
        if sample.get("pts") is not None:
            caption += f"  {sample['pts'][number] / 1e6:.2f} s"
        before = original[number] if original is not None and original.shape == clip.shape else None
        if before is not None:
            caption += f"  {psnr(before, clip[number]):.1f} dB"
        rows.append(PictureRow(before, clip[number], caption, codes[0, -(-number // step)]))
    return rows


def write_files(dataset: Dataset, keys: Sequence[str], count: int, folder: str | Path) -> list[str]:
    """Write the files that ids of a canonical tokenizer are; a line of text for each. Other arguments as above.

    Raises SpecError for another tokenizer, and for a key that leads outside the folder.
    """
    tokenizer = load_tokenizer(dataset.store, f"tokenizer/{dataset.manifest.tokenizer.fingerprint}")
    if not isinstance(tokenizer, FileTokenizer):
        raise SpecError(
            f"{dataset.store.root}: its ids are those of a {tokenizer.spec.kind!r} tokenizer, which are no files; "
            "leave --files out to see them as pictures"
        )
    store, lines = Store(folder), []
    for number in sample_numbers(dataset, keys, count):
        sample = dataset[number]
        key = str(sample["key"])
        if {"", ".", ".."} & set(key.split("/")) or "\\" in key:
            raise SpecError(f"{dataset.store.root}: key {key!r} is no name of a file below a folder")
        content = tokenizer.file(np.asarray(sample["codes"]))
        name = key if key.lower().endswith(tokenizer.suffixes) else key + tokenizer.suffixes[0]
        store.put(name, content)
        lines.append(f"{name}  {len(content):,} bytes, {sample['codes'].size:,} ids")
    return lines


def sample_numbers(dataset: Dataset, keys: Sequence[str], count: int) -> list[int]:
    """The samples with these keys; without keys ``count`` evenly spaced ones. Raises SpecError for unknown keys."""
    if keys:
        return [_number(dataset, key) for key in keys]
    return sorted({int(place) for place in np.linspace(0, len(dataset) - 1, count)})


def _number(dataset: Dataset, key: str) -> int:
    try:
        return dataset.index(key)
    except KeyError:
        raise SpecError(
            f"{dataset.store.root}: no sample with key {key!r}; keys look like {dataset[0]['key']!r}"
        ) from None


def keys_of(dataset: Dataset, numbers: Sequence[int]) -> list[str]:
    """Keys of the samples with these numbers."""
    keys: list[str] = dataset.rows(numbers)[KEY].to_pylist()
    return keys


def originals(dataset: Dataset, keys: Sequence[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Keys and decoded inputs of these samples, as far as plans and raw inputs are still there."""
    wanted = pa.array(keys, pa.string())
    for version in range(1, dataset.manifest.version + 1):
        yield from _originals_of_job(JobFolder(dataset.store, version), wanted)


def _originals_of_job(folder: JobFolder, wanted: pa.Array) -> Iterator[tuple[str, NDArray[Any]]]:
    try:
        plan = folder.plan()
        if plan is None:
            return
        job = folder.conversion()
        if isinstance(job, ConvertDocuments):
            job = job.model_copy(update={"source": job.source.model_copy(update={"render": True})})
        elif not isinstance(job, TokenizeJob):
            return  # its inputs are ids, not what they stand for
        source = open_source(job, plan.source_state)
        for part in plan.parts:
            with folder.output.open(part.path) as file:
                inputs = read_parquet(file)
            inputs = inputs.filter(pc.is_in(inputs["key"], wanted))
            for thunk in source.read(inputs) if inputs.num_rows else ():
                if isinstance(item := thunk(), Sample):
                    yield item.key, item.data
    except (SpecError, FormatError, StoreError, FileNotFoundError):
        return  # the source has moved or is out of reach: reconstructions alone are shown
