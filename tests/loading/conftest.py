"""Datasets with small row groups, so that few samples make many blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shards.conftest import Rows, token_rows, write_dataset
from tokenshard.shards.dataset import Dataset, open_dataset


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Dataset, list[Rows]]]:
    """Makes (once for equal arguments) a dataset of shards with so many rows each; the rest goes to `token_rows`."""
    made: dict[str, tuple[Dataset, list[Rows]]] = {}

    def make(*counts: int, **options: object) -> tuple[Dataset, list[Rows]]:
        name = repr((counts, sorted(options.items())))
        if name not in made:
            starts = [sum(counts[:n]) for n in range(len(counts))]
            rows = [token_rows(count, first=first, **options) for count, first in zip(counts, starts, strict=True)]  # type: ignore[arg-type]
            folder: Path = tmp_path_factory.mktemp("tokens") / "set"
            made[name] = open_dataset(write_dataset(folder, rows, row_group_bytes=1).root), rows
        return made[name]

    return make
