"""Loaders with shards of their own: LitData, MosaicML Streaming, WebDataset."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feeding.peer import BATCH, BUFFER, Epochs, Made, Peer
from feeding.tokens import Tokens

SHARD = 1 << 22
"""Bytes of a shard: some tens of megabytes are to be more than one."""


def rows(raw: Path) -> Iterator[tuple[Any, int, str]]:
    """Codes, label and key of each sample."""
    tokens = Tokens.load(raw)
    for codes, label, key in zip(tokens.codes, tokens.labels.tolist(), tokens.keys.astype(str).tolist(), strict=True):
        yield np.array(codes), label, key


class LitData(Peer):
    """LitData's chunks, read by its own loader without workers."""

    def write(self, raw: Path) -> None:
        self._fill({"codes": codes, "label": label, "key": key} for codes, label, key in rows(raw))

    def _fill(self, items: Iterator[Any], **options: Any) -> None:
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(self.folder / "set"), chunk_bytes=SHARD, **options)
        for number, item in enumerate(items):
            writer.add_item(number, item)
        writer.done()
        writer.merge()

    def _dataset(self, **options: Any) -> Any:
        import litdata

        return litdata.StreamingDataset(str(self.folder / "set"), shuffle=True, seed=0, **options)

    def open(self) -> Any:
        import litdata

        return litdata.StreamingDataLoader(self._dataset(), batch_size=BATCH, num_workers=0)

    def made(self, batch: Any) -> Made:
        return batch["codes"], batch["label"], batch["key"]

    def sample(self) -> Callable[[int], Any]:
        return self._dataset().__getitem__  # type: ignore[no-any-return]


class LitDataTokens(LitData):
    """The same with its TokensLoader, which keeps ids and nothing else."""

    note = "ids only: no labels, no keys"

    def write(self, raw: Path) -> None:
        from litdata.streaming.item_loader import TokensLoader

        flat = (torch.from_numpy(codes.reshape(-1)) for codes, _, _ in rows(raw))
        self._fill(flat, item_loader=TokensLoader())
        (self.folder / "side").write_text(str(len(Tokens.load(raw).codes[0])))

    def _dataset(self, **options: Any) -> Any:
        from litdata.streaming.item_loader import TokensLoader

        return super()._dataset(item_loader=TokensLoader(block_size=self._side**2), **options)

    @property
    def _side(self) -> int:
        return int((self.folder / "side").read_text())

    def made(self, batch: Any) -> Made:
        side = int(batch.shape[1] ** 0.5)
        return batch.reshape(-1, side, side), None, None


def mosaic() -> Any:
    """MosaicML's `streaming`.

    Its package imports torchvision for readers of images that are not used here. Where no torchvision fits the
    installed torch, empty modules with the two names it asks for stand in; whatever is measured is MosaicML's own.
    """
    try:
        importlib.import_module("torchvision.transforms.functional")
    except (ImportError, RuntimeError):
        for name in ("torchvision", *(f"torchvision.{part}" for part in ("datasets", "transforms"))):
            sys.modules[name] = _empty(name)
        sys.modules["torchvision.transforms.functional"] = _empty("torchvision.transforms.functional")
    return importlib.import_module("streaming")


def _empty(name: str) -> Any:
    module: Any = types.ModuleType(name)
    module.__spec__, module.VisionDataset, module.to_tensor = ModuleSpec(name, None), object, None
    return module


class Mosaic(Peer):
    """MosaicML Streaming's shards, read by its own loader without workers."""

    workers = 0

    def write(self, raw: Path) -> None:
        shape = ",".join(map(str, Tokens.load(raw).codes.shape[1:]))
        columns = {"codes": f"ndarray:uint16:{shape}", "label": "int", "key": "str"}
        with mosaic().MDSWriter(out=str(self.folder / "set"), columns=columns, size_limit=SHARD) as writer:
            for codes, label, key in rows(raw):
                writer.write({"codes": codes, "label": label, "key": key})

    def _dataset(self) -> Any:
        mosaic().base.util.clean_stale_shared_memory()  # else a second reader of the folder is refused
        return mosaic().StreamingDataset(local=str(self.folder / "set"), shuffle=True, shuffle_seed=0, batch_size=BATCH)

    def open(self) -> Any:
        return mosaic().StreamingDataLoader(self._dataset(), batch_size=BATCH, num_workers=self.workers)

    def made(self, batch: Any) -> Made:
        return batch["codes"], batch["label"], batch["key"]

    def sample(self) -> Callable[[int], Any] | None:
        return None if self.workers else self._dataset().__getitem__


class MosaicWorkers(Mosaic):
    """The same with two worker processes, which is how it is meant to be used."""

    workers = 2


class WebDataset(Peer):
    """Tar files, all of them in another order each epoch, and a buffer."""

    note = f"shuffled in a buffer of {BUFFER:,}"

    def write(self, raw: Path) -> None:
        import webdataset

        os.makedirs(self.folder / "set")
        with webdataset.ShardWriter(str(self.folder / "set" / "%05d.tar"), maxcount=10_000, verbose=0) as writer:
            for codes, label, key in rows(raw):
                writer.write({"__key__": key, "npy": codes, "cls": label})

    def open(self) -> Any:
        import webdataset

        files = sorted(str(path) for path in (self.folder / "set").glob("*.tar"))

        def epoch(number: int) -> Any:
            dataset = webdataset.WebDataset(files, shardshuffle=len(files), seed=number, empty_check=False)
            samples = dataset.shuffle(BUFFER, seed=number).decode().to_tuple("npy", "cls", "__key__")
            return samples.batched(BATCH)

        return Epochs(epoch)

    def made(self, batch: Any) -> Made:
        codes, labels, keys = batch
        return torch.from_numpy(np.stack(codes)), torch.as_tensor(labels), list(keys)
