"""Jobs from Python: the same as the command line, with values instead of options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenshard.engine.claim import Mode
from tokenshard.engine.convert import Conversion, run_conversion
from tokenshard.engine.progress import Progress
from tokenshard.errors import SpecError
from tokenshard.shards.cache import Cache
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.manifest import read_manifest
from tokenshard.spec.conversion import ConvertJob, JobSpec
from tokenshard.spec.job import ConvertImages, LearnJob, TrainTokenizer, build_job, parse_job
from tokenshard.store import Store
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.folder import load_tokenizer

if TYPE_CHECKING:
    from tokenshard.loading.loader import TokenLoader
    from tokenshard.loading.order import Shuffle
    from tokenshard.tokenizers.coarse import CoarseFine
    from tokenshard.training.job import Training
    from tokenshard.training.setting import Outcome


class TokenDataset(Dataset):
    """A dataset that can also decode itself."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer stored in the dataset: ids -> pixels, and pixels -> ids.

        Raises FormatError where it is damaged, and SpecError of pages, whose vectors no tokenizer decodes.
        """
        return load_tokenizer(self.store, f"tokenizer/{self.manifest.tokenizer.fingerprint}")

    def coarse(self, clusters: int, seed: int = 0) -> CoarseFine:
        """The ids of the first level as coarse ids below ``clusters`` and fine ids, from the tokenizer's codebook.

        The same as `transcode --coarse` stores. Raises SpecError where the tokenizer has no codebook, or not more than
        ``clusters`` codes.
        """
        from tokenshard.tokenizers.coarse import CoarseFine
        from tokenshard.tokenizers.derived import codebook_tokenizer

        return CoarseFine.of(codebook_tokenizer(self.tokenizer).codebooks()[0], clusters, seed)


def open_dataset(
    url: str | PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    version: int | None = None,
    cache: Cache | None = None,
) -> TokenDataset:
    """The dataset in a folder or bucket prefix, at its newest version or the given one. Opens no shard.

    ``storage_options``: those of the fsspec file system, with `deadline` (seconds) and `hedge`. ``cache``: a local
    folder for what is read from a remote one. Raises SpecError when there is no dataset or no such version, or the
    cache is too small; FormatError when the manifest is damaged or too new; StoreError when the store does not answer.
    """
    store = Store(url, storage_options)
    dataset = TokenDataset(store, read_manifest(store, version))
    return dataset if cache is None else dataset.cached(cache)


def loader(
    dataset: Dataset | str | PathLike[str],
    batch_size: int = 256,
    shuffle: bool | Shuffle = False,
    seed: int = 0,
    columns: Sequence[str] = ("codes",),
    *,
    cache: Cache | None = None,
    **options: Any,
) -> TokenLoader:
    """Batches of a dataset as tensors, ``for batch in loader(ds, shuffle=True, columns=["codes", "label"]): …``.

    ``dataset``: one that is open, or where it lies. ``cache``: a local folder for what is read from a remote dataset.
    ``options``, errors and all promises are those of `TokenLoader`.
    """
    from tokenshard.loading.loader import TokenLoader

    found = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    found = found if cache is None else found.cached(cache)
    return TokenLoader(found, batch_size, shuffle, seed, columns, **options)


def load_job(path: str | PathLike[str]) -> JobSpec:
    """A job spec from a YAML file. Raises SpecError that names the file, the line and the allowed values."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{fspath(path)}: cannot read the job spec: {error}") from error
    return parse_job(text, fspath(path))


def run(
    job: str | PathLike[str] | JobSpec, mode: Mode | None = None, progress: Progress | None = None
) -> Conversion | Training | Outcome:
    """Run or resume a job, given as a YAML file or a spec; returns when the dataset is committed, or the model saved.

    ``mode`` (what to do with what the output holds) and ``progress`` (None: silent) are for conversions. Raises
    SpecError where spec, output and data do not fit each other, StoreError where a store fails, FormatError where a
    file that is read is damaged, JobError where the job cannot be completed, and TooManyRejects when more inputs were
    bad than ``max_rejects`` allows. Running it again goes on from there.
    """
    spec = job if isinstance(job, JobSpec) else load_job(job)
    if isinstance(spec, ConvertJob):
        return run_conversion(spec, mode, progress)
    if isinstance(spec, LearnJob):
        from tokenshard.training.start import train

        return train(spec)
    if not isinstance(spec, TrainTokenizer):
        raise SpecError(f"{spec.kind}: a job of this kind cannot be run")
    from tokenshard.training.job import train_tokenizer

    return train_tokenizer(spec, print)


def convert_images(
    src: str | PathLike[str],
    out: str | PathLike[str],
    tokenizer: str = "patch",
    mode: Mode | None = None,
    progress: Progress | None = None,
    **fields: Any,
) -> Conversion:
    """Convert images to a token dataset: ``convert_images("photos/", "tokens/", tokenizer="patch:4x4,k=1024")``.

    ``fields`` are the other fields of a `convert-images` job spec, e.g. ``codec="zstd"``; those of the source go into
    ``source``, e.g. ``source={"size": 224, "fit": "center-crop"}`` (pixels). Resumes, and raises, as `run` does.
    """
    source = {"path": fspath(src), **fields.pop("source", {})}
    job = build_job(ConvertImages, {"source": source, "output": fspath(out), "tokenizer": tokenizer, **fields})
    return run_conversion(job, mode, progress)
