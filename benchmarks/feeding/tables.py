"""Loaders over tables: Hugging Face `datasets`, Lance, Grain and Ray Data over Parquet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feeding.peer import BATCH, BUFFER, Epochs, Made, Peer, ResumedEpochs, Shuffled
from feeding.tokens import Tokens

FILE_ROWS = 8192
"""Rows of a Parquet file: some ten thousand samples are to be more than one."""


class HfArrow(Peer):
    """Hugging Face `datasets`, Arrow files, a batch by number at a time."""

    def write(self, raw: Path) -> None:
        import datasets

        tokens = Tokens.load(raw)
        features = datasets.Features(
            codes=datasets.Array2D(tokens.codes.shape[1:], "uint16"),
            label=datasets.Value("int64"),
            key=datasets.Value("string"),
        )
        columns = {"codes": list(tokens.codes), "label": tokens.labels, "key": tokens.keys.astype(str).tolist()}
        datasets.disable_progress_bars()
        self._save(datasets.Dataset.from_dict(columns, features))

    def _save(self, dataset: Any) -> None:
        dataset.save_to_disk(str(self.folder / "set"))

    def _dataset(self) -> Any:
        import datasets

        datasets.disable_progress_bars()
        return datasets.load_from_disk(str(self.folder / "set")).with_format("numpy", dtype=np.uint16)

    def open(self) -> Any:
        dataset = self._dataset()
        return Shuffled(len(dataset), lambda ids: dataset[ids.tolist()])

    def made(self, batch: Any) -> Made:
        codes = torch.from_numpy(np.asarray(batch["codes"]))
        return codes, torch.from_numpy(batch["label"].astype(np.int64)), list(batch["key"])

    def sample(self) -> Callable[[int], Any] | None:
        return self._dataset().__getitem__  # type: ignore[no-any-return]


class HfStreaming(HfArrow):
    """The same as a stream of Parquet files."""

    note = f"shuffled in a buffer of {BUFFER:,}"

    def _save(self, dataset: Any) -> None:
        os.makedirs(self.folder / "set")
        count = -(-len(dataset) // FILE_ROWS)
        for part in range(count):
            dataset.shard(count, part, contiguous=True).to_parquet(str(self.folder / "set" / f"{part:05d}.parquet"))

    def open(self) -> Any:
        import datasets

        files = sorted(str(path) for path in (self.folder / "set").iterdir())
        dataset = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        return _HfEpochs(dataset.shuffle(seed=0, buffer_size=BUFFER).batch(BATCH))

    def made(self, batch: Any) -> Made:
        return torch.from_numpy(np.asarray(batch["codes"], np.uint16)), torch.as_tensor(batch["label"]), batch["key"]

    def sample(self) -> None:
        return None


class _HfEpochs:
    """A stream that is told which epoch it is in."""

    def __init__(self, dataset: Any) -> None:
        self._dataset, self._epoch = dataset, 0
        self.state_dict: Callable[[], dict[str, Any]] = dataset.state_dict
        self.load_state_dict: Callable[[Mapping[str, Any]], None] = dataset.load_state_dict

    def __iter__(self) -> Iterator[Any]:
        self._dataset.set_epoch(self._epoch)
        self._epoch += 1
        return iter(self._dataset)


class Lance(Peer):
    """Lance, a batch of rows taken by number at a time."""

    def write(self, raw: Path) -> None:
        import lance

        lance.write_dataset(_table(raw), str(self.folder / "set.lance"))

    def open(self) -> Any:
        import lance

        dataset = lance.dataset(str(self.folder / "set.lance"))
        return Shuffled(dataset.count_rows(), lambda ids: dataset.take(ids.tolist()))

    def made(self, batch: Any) -> Made:
        flat = batch["codes"].combine_chunks().flatten().to_numpy()
        side = int((len(flat) // len(batch)) ** 0.5)
        codes = torch.from_numpy(flat.reshape(-1, side, side).copy())
        return codes, torch.from_numpy(batch["label"].to_numpy().copy()), batch["key"].to_pylist()

    def sample(self) -> Callable[[int], Any]:
        import lance

        dataset = lance.dataset(str(self.folder / "set.lance"))
        return lambda number: dataset.take([number]).to_pylist()


class Parquet(Peer):
    """Some Parquet files under zstd, ids as a list."""

    def write(self, raw: Path) -> None:
        import pyarrow.parquet as pq

        os.makedirs(self.folder / "set")
        table = self._table(raw)
        for part, first in enumerate(range(0, len(table), FILE_ROWS)):
            path = self.folder / "set" / f"{part:05d}.parquet"
            pq.write_table(table.slice(first, FILE_ROWS), path, compression="zstd")

    def _table(self, raw: Path) -> Any:
        return _table(raw)

    def files(self) -> list[str]:
        return sorted(str(path) for path in (self.folder / "set").iterdir())


class GrainParquet(Parquet):
    """Grain's Parquet dataset, a row at a time, interleaved over its files."""

    note = f"shuffled in windows of {BUFFER:,}"

    def open(self) -> Any:
        import grain

        rows = grain.experimental.ParquetIterDataset(self.files())

        def epoch(number: int) -> Any:
            window = grain.experimental.WindowShuffleIterDataset(rows, window_size=BUFFER, seed=number)
            return window.batch(BATCH, batch_fn=list)

        return ResumedEpochs(epoch)

    def made(self, batch: Any) -> Made:
        codes = np.array([row["codes"] for row in batch], np.uint16)
        side = int(codes.shape[1] ** 0.5)
        labels = torch.tensor([row["label"] for row in batch])
        return torch.from_numpy(codes.reshape(-1, side, side)), labels, [row["key"] for row in batch]


class RayData(Parquet):
    """Ray Data over Parquet with its own tensor column, on a Ray of its own with two CPUs."""

    note = f"two Ray workers; shuffled in a buffer of {BUFFER:,} over files in random order"

    def _table(self, raw: Path) -> Any:
        from ray.data.extensions import ArrowTensorArray

        table = super()._table(raw)
        codes = ArrowTensorArray.from_numpy(np.ascontiguousarray(Tokens.load(raw).codes))
        return table.set_column(0, "codes", codes)

    def open(self) -> Any:
        import ray.data

        if not ray.is_initialized():
            quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
            ray.init(address="local", num_cpus=2, object_store_memory=512 << 20, **quiet)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False

        def epoch(number: int) -> Any:
            order = ray.data.FileShuffleConfig(seed=number)
            return ray.data.read_parquet(self.files(), shuffle=order).iter_torch_batches(
                batch_size=BATCH,
                local_shuffle_buffer_size=BUFFER,
                local_shuffle_seed=number,
                collate_fn=_collate,
            )

        return Epochs(epoch)


def _collate(batch: dict[str, Any]) -> Made:
    codes, labels = torch.from_numpy(batch["codes"].copy()), torch.from_numpy(batch["label"].copy())
    return codes, labels, batch["key"].tolist()


def _table(raw: Path) -> Any:
    import pyarrow as pa

    tokens = Tokens.load(raw)
    flat = pa.array(np.ascontiguousarray(tokens.codes).reshape(-1))
    codes = pa.FixedSizeListArray.from_arrays(flat, tokens.codes[0].size)
    return pa.table({"codes": codes, "label": tokens.labels, "key": tokens.keys.astype(str).tolist()})
