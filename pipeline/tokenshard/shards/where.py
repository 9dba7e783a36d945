"""Predicates on the columns of a dataset: ``label < 10 and split == 'train'`` -> the rows that hold.

Written as Python comparisons and parsed as such, but never run: only names of columns, literals, comparisons, `in`,
`is None`, `and`, `or`, `not` are known. Row groups whose statistics rule a match out are not read.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokenshard.errors import SpecError

Bounds = tuple[Any, Any]
"""(least, greatest) value of a column in a row group."""
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_SWAPPED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}


@dataclass(frozen=True)
class Where:
    """A parsed predicate. A comparison with an empty cell does not hold, nor does its negation."""

    text: str
    columns: tuple[str, ...]
    """columns it looks at"""
    tree: ast.expr

    @classmethod
    def parse(cls, text: str, schema: pa.Schema) -> Where:
        """Raises SpecError that shows what is wrong and what is known."""
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise SpecError(f"where={text!r}: {getattr(error, 'msg', error)}; write e.g. label < 10") from error
        names = tuple(sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}))
        for name in names:
            if name not in schema.names:
                raise SpecError(f"where={text!r}: no column {name!r}; there are {', '.join(schema.names)}")
        where = cls(text, names, tree)
        empty = schema.empty_table().select(list(names))
        try:
            where.mask(empty)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise SpecError(f"where={text!r}: {error}") from error
        return where

    def mask(self, table: pa.Table) -> NDArray[np.bool_]:
        """Which rows of a table with these columns hold, bool [rows]."""
        marked = table.append_column("", pa.array(np.arange(table.num_rows)))
        kept = marked.filter(self._expression(self.tree))[""]
        mask = np.zeros(table.num_rows, np.bool_)
        mask[kept.to_numpy()] = True
        return mask

    def may_hold(self, bounds: Mapping[str, Bounds]) -> bool:
        """False where no row can hold, going by the least and greatest values of some columns."""
        return self._possible(self.tree, bounds)

    # -- Arrow expression ---------------------------------------------------------------------------------------------

    def _expression(self, node: ast.expr) -> pc.Expression:
        match node:
            case ast.BoolOp(op=ast.And()):
                return reduce(operator.and_, map(self._expression, node.values))
            case ast.BoolOp():
                return reduce(operator.or_, map(self._expression, node.values))
            case ast.UnaryOp(op=ast.Not()):
                return ~self._expression(node.operand)
            case ast.Compare():
                values = [node.left, *node.comparators]
                pairs = zip(values[:-1], node.ops, values[1:], strict=True)
                return reduce(operator.and_, (self._comparison(left, op, right) for left, op, right in pairs))
            case ast.Name():
                return pc.field(node.id)
        raise self._unknown(node)

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._unknown(right)
            empty = self._operand(left).is_null()
            return empty if isinstance(op, ast.Is) else ~empty
        if isinstance(op, ast.In | ast.NotIn):
            found = self._operand(left).isin(self._literals(right))
            return found if isinstance(op, ast.In) else ~found
        return _COMPARE[type(op)](self._operand(left), self._operand(right))

    def _operand(self, node: ast.expr) -> pc.Expression:
        if isinstance(node, ast.Name):
            return pc.field(node.id)
        return pc.scalar(self._literal(node))

    def _literal(self, node: ast.expr) -> Any:
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise self._unknown(node) from None
        if not isinstance(value, bool | int | float | str | bytes):
            raise self._unknown(node)
        return value

    def _literals(self, node: ast.expr) -> list[Any]:
        if not isinstance(node, ast.List | ast.Tuple | ast.Set):
            raise self._unknown(node)
        return [self._literal(item) for item in node.elts]

    def _unknown(self, node: ast.expr) -> SpecError:
        part = ast.unparse(node)
        return SpecError(
            f"where={self.text!r}: {part} cannot be used; "
            "known are columns, numbers, strings, comparisons, in [...], is None, and, or, not"
        )

    # -- bounds -------------------------------------------------------------------------------------------------------

    def _possible(self, node: ast.expr, bounds: Mapping[str, Bounds]) -> bool:
        """Whether some value within the bounds may make it hold; True where that is not known."""
        match node:
            case ast.BoolOp(op=ast.And()):
                return all(self._possible(value, bounds) for value in node.values)
            case ast.BoolOp():
                return any(self._possible(value, bounds) for value in node.values)
            case ast.Compare():
                values = [node.left, *node.comparators]
                pairs = zip(values[:-1], node.ops, values[1:], strict=True)
                return all(self._may_compare(left, op, right, bounds) for left, op, right in pairs)
        return True

    def _may_compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr, bounds: Mapping[str, Bounds]) -> bool:
        if isinstance(right, ast.Name) and type(op) in (*_SWAPPED, ast.Eq):
            left, right, op = right, left, _SWAPPED.get(type(op), ast.Eq)()
        known = bounds.get(left.id) if isinstance(left, ast.Name) else None
        if known is None or isinstance(right, ast.Name):
            return True
        try:
            match op:
                case ast.Eq():
                    return bool(known[0] <= self._literal(right) <= known[1])
                case ast.In():
                    return any(known[0] <= value <= known[1] for value in self._literals(right))
                case ast.Lt() | ast.LtE():
                    return bool(_COMPARE[type(op)](known[0], self._literal(right)))
                case ast.Gt() | ast.GtE():
                    return bool(_COMPARE[type(op)](known[1], self._literal(right)))
        except TypeError:  # values that cannot be compared: Arrow has the last word
            return True
        return True


def bounds_of(group: pq.RowGroupMetaData, columns: Sequence[str]) -> dict[str, Bounds]:
    """Bounds of some columns of a row group, as far as its statistics say them."""
    bounds: dict[str, Bounds] = {}
    for index in range(group.num_columns):
        column = group.column(index)
        statistics = column.statistics if column.path_in_schema in columns else None
        if statistics is not None and statistics.has_min_max:
            bounds[column.path_in_schema] = statistics.min, statistics.max
    return bounds
