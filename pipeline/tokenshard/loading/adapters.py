"""The same samples for other libraries: torch's DataLoader, Grain, Ray Data, Hugging Face `datasets`, plain NumPy.

`ts.loader` needs none of them; they are for training code that is built around one. Libraries are imported when asked
for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from tokenshard.errors import SpecError
from tokenshard.loading.blocks import is_fixed_width
from tokenshard.loading.decoding import CODES, Batch
from tokenshard.loading.loader import TokenLoader
from tokenshard.shards.dataset import Dataset

if TYPE_CHECKING:
    import datasets
    import ray.data

_TENSORS = {2: "Array2D", 3: "Array3D", 4: "Array4D", 5: "Array5D"}


class TorchBatches(IterableDataset[Batch]):
    """The batches of a loader for ``torch.utils.data.DataLoader(TorchBatches(loader), batch_size=None)``.

    With any number of workers the batches, and their order, are those of the loader: worker `w` of `n` hands out every
    `n`-th. State goes through torchdata's `StatefulDataLoader`; call `set_epoch` before each epoch, as workers
    do not tell the main process how far they are.
    """

    def __init__(self, loader: TokenLoader) -> None:
        self.loader = loader
        self._start, self._given, self._resumed = loader.state_dict(), 0, False

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self.loader.set_epoch(epoch)
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """Where this worker (or the process, without workers) is: where the epoch was entered, and batches since."""
        return {"loader": self._start, "given": self._given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly there, with the same number of workers. Raises SpecError for another dataset or order."""
        self.loader.load_state_dict(state["loader"])
        self._start, self._given, self._resumed = dict(state["loader"]), int(state["given"]), True

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        if not self._resumed:
            self._start, self._given = self.loader.state_dict(), 0
        self._resumed = False
        for batch in self.loader.every(index + self._given * workers, workers):
            self._given += 1
            yield batch


class Samples:
    """Samples by number, as NumPy arrays and Python values: a map-style dataset of torch, a data source of Grain.

    An item is a dict of the columns: `codes` uint16 [*grid] ([levels, *grid] for several levels), others as Python
    values. A list of numbers gives one dict with `codes` [n, *grid], numeric columns as arrays [n], others as lists:
    with ``DataLoader(samples, batch_size=None, sampler=loader.sample_numbers())`` the batches of a loader. Raises
    IndexError for a number that is none.
    """

    def __init__(self, dataset: Dataset, columns: Sequence[str] = (CODES,)) -> None:
        """Raises SpecError for unknown columns."""
        self.dataset, self.columns = dataset, _checked(dataset, columns)

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:  # Grain compares it before it resumes
        return f"Samples({self.dataset.fingerprint[:16]}, {', '.join(self.columns)})"

    def __getitem__(self, item: SupportsIndex | Sequence[int] | NDArray[np.integer[Any]]) -> dict[str, Any]:
        if isinstance(item, SupportsIndex) and not isinstance(item, np.ndarray):
            return self.__getitems__([item.__index__()])[0]
        rows = self.dataset.rows(item) if self._others else None
        return {name: self.dataset.codes(item) if name == CODES else _values(rows, name) for name in self.columns}

    def __getitems__(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Several samples, one dict each: what torch asks for to collate them itself. Raises IndexError."""
        rows = self.dataset.rows(ids).select(self._others).to_pylist() if self._others else [{} for _ in ids]
        if CODES in self.columns:
            for row, codes in zip(rows, self.dataset.codes(ids), strict=True):
                row[CODES] = codes
        return rows

    @property
    def _others(self) -> list[str]:
        return [name for name in self.columns if name != CODES]


def numpy_batches(loader: TokenLoader) -> Iterator[dict[str, Any]]:
    """The batches that are left of a loader's epoch, with NumPy arrays in place of tensors, not copied.

    Shapes, dtypes and errors are those of the loader.
    """
    for batch in loader:
        yield {name: value.numpy() if hasattr(value, "numpy") else value for name, value in batch.items()}


def to_ray(dataset: Dataset, columns: Sequence[str] = (CODES,)) -> ray.data.Dataset:
    """A dataset of Ray Data, read lazily, a row group a task. `codes` is a tensor column.

    Raises SpecError for unknown columns, and ImportError without Ray.
    """
    import ray.data

    names = _checked(dataset, columns)

    def read(groups: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
        tables = [dataset.group_table(group, [name for name in names if name != CODES]) for group in groups["id"]]
        table = pa.concat_tables(tables)
        parts = [dataset.group_codes(group) for group in groups["id"]] if CODES in names else []
        return {name: _joined(parts) if name == CODES else _array(table[name]) for name in names}

    groups = ray.data.range(dataset.num_row_groups, override_num_blocks=max(1, dataset.num_row_groups))
    return groups.map_batches(read, batch_size=1, batch_format="numpy")


def to_hf(dataset: Dataset, columns: Sequence[str] = (CODES,)) -> datasets.IterableDataset:
    """A streaming dataset of Hugging Face `datasets`, in the stored order, with a row group as its shard.

    So it shuffles row groups, splits by node and worker, and resumes as that library does. Raises SpecError for unknown
    columns, and ImportError without the library.
    """
    import datasets

    names = _checked(dataset, columns)
    others = [name for name in names if name != CODES]
    features = datasets.Features.from_arrow_schema(pa.schema([dataset.schema.field(name) for name in others]))
    if CODES in names:
        features[CODES] = _codes_feature(dataset)

    def rows(groups: list[int]) -> Iterator[dict[str, Any]]:
        for group in groups:
            found = dataset.group_table(group, others).to_pylist()
            codes = dataset.group_codes(group) if CODES in names else []
            for place in range(int(np.diff(dataset.group_starts)[group])):
                row = found[place] if others else {}
                yield {**row, CODES: codes[place]} if CODES in names else row

    groups = list(range(dataset.num_row_groups))
    return datasets.IterableDataset.from_generator(rows, features, gen_kwargs={"groups": groups})


def _codes_feature(dataset: Dataset) -> Any:
    import datasets

    code = dataset.manifest.code
    kind = "uint16" if max(level.alphabet for level in code.levels) <= 1 << 16 else "int32"
    axes = len(code.grid) + (len(code.levels) > 1)
    if dataset.fixed_grid is not None and axes > 1:
        shape = dataset.fixed_grid if len(code.levels) == 1 else (len(code.levels), *dataset.fixed_grid)
        return getattr(datasets, _TENSORS[axes])(shape=shape, dtype=kind)
    feature = datasets.Value(kind)
    for _ in range(axes):
        feature = datasets.List(feature)
    return feature


def _checked(dataset: Dataset, columns: Sequence[str]) -> tuple[str, ...]:
    known = [*dataset.schema.names, CODES]
    for name in columns:
        if name not in known:
            raise SpecError(f"{dataset.store.root}: no column {name!r}; there are {', '.join(known)}")
    return tuple(dict.fromkeys(columns))


def _joined(parts: Sequence[Any]) -> NDArray[Any]:
    """Codes of several row groups: one array, or one of arrays where the grid varies."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    samples = [sample for part in parts for sample in part]
    out = np.empty(len(samples), object)
    out[:] = samples
    return out


def _values(rows: pa.Table | None, name: str) -> Any:
    assert rows is not None
    column = rows[name]
    return _array(column) if is_fixed_width(column.type) and not column.null_count else column.to_pylist()


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    if is_fixed_width(column.type) and not column.null_count:
        return np.asarray(column.to_numpy())
    out = np.empty(len(column), object)
    out[:] = column.to_pylist()
    return out
