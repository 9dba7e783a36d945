"""Token shards, each codec."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tokenshard as ts
from feeding.peer import BATCH, Made, Peer
from tokenshard.codecs.context import ContextCodec
from tokenshard.spec.job import Import, build_job

COLUMNS = ("codes", "label", "key")


class Pack(Peer):
    """One thread, whatever the machine has."""

    codec = "pack"

    def write(self, raw: Path) -> None:
        source = {"path": str(raw), "format": "npy", "alphabet": 1024}
        job = {"source": source, "output": str(self.folder / "tokens"), "codec": self.codec}
        ts.run(build_job(Import, {**job, "engine": {"kind": "local", "workers": 0}}))

    def open(self) -> Any:
        return ts.loader(self.folder / "tokens", BATCH, True, 1, COLUMNS, threads=1)

    def made(self, batch: Any) -> Made:
        return batch["codes"], batch["label"], batch["key"]

    def sample(self) -> Callable[[int], Any]:
        return ts.open(self.folder / "tokens").__getitem__


class Context(Pack):
    codec = "context"


class Order0(Context):
    """One table a step of the `context` codec.

    No job can ask for it: a pilot finds out by itself whether contexts pay, and here they do. So the fit is told not to
    look, in the process that writes.
    """

    def write(self, raw: Path) -> None:
        ContextCodec.fit = partial(ContextCodec.fit, contexts="none")  # type: ignore[method-assign]
        super().write(raw)
