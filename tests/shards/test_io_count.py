"""What reading costs in requests to an object store: one a row group, one more for a shard that is opened by another
than its last row group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokenshard.shards.cache import Cache
from tokenshard.shards.dataset import open_dataset
from tokenshard.store import Store

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("codecs", [("pack",), ("zstd", "pack", "zstd"), ("context", "pack")])
def test_a_row_group_is_one_request_and_a_cold_shard_one_more(
    make_rows, make_dataset, s3_url, flaky_s3, codecs: tuple[str, ...]
) -> None:
    rows = [make_rows(300, codecs=codecs, varied=True, first=first) for first in (0, 300)]
    local = make_dataset(*rows, row_group_bytes=2 << 10)
    for entry in local.list():
        Store(s3_url).put(entry.name, Path(local.url(entry.name)))
    server = flaky_s3([])
    ds = open_dataset(s3_url, {"endpoint_url": server.endpoint})
    groups = [group.rows for group in ds.manifest.shards[0].row_groups]
    assert len(groups) > 1
    models = len(ds.manifest.models) // len(rows)

    def requests(*numbers: int) -> int:
        before = server.requests
        ds.codes(numbers)
        return server.requests - before

    assert requests(0) == 2 + models
    assert requests(groups[0]) == 1
    assert requests(0, groups[0] - 1) == 0
    assert requests(300) == 2 + models
    assert requests(0, 300, groups[0]) == 0
    group = ds.num_row_groups - 1
    before = server.requests
    ds.read_group(group).decode()
    assert server.requests - before == 1


@pytest.mark.parametrize("cached", [False, True])
def test_shards_of_one_row_group_are_one_request_each_and_footers_stay(
    make_rows, make_dataset, s3_url, flaky_s3, tmp_path: Path, cached: bool
) -> None:
    rows = [make_rows(20, codecs=("pack", "pack"), first=first) for first in range(0, 200, 20)]
    local = make_dataset(*rows)
    for entry in local.list():
        Store(s3_url).put(entry.name, Path(local.url(entry.name)))
    server = flaky_s3([])
    options = {"endpoint_url": server.endpoint}
    for visit in range(2):
        ds = open_dataset(s3_url, options)
        ds = ds.cached(Cache(tmp_path / "cache")) if cached else ds
        assert ds.num_row_groups == len(rows)
        wanted = [open_dataset(local.root).read_group(group).decode() for group in range(len(rows))]
        for expected in (0 if visit and cached else len(rows), 0 if cached else len(rows)):
            before = server.requests
            read = [ds.read_group(group, columns=["key"]).decode() for group in range(len(rows))]
            assert all(np.array_equal(one, other) for one, other in zip(read, wanted, strict=True))
            assert server.requests - before == expected
        before = server.requests
        ds.read_group(0, levels=1)
        assert server.requests - before == 1
