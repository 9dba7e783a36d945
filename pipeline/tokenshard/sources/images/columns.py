"""The user's columns of a table with images: how a plan holds them, and what samples carry of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import pyarrow as pa

from tokenshard.errors import SpecError
from tokenshard.sources.base import SourceColumn

MAX_CLASSES = 65_536
"""Class names of one label column; a column with more of them is metadata."""


class ClassNames:
    """Class names met while planning. Sorted, they are the values of a label column."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def add(self, names: Iterable[str | None]) -> None:
        if not self.too_many:
            self._names.update(name for name in names if name is not None)

    @property
    def too_many(self) -> bool:
        return len(self._names) > MAX_CLASSES

    def column(self, name: str) -> SourceColumn:
        """The label column of these names (int64); of too many of them, a metadata column of text."""
        if self.too_many:
            return SourceColumn(name, pa.string(), "metadata")
        return SourceColumn(name, pa.int64(), "label", tuple(sorted(self._names)))


class CarriedColumns:
    """Columns of a table that go along with its images: Arrow types as they came.

    The label column is special: text becomes class names, integers become int64. ``class_names``: those of integer
    columns that the file itself declares.
    """

    def __init__(
        self,
        schema: pa.Schema,
        without: Collection[str],
        label: str | None,
        class_names: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self._label = label
        self._declared = dict(class_names or {})
        self._classes = ClassNames()
        self.fields = [
            pa.field(column.name, _label_type(column.type) if column.name == label else column.type)
            for column in schema
            if column.name not in without
        ]

    @property
    def text_labels(self) -> tuple[str, ...]:
        """Label columns that are planned as text."""
        return tuple(field.name for field in self.fields if field.name == self._label and is_text(field.type))

    def arrays(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """The columns of a batch, as planned."""
        arrays = [batch.column(field.name).cast(field.type) for field in self.fields]
        for field, array in zip(self.fields, arrays, strict=True):
            if field.name in self.text_labels:
                self._classes.add(array.unique().to_pylist())
        return arrays

    def columns(self) -> list[SourceColumn]:
        """What samples carry; complete when all batches went through :meth:`arrays`."""
        return [self._column(field) for field in self.fields]

    def _column(self, field: pa.Field) -> SourceColumn:
        if field.name in self.text_labels:
            return self._classes.column(field.name)
        declared = self._declared.get(field.name)
        role = "label" if field.name == self._label or declared is not None else "metadata"
        return SourceColumn(field.name, field.type, role, declared)


def label_column(labels: str, schema: pa.Schema, where: str, usual: Iterable[str] = ("label",)) -> str | None:
    """The label column that the option ``labels`` names; with ``auto`` the first of the usual ones there is."""
    if labels == "none":
        return None
    if labels == "auto":
        return next((name for name in usual if name in schema.names), None)
    if labels not in schema.names:
        raise SpecError(f"{where}: no column {labels!r} for labels; it has {', '.join(schema.names)}")
    return labels


def is_text(kind: pa.DataType) -> bool:
    """Whether values are strings, plain or dictionary-encoded."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value))


def _label_type(kind: pa.DataType) -> pa.DataType:
    if is_text(kind):
        return pa.string()
    return pa.int64() if pa.types.is_integer(kind) and kind != pa.uint64() else kind
