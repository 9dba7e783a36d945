"""Which formats there are, and the export itself. A new format is a file of its own and a line here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from tokenshard.errors import SpecError, StoreError, TokenshardError
from tokenshard.scratch import scratch_folder
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.export.base import GROUP_BYTES, Contents, Groups, Output, SplitWriter
from tokenshard.spec.exchange import DESCRIPTION
from tokenshard.store import Store

EXPORTERS = {
    name: f"tokenshard.shards.export.{module}"
    for name, module in {
        "parquet": "parquet:ParquetWriter",
        "webdataset": "webdataset:WebDatasetWriter",
        "npy": "npy:NpyWriter",
        "npz": "npy:NpzWriter",
        "hf": "hf:HfWriter",
        "mds": "mds:MdsWriter",
        "litdata": "litdata:LitDataWriter",
        "megatron": "megatron:MegatronWriter",
        "seit": "seit:SeitWriter",
    }.items()
}
"""Name of a format -> `module:class`; the class is a :class:`SplitWriter`."""
MAX_SPLITS = 256


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    format: str
    destination: str
    num_samples: int
    splits: Mapping[str, int]
    files: int
    bytes: int
    left_out: tuple[str, ...] = ()
    """columns the format has no place for"""


def export(
    dataset: Dataset,
    destination: str | os.PathLike[str] | Store,
    format: str,
    *,
    columns: Sequence[str] | None = None,
    split: str | None = None,
    storage: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> Exported:
    """Write a dataset in another format to an empty folder or URL; equal datasets give equal bytes.

    ``columns``: label and metadata columns to keep (None: all); ``split``: export only this one; ``options``: of the
    format, e.g. `shard_bytes`; ``progress`` is called with the number of samples of every batch. Streams, a row group
    at a time. Raises SpecError for what the format cannot hold, before anything is written where that can be seen.
    """
    store = destination if isinstance(destination, Store) else Store(destination, storage)
    writer = _writer(format)
    if next(iter(store.list()), None) is not None:
        raise SpecError(f"{store.root}: is not empty; choose another destination, or empty it first")
    contents = Contents(dataset, columns, split)
    chosen = _options(format, writer, options or {})
    writer.check(contents)
    left_out = writer.left_out(contents)
    limit = min(GROUP_BYTES, chosen.get("shard_bytes", GROUP_BYTES))
    writers: dict[str, SplitWriter] = {}
    groups: dict[str, Groups] = {}
    samples: dict[str, int] = {}
    with unfinished_named(store), scratch_folder() as scratch:
        output = Output(store, Path(scratch), options=chosen)
        for name, batch in contents.batches():
            if name not in writers:
                _check_split(contents, name, len(writers))
                writers[name], groups[name], samples[name] = writer(contents, output, name), Groups(limit), 0
            for group in groups[name].add(batch):
                writers[name].add(group)
            samples[name] += len(batch)
            progress(len(batch))
        for name, opened in writers.items():
            for group in groups[name].rest():
                opened.add(group)
        for opened in writers.values():  # none before all have taken their samples
            opened.close()
        writer.complete(contents, output, samples)
        _put_description(contents, output, format, samples, writer.json_columns(contents))
    store.clean_temporary()
    return Exported(format, store.root, sum(samples.values()), samples, output.files, output.size, left_out)


@contextmanager
def unfinished_named(store: Store) -> Iterator[None]:
    """Errors of an export say that files of it lie there already, if any do."""
    try:
        yield
    except TokenshardError as error:
        with suppress(StoreError):
            if next(iter(store.list()), None) is not None:
                rest = f"{store.root} has a part of the export: empty it before you try again"
                error.args = (f"{error}; {rest}", *error.args[1:])
        raise


def _writer(format: str) -> type[SplitWriter]:
    if format not in EXPORTERS:
        raise SpecError(f"format {format!r} is unknown; there are {', '.join(EXPORTERS)}")
    module, _, name = EXPORTERS[format].partition(":")
    return cast("type[SplitWriter]", getattr(import_module(module), name))


def _options(format: str, writer: type[SplitWriter], given: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {}
    for name, value in given.items():
        if name not in writer.options:
            raise SpecError(
                f"format {format} has no option {name!r}; it has {', '.join(writer.options) or 'no options'}"
            )
        try:
            chosen[name] = writer.options[name](value)
        except ValueError as error:
            raise SpecError(f"option {name} of format {format}: {value!r} is no size in bytes, e.g. 64MiB") from error
    return chosen


def _check_split(contents: Contents, name: str, others: int) -> None:
    """Split names become file names."""
    if not name.replace("-", "_").replace(".", "_").isidentifier() or not name.isascii():
        raise SpecError(
            f"{contents.dataset.store.root}: split {name!r} makes no file name; splits are ASCII letters, digits, _ - ."
        )
    if others >= MAX_SPLITS:
        raise SpecError(f"{contents.dataset.store.root}: more than {MAX_SPLITS} different values in the column `split`")


def _put_description(
    contents: Contents, output: Output, format: str, samples: Mapping[str, int], json_columns: Sequence[str]
) -> None:
    """The tokenizer and, last of all files, what is needed to import the export again."""
    spec, weights = contents.dataset.tokenizer_files()
    folder = f"tokenizer/{spec.fingerprint}"
    for name in (*spec.files, *(f"{sha256}.tsm" for sha256 in spec.tables)):
        output.put(f"tokenizer/{name}", contents.dataset.store.read(f"{folder}/{name}"))
    output.put("tokenizer/model.safetensors", weights)
    output.put("tokenizer/tokenizer.json", (spec.model_dump_json(indent=2) + "\n").encode())
    described = contents.describe(format, samples, json_columns)
    output.put(DESCRIPTION, (described.model_dump_json(indent=2) + "\n").encode())
