"""Cells that are coded together with tokens: smaller than alone, within their bound, and never decoded with others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grids.converting import convert_grids, decoder
from integration.command import command_here
from sources.grids.making import terrain, write_netcdf
from tokenshard.errors import FormatError, SpecError
from tokenshard.grids.bounded import decode_tile, encode_tile
from tokenshard.grids.bounded.stream import GUIDED, VERSION
from tokenshard.shards.verify import verify
from tokenshard.store import Store

FIELD = terrain(128, 128, 2)
NEAR = FIELD + np.random.default_rng(0).normal(0, 30, FIELD.shape)


@pytest.mark.parametrize("bound", ["abs:5", "abs:40", "lossless"])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_a_good_guide_makes_streams_smaller_and_keeps_their_bound(bound: str, dtype: str) -> None:
    z = np.rint(FIELD).astype(dtype)
    valid = np.ones(z.shape, bool)
    valid[20:50, 30:70] = False
    alone, guided = encode_tile(z, bound, valid=valid), encode_tile(z, bound, valid=valid, guide=NEAR)
    assert (alone.stream[0], guided.stream[0]) == (VERSION, GUIDED)
    assert len(guided.stream) < len(alone.stream)
    found, there = decode_tile(guided.stream, z.shape, guide=NEAR)
    assert np.array_equal(there, valid)
    most = 0.0 if bound == "lossless" else float(bound[4:])
    assert np.abs(found.astype(np.float64) - z)[valid].max() <= most


def test_a_useless_guide_costs_nothing() -> None:
    z = FIELD.astype(np.float32)
    guide = np.random.default_rng(1).normal(0, 1e9, z.shape)
    guide[3:5] = np.nan
    assert len(encode_tile(z, "abs:5", guide=guide).stream) <= len(encode_tile(z, "abs:5").stream)


def test_uncertainty_ladders_and_bit_patterns_follow_no_guide() -> None:
    assert encode_tile(FIELD.astype(np.float32), "tvu:1a,0.5", guide=NEAR).stream[0] == VERSION
    assert encode_tile(FIELD, "lossless", guide=NEAR).stream[0] == VERSION


def test_a_guided_dataset_is_rewritten_with_its_ids_as_they_are(tmp_path: Path) -> None:
    """Another codec leaves cells as they were; ids that cells were coded with cannot be changed under them."""
    values = np.rint(terrain(64, 96, 3)).astype(np.int16)
    write_netcdf(tmp_path / "a.nc", values, np.linspace(10, 20, 96), np.linspace(30, 38, 64))
    job = {"tokenizer": "grid:8x8,k=64,step=8", "guided": True}
    convert_grids(tmp_path / "a.nc", tmp_path / "o", "abs:5", tile=32, levels=(1, 2), job=job)
    before = [band_of(tmp_path / "o", level) for level in (1, 2)]
    for name, words in {"zstd": ["--codec", "zstd"], "used": ["--used-codes"]}.items():
        done = command_here("transcode", str(tmp_path / "o"), str(tmp_path / name), *words)
        assert done.returncode == 0, done.stderr
        streams = decoder(tmp_path / name).dataset.dataset.table(["stream"])["stream"].to_pylist()
        assert any(stream[0] == GUIDED for stream in streams)
        assert verify(Store(tmp_path / name), deep=True).ok
        for level, found in enumerate(before, 1):
            assert np.array_equal(band_of(tmp_path / name, level), found)
    for words in (["--levels", "2"], ["--codebook-size", "16"]):
        done = command_here("transcode", str(tmp_path / "o"), str(tmp_path / "fewer"), *words)
        assert done.returncode != 0
        assert "belong to its ids as they are" in done.stderr
    done = command_here("transcode", str(tmp_path / "o"), str(tmp_path / "bare"), "--drop", "stream")
    assert done.returncode == 0, done.stderr
    with pytest.raises(SpecError, match="rewritten without the column 'stream'"):
        band_of(tmp_path / "bare", 1)


def band_of(out: Path, level: int) -> np.ndarray:
    found = decoder(out, level=level)
    (cells,) = found.read(found.reference.whole, found.bands(["elevation"]))
    return cells


def test_another_guide_is_told_apart() -> None:
    stream = encode_tile(FIELD.astype(np.float32), "abs:5", guide=NEAR).stream
    with pytest.raises(FormatError, match="coded together with its tokens"):
        decode_tile(stream)
    with pytest.raises(FormatError, match="not those that its cells were coded with"):
        decode_tile(stream, guide=NEAR + 40)
    with pytest.raises(FormatError, match="coded together with its tokens"):
        decode_tile(stream, guide=NEAR[:-1])


def test_a_guided_dataset_decodes_from_its_rows_and_is_smaller(tmp_path: Path) -> None:
    values = np.rint(terrain(96, 128, 3)).astype(np.int16)
    write_netcdf(tmp_path / "a.nc", values, np.linspace(10, 20, 128), np.linspace(30, 38, 96))
    sizes = {}
    for guided in (False, True):
        out = tmp_path / f"guided-{guided}"
        job = {"tokenizer": "grid:8x8,k=64,step=8", "guided": guided}
        convert_grids(tmp_path / "a.nc", out, "abs:5", tile=64, levels=(1, 2), job=job)
        assert verify(Store(out), deep=True).ok
        for level in (1, 2):
            found = decoder(out, level=level)
            (decoded,) = found.read(found.reference.whole, found.bands(["elevation"]))
            if level == 1:
                assert np.abs(decoded.astype(int) - values).max() <= 5
        streams = decoder(out).dataset.dataset.table(["stream"])["stream"].to_pylist()
        sizes[guided] = sum(map(len, streams))
        assert any(stream[0] == GUIDED for stream in streams) == guided
    assert sizes[True] < sizes[False]
