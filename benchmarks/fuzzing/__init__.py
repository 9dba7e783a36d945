"""The mutations of benchmarks/fuzz.py."""

from pathlib import Path

DEFAULT_SETS = Path(__file__).parents[2] / "tests" / "golden" / "sets"

KINDS = (
    *("file", "stream", "file", "footer", "file", "model", "file", "manifest", "stream", "columns"),
    *("file", "stream", "file", "footer", "list", "stored stream", "file", "manifest", "values", "model"),
)
"""What mutation i damages: ``KINDS[i % 20]``. `file`: any file as it lies there. The others with fitting checksums:
`stream` and `model` as a codec gets them; `footer`, `manifest`, `columns` (bytes of any column chunk), `values` (sizes,
streams or lists of a shard written by a wrong writer), `stored stream`, and `list` (Parquet of shards or rejects) in a
dataset."""
