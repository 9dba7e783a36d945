"""Tables keep their types, stream, and say where they are broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshard.errors import SpecError
from tokenshard.sources.images.tables import open_table
from tokenshard.store import Store


def table(folder: Path, name: str, content: str | bytes) -> pa.Table:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    file = open_table(Store(folder), name)
    return pa.Table.from_batches(list(file.batches()), schema=file.schema)


def columns(folder: Path, text: str) -> dict[str, tuple[str, list[Any]]]:
    result = table(folder, "t.csv", text)
    return {name: (str(result[name].type), result[name].to_pylist()) for name in result.schema.names}


def test_csv_columns_are_numbers_only_where_nothing_is_lost(tmp_path: Path) -> None:
    result = columns(
        tmp_path,
        "i,f,b,zip,long,text,gaps\n1,1.5,true,02134,12345678901234567890,x,\n-2,2,False,94110,1,5,7\n",
    )
    assert result == {
        "i": ("int64", [1, -2]),
        "f": ("double", [1.5, 2.0]),
        "b": ("bool", [True, False]),
        "zip": ("string", ["02134", "94110"]),
        "long": ("string", ["12345678901234567890", "1"]),
        "text": ("string", ["x", "5"]),
        "gaps": ("int64", [None, 7]),
    }


def test_a_type_holds_for_all_rows_however_late_it_shows(tmp_path: Path) -> None:
    rows = "".join(f"{number},{number},{number}\n" for number in range(25_000))
    result = table(tmp_path, "t.csv", f"a,b,c\n{rows}0.5,n/a,1\n")
    assert [str(kind) for kind in result.schema.types] == ["double", "string", "int64"]
    assert result.num_rows == 25_001
    assert result["b"][0].as_py() == "0"


def test_quotes_line_breaks_and_byte_order_marks_are_understood(tmp_path: Path) -> None:
    assert columns(tmp_path, '\ufeffa,b\r\n"x, ""y""\nz",ü\r\n\r\n') == {
        "a": ("string", ['x, "y"\nz']),
        "b": ("string", ["ü"]),
    }
    assert table(tmp_path, "t.tsv", "a\tb\n1,5\tx\n").to_pylist() == [{"a": "1,5", "b": "x"}]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)), min_size=1)
)
def test_numbers_survive_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float]]) -> None:
    folder = tmp_path_factory.mktemp("csv")
    result = table(folder, "t.csv", "i,f\n" + "".join(f"{i},{f!r}\n" for i, f in rows))
    assert result["i"].to_pylist() == [i for i, _ in rows]
    assert [float(f) for f in result["f"].to_pylist()] == [f for _, f in rows]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "a,b\n1,2\n1,2,3\n", "t.csv:3: 3 values in a table of 2 columns"),
        ("t.csv", "a,a\n1,2\n", "different column names"),
        ("t.csv", "", "expected a header"),
        ("t.csv", "a,b\ncaf\xe9,1\n".encode("latin-1"), "not UTF-8"),
        ("t.csv", 'a,b\n"open,1\n', "not a readable csv table"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', "t.jsonl:2: not JSON"),
        ("t.jsonl", '{"a": 1}\n[1]\n', "t.jsonl:2: expected a JSON object a line"),
        ("t.parquet", "PAR1 not really", "not a readable parquet table"),
    ],
)
def test_a_broken_table_is_one_error_with_its_place(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        table(tmp_path, name, content)


def test_json_lines_get_the_common_type_of_all_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"i": 1, "f": 1, "mixed": 1, "nested": {"a": 1}, "list": [1, 2], "never": None},
        {"i": 2, "f": 0.5, "mixed": "x", "nested": {"b": "y"}, "late": True},
    ]
    result = table(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert {field.name: str(field.type) for field in result.schema} == {
        "i": "int64",
        "f": "double",
        "mixed": "string",
        "nested": "struct<a: int64, b: string>",
        "list": "list<item: int64>",
        "never": "string",
        "late": "bool",
    }
    assert result["mixed"].to_pylist() == ["1", "x"]
    assert result["nested"].to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": "y"}]


def test_parquet_types_stay_as_they_are(tmp_path: Path) -> None:
    wanted = pa.table(
        {
            "t": pa.array([1, None], pa.timestamp("ns", "UTC")),
            "small": pa.array([1, 2], pa.int8()),
            "category": pa.array(["a", "b"]).dictionary_encode(),
            "vector": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        }
    )
    pq.write_table(wanted, tmp_path / "t.parquet")
    file = open_table(Store(tmp_path), "t.parquet")
    assert pa.Table.from_batches(list(file.batches())).equals(wanted)
