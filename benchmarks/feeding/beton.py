"""FFCV's `.beton` files. It needs a build by hand: see the head of `benchmarks/loader.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from feeding.peer import BATCH, Made, Peer
from feeding.tokens import Tokens


class Ffcv(Peer):
    """One thread, random order, pages from the cache of the system.

    Ids are stored as int16 and read as uint16, as its documentation advises; keys are arrays of bytes of one width, so
    that strings are made of a whole batch at once.
    """

    def write(self, raw: Path) -> None:
        from ffcv.fields import IntField, NDArrayField
        from ffcv.writer import DatasetWriter

        tokens = Tokens.load(raw)
        fields = {
            "codes": NDArrayField(np.dtype("int16"), tokens.codes.shape[1:]),
            "label": IntField(),
            "key": NDArrayField(np.dtype("uint8"), (tokens.keys.itemsize,)),
        }
        writer = DatasetWriter(str(self.folder / "set.beton"), fields, page_size=1 << 21, num_workers=1)
        writer.from_indexed_dataset(_Rows(tokens))

    def open(self) -> Any:
        from ffcv.fields.decoders import IntDecoder, NDArrayDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import Squeeze, ToTensor

        pipelines = {
            "codes": [NDArrayDecoder(), ToTensor()],
            "label": [IntDecoder(), ToTensor(), Squeeze(1)],
            "key": [NDArrayDecoder(), ToTensor()],
        }
        options = {"num_workers": 1, "os_cache": True, "seed": 0, "drop_last": False}
        return Loader(str(self.folder / "set.beton"), BATCH, order=OrderOption.RANDOM, pipelines=pipelines, **options)

    def made(self, batch: Any) -> Made:
        codes, labels, keys = batch
        text = keys.numpy().view(f"S{keys.shape[1]}")[:, 0].astype(str).tolist()
        return codes.view(torch.uint16), labels, text


class _Rows:
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens.codes)

    def __getitem__(self, n: int) -> tuple[Any, int, Any]:
        key = np.frombuffer(self._tokens.keys[n].ljust(self._tokens.keys.itemsize, b"\0"), np.uint8)
        return self._tokens.codes[n].view(np.int16), int(self._tokens.labels[n]), key
