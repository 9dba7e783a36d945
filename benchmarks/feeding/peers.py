"""Loaders beside ours: each writes the set in its own format, and gives shuffled batches of it.

A batch is (uint16 tensor [B, side, side], int64 tensor [B], list of B keys), whatever the loader makes of it first.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tokenshard as ts
from feeding.tokens import Tokens
from tokenshard.spec.job import Import, build_job

BATCH = 256
Made = tuple[torch.Tensor, torch.Tensor, list[Any]]
COLUMNS = ("codes", "label", "key")


class Peer(ABC):
    """One loader. ``write`` fills an empty folder from the .npy files; ``epoch`` gives the batches of an epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def write(self, raw: Path) -> None: ...

    @abstractmethod
    def epoch(self, number: int) -> Iterator[Made]: ...

    def resumes(self) -> bool | None:
        """Whether a state taken in mid-epoch gives exactly the rest of it; None where there is none."""
        return None


class Memmap(Peer):
    """The reference: a NumPy gather."""

    def write(self, raw: Path) -> None:
        Tokens.load(raw).save(self.folder / "set", text=False)

    def epoch(self, number: int) -> Iterator[Made]:
        tokens = Tokens.load(self.folder / "set")
        order = np.random.default_rng(number).permutation(len(tokens.codes))
        keys = tokens.keys.astype(str)
        for first in range(0, len(order), BATCH):
            yield self.batch(tokens, keys, order[first : first + BATCH])

    @staticmethod
    def batch(tokens: Tokens, keys: Any, ids: Any) -> Made:
        return torch.from_numpy(tokens.codes[ids]), torch.from_numpy(tokens.labels[ids]), keys[ids].tolist()


class Torchdata(Memmap):
    """torchdata nodes over the same files, batch by batch."""

    def epoch(self, number: int) -> Iterator[Made]:
        from torchdata import nodes

        tokens = Tokens.load(self.folder / "set")
        keys = tokens.keys.astype(str)
        order = np.random.default_rng(number).permutation(len(tokens.codes))
        batches = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
        node = nodes.Mapper(nodes.IterableWrapper(batches), lambda ids: self.batch(tokens, keys, ids))
        yield from nodes.Loader(node)


class Grain(Memmap):
    """Grain's map dataset over the same files, sample by sample."""

    def epoch(self, number: int) -> Iterator[Made]:
        import grain

        tokens = Tokens.load(self.folder / "set")
        keys = tokens.keys.astype(str)

        class Source:
            def __len__(self) -> int:
                return len(tokens.codes)

            def __getitem__(self, n: int) -> dict[str, Any]:
                return {"codes": tokens.codes[n], "label": tokens.labels[n], "key": keys[n]}

        for batch in grain.MapDataset.source(Source()).shuffle(seed=number).batch(BATCH):
            codes, labels = (torch.from_numpy(np.asarray(batch[name])) for name in ("codes", "label"))
            yield codes, labels, batch["key"].tolist()


class Ours(Peer):
    """Token shards."""

    codec = "pack"

    def write(self, raw: Path) -> None:
        source = {"path": str(raw), "format": "npy", "alphabet": 1024}
        job = {"source": source, "output": str(self.folder / "tokens"), "codec": self.codec}
        ts.run(build_job(Import, {**job, "engine": {"kind": "local", "workers": 0}}))

    def loader(self) -> Any:
        return ts.loader(self.folder / "tokens", BATCH, True, 1, COLUMNS, threads=1)

    def epoch(self, number: int) -> Iterator[Made]:
        loader = self.loader()
        loader.set_epoch(number)
        for batch in loader:
            yield batch["codes"], batch["label"], batch["key"]

    def resumes(self) -> bool:
        whole = [key for batch in self.loader() for key in batch["key"]]
        first, second = self.loader(), self.loader()
        batches = iter(first)
        begun = [key for _ in range(7) for key in next(batches)["key"]]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        return begun + [key for batch in second for key in batch["key"]] == whole


class OursContext(Ours):
    codec = "context"


class LitData(Peer):
    """LitData's chunks, read by its own loader without workers."""

    def write(self, raw: Path) -> None:
        import litdata
        from litdata.streaming.writer import BinaryWriter

        assert litdata
        tokens = Tokens.load(raw)
        os.makedirs(self.folder / "set")
        writer = BinaryWriter(str(self.folder / "set"), chunk_bytes="4MB")
        for n, (codes, label, key) in enumerate(zip(tokens.codes, tokens.labels.tolist(), tokens.keys, strict=True)):
            writer.add_item(n, {"codes": np.array(codes), "label": label, "key": key.decode()})
        writer.done()
        writer.merge()

    def _loader(self, number: int) -> Any:
        import litdata

        dataset = litdata.StreamingDataset(str(self.folder / "set"), shuffle=True, seed=number)
        return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)

    def epoch(self, number: int) -> Iterator[Made]:
        for batch in self._loader(number):
            yield batch["codes"], batch["label"], batch["key"]


class Mds(Peer):
    """MosaicML Streaming's shards, without workers."""

    def write(self, raw: Path) -> None:
        import streaming

        tokens = Tokens.load(raw)
        shape = ",".join(map(str, tokens.codes.shape[1:]))
        columns = {"codes": f"ndarray:uint16:{shape}", "label": "int", "key": "str"}
        with streaming.MDSWriter(out=str(self.folder / "set"), columns=columns, size_limit=1 << 22) as writer:
            for codes, label, key in zip(tokens.codes, tokens.labels.tolist(), tokens.keys, strict=True):
                writer.write({"codes": np.array(codes), "label": label, "key": key.decode()})

    def epoch(self, number: int) -> Iterator[Made]:
        import streaming

        dataset = streaming.StreamingDataset(
            local=str(self.folder / "set"), shuffle=True, shuffle_seed=number, batch_size=BATCH
        )
        for batch in torch.utils.data.DataLoader(dataset, batch_size=BATCH):
            yield batch["codes"], batch["label"], batch["key"]


class WebDataset(Peer):
    """Tar files, a buffer of 5,000 samples."""

    def write(self, raw: Path) -> None:
        import webdataset

        tokens = Tokens.load(raw)
        os.makedirs(self.folder / "set")
        with webdataset.ShardWriter(str(self.folder / "set" / "%05d.tar"), maxcount=10_000, verbose=0) as writer:
            for codes, label, key in zip(tokens.codes, tokens.labels.tolist(), tokens.keys, strict=True):
                writer.write({"__key__": key.decode(), "npy": codes, "cls": label})

    def epoch(self, number: int) -> Iterator[Made]:
        import webdataset

        files = sorted(str(path) for path in (self.folder / "set").glob("*.tar"))
        dataset = webdataset.WebDataset(files, shardshuffle=len(files), seed=number, empty_check=False)
        samples = dataset.shuffle(5000).decode().to_tuple("npy", "cls", "__key__")
        for codes, labels, keys in samples.batched(BATCH):
            yield torch.from_numpy(np.stack(codes)), torch.as_tensor(labels), list(keys)


class HfArrow(Peer):
    """Hugging Face `datasets`, Arrow files, random access."""

    def write(self, raw: Path) -> None:
        import datasets

        tokens = Tokens.load(raw)
        features = datasets.Features(
            codes=datasets.Array2D(tokens.codes.shape[1:], "uint16"),
            label=datasets.Value("int64"),
            key=datasets.Value("string"),
        )
        columns = {"codes": list(tokens.codes), "label": tokens.labels, "key": tokens.keys.astype(str).tolist()}
        datasets.Dataset.from_dict(columns, features).save_to_disk(str(self.folder / "set"))

    def epoch(self, number: int) -> Iterator[Made]:
        import datasets

        datasets.disable_progress_bars()
        dataset = datasets.load_from_disk(str(self.folder / "set")).with_format("numpy", dtype=np.uint16)
        order = np.random.default_rng(number).permutation(len(dataset))
        for first in range(0, len(order), BATCH):
            batch = dataset[order[first : first + BATCH].tolist()]
            codes = torch.from_numpy(np.asarray(batch["codes"]))
            yield codes, torch.from_numpy(batch["label"].astype(np.int64)), list(batch["key"])


class HfStreaming(HfArrow):
    """The same as a stream of Parquet files, a buffer of 5,000 samples."""

    def write(self, raw: Path) -> None:
        import datasets

        super().write(raw)
        datasets.load_from_disk(str(self.folder / "set")).to_parquet(str(self.folder / "set.parquet"))

    def epoch(self, number: int) -> Iterator[Made]:
        import datasets

        dataset = datasets.load_dataset(
            "parquet", data_files=str(self.folder / "set.parquet"), split="train", streaming=True
        )
        for batch in dataset.shuffle(seed=number, buffer_size=5000).batch(BATCH):
            codes = torch.from_numpy(np.asarray(batch["codes"], np.uint16))
            yield codes, torch.as_tensor(batch["label"]), batch["key"]


class Lance(Peer):
    """Lance, rows taken by number."""

    def write(self, raw: Path) -> None:
        import lance
        import pyarrow as pa

        tokens = Tokens.load(raw)
        flat = pa.array(np.ascontiguousarray(tokens.codes).reshape(-1))
        codes = pa.FixedSizeListArray.from_arrays(flat, tokens.codes[0].size)
        table = pa.table({"codes": codes, "label": tokens.labels, "key": tokens.keys.astype(str).tolist()})
        lance.write_dataset(table, str(self.folder / "set.lance"))

    def epoch(self, number: int) -> Iterator[Made]:
        import lance

        dataset = lance.dataset(str(self.folder / "set.lance"))
        order = np.random.default_rng(number).permutation(dataset.count_rows())
        for first in range(0, len(order), BATCH):
            table = dataset.take(order[first : first + BATCH].tolist())
            flat = table["codes"].combine_chunks().flatten().to_numpy()
            side = int((len(flat) // len(table)) ** 0.5)
            codes = torch.from_numpy(flat.reshape(-1, side, side).copy())
            yield codes, torch.from_numpy(table["label"].to_numpy().copy()), table["key"].to_pylist()


PEERS: dict[str, type[Peer]] = {
    "memmap": Memmap,
    "tokenshard pack": Ours,
    "tokenshard context": OursContext,
    "torchdata nodes": Torchdata,
    "grain": Grain,
    "litdata": LitData,
    "mosaicml streaming": Mds,
    "webdataset": WebDataset,
    "hf arrow": HfArrow,
    "hf streaming": HfStreaming,
    "lance": Lance,
}
