"""`transcode`: the ids of a dataset in other shards, byte for byte the same ids, however often it is interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import tokenshard
from engine.arrays import import_arrays
from integration.command import command_line, refused, tokenshard_command
from shards.conftest import token_rows, write_dataset
from tokenshard.cli.main import cli
from tokenshard.engine.convert import Conversion, Mode
from tokenshard.errors import JobError, SpecError
from tokenshard.shards.verify import verify
from tokenshard.spec.job import Transcode, build_job
from tokenshard.store import Store

pytestmark = pytest.mark.integration


def field(*shape: int, seed: int, alphabet: int = 64) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Codes whose neighbours resemble each other."""
    draw = np.random.default_rng(seed)
    smooth = draw.integers(-2, 3, shape).cumsum(axis=-1) + draw.integers(0, alphabet, (*shape[:-1], 1))
    return np.clip(np.abs(smooth), 0, alphabet - 1).astype(np.uint16)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 samples of three levels on 8 x 8 grids, in 5 shards and two versions, with columns of many types."""
    root = tmp_path_factory.mktemp("tokens")
    codes = [field(3, 8, 8, seed=number) for number in range(500)]
    options: dict[str, Any] = {"source": {"grid": (8, 8), "alphabet": 64}, "unit": {"samples": 110}}
    import_arrays(root, codes[:400], **options)
    import_arrays(root, codes[400:], Mode(append=True), 400, **options)
    return root / "tokens"


def transcode(src: Path | str, out: Path | str, mode: Mode | None = None, **fields: Any) -> Conversion:
    """Run in this process."""
    source = {"path": str(src), **fields.pop("source", {})}
    job = {"source": source, "output": str(out), "engine": {"kind": "local", "workers": 0}}
    return tokenshard.run(build_job(Transcode, {**job, **fields}), mode)


def command(*words: str) -> str:
    """What the command prints, run in this process."""
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def sound(out: Path | str) -> tokenshard.Dataset:
    report = verify(Store(out), deep=True)
    assert report.ok, report.errors
    return tokenshard.open(out)


def same_codes(a: tokenshard.Dataset, b: tokenshard.Dataset) -> bool:
    pairs = zip(a.codes(range(len(a))), b.codes(range(len(b))), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("codec", ["auto", "pack", "zstd", "context"])
def test_every_codec_keeps_ids_and_columns(codec: str, tokens: Path, tmp_path: Path) -> None:
    result = transcode(tokens, tmp_path / "out", codec=codec)
    before, after = tokenshard.open(tokens), sound(tmp_path / "out")
    assert (result.num_samples, result.num_units) == (500, 1)
    assert same_codes(before, after)
    assert after.table().equals(before.table())
    assert len(before.table().column_names) == 7
    for name in ("kind", "preprocess", "splits", "tokenizer"):
        assert getattr(after.manifest, name) == getattr(before.manifest, name), name
    users = [column for column in before.manifest.columns if column.role in {"label", "metadata"}]
    assert [column for column in after.manifest.columns if column.role in {"label", "metadata"}] == users
    assert users[0].names == ("cat", "dog", "fox")
    for name in ("samples", "ids", "raw_bytes"):
        assert getattr(after.manifest.totals, name) == getattr(before.manifest.totals, name)
    if codec != "auto":
        assert {column.codec for column in after.manifest.code.columns} == {codec}


def test_fewer_levels_are_the_first_ones(tokens: Path, tmp_path: Path) -> None:
    transcode(tokens, tmp_path / "two", source={"levels": 2})
    transcode(tmp_path / "two", tmp_path / "one", source={"levels": 1})
    before, two, one = tokenshard.open(tokens), sound(tmp_path / "two"), sound(tmp_path / "one")
    for number in (0, 123, 499):
        assert np.array_equal(two[number]["codes"], before[number]["codes"][:2])
        assert np.array_equal(one[number]["codes"], before[number]["codes"][0])
    assert one.manifest.totals.ids * 3 == before.manifest.totals.ids
    assert one.manifest.totals.token_bytes < 0.6 * before.manifest.totals.token_bytes
    with pytest.raises(SpecError, match="has 3 levels; levels must be 1 to 3, not 4"):
        transcode(tokens, tmp_path / "four", source={"levels": 4})


@pytest.mark.parametrize(
    ("unit", "shards"),
    [({"samples": 250}, [250, 250]), ({"samples": 37}, [37] * 13 + [19]), ({"samples": 1 << 20}, [500])],
    ids=["merge", "split", "one"],
)
def test_shards_are_merged_and_split(unit: dict[str, int], shards: list[int], tokens: Path, tmp_path: Path) -> None:
    transcode(tokens, tmp_path / "out", unit=unit)
    after = sound(tmp_path / "out")
    assert [shard.rows for shard in after.manifest.shards] == shards
    assert same_codes(tokenshard.open(tokens), after)


def test_units_are_cut_by_the_bytes_of_the_codes(tokens: Path, tmp_path: Path) -> None:
    before = tokenshard.open(tokens).manifest
    streams = sum(chunk.length for shard in before.shards for group in shard.row_groups for chunk in group.codes)
    transcode(tokens, tmp_path / "out", unit={"bytes": streams // 4})
    assert 4 <= len(tokenshard.open(tmp_path / "out").manifest.shards) <= 6


def test_keys_are_prefixed_or_taken_from_a_column(tokens: Path, tmp_path: Path) -> None:
    keys = tokenshard.open(tokens).table(["key"])["key"].to_pylist()
    transcode(tokens, tmp_path / "prefix", source={"keys": "prefix:a/"})
    assert sound(tmp_path / "prefix").table(["key"])["key"].to_pylist() == [f"a/{key}" for key in keys]
    transcode(tokens, tmp_path / "column", source={"keys": "column:serial"})
    found = sound(tmp_path / "column").table(["key", "serial"])
    assert found["key"].to_pylist() == [str(value) for value in found["serial"].to_pylist()]
    for column, message in (
        ("split", "'train' occurs twice in column 'split'"),
        ("taken", "is timestamp"),
        ("tags", "is list"),
        ("codes_0", "no column 'codes_0' to take keys from"),
        ("name", "no column 'name' to take keys from"),
    ):
        with pytest.raises(SpecError, match=message):
            transcode(tokens, tmp_path / "no", source={"keys": f"column:{column}"})


def test_columns_are_kept_or_left_out(tokens: Path, tmp_path: Path) -> None:
    transcode(tokens, tmp_path / "kept", source={"columns": ["tags", "label"]})
    assert sound(tmp_path / "kept").table().column_names == ["key", "num_tokens", "label", "tags"]
    transcode(tokens, tmp_path / "left", source={"drop": ["tags", "split", "taken"]})
    assert sound(tmp_path / "left").table().column_names == ["key", "num_tokens", "label", "serial"]
    assert tokenshard.open(tmp_path / "left").manifest.splits == {}
    with pytest.raises(SpecError, match="no label or metadata column 'tag'; it has label, split, tags, serial, taken"):
        transcode(tokens, tmp_path / "no", source={"drop": ["tag"]})
    with pytest.raises(SpecError, match="exclude each other"):
        transcode(tokens, tmp_path / "no", source={"drop": ["tags"], "columns": ["label"]})


@pytest.mark.parametrize("shape", [(1, 0), (2, 0, 9), (1, 2, 0, 9)], ids=["rank 1", "rank 2", "rank 3"])
def test_ragged_samples_of_any_rank(shape: tuple[int, ...], tmp_path: Path) -> None:
    codes = [field(*(dim or 1 + number % 11 for dim in shape), seed=number) for number in range(150)]
    import_arrays(tmp_path, codes, source={"alphabet": 64}, unit={"samples": 40})
    transcode(tmp_path / "tokens", tmp_path / "out", codec="context")
    after = sound(tmp_path / "out")
    assert None in after.manifest.code.grid
    for number, expected in enumerate(codes):
        assert np.array_equal(after[number]["codes"], expected if len(expected) > 1 else expected[0])


def test_images_stay_images(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(20):
        pixels = field(16 + number, 30, 3, seed=number, alphabet=256).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02d}.png")
    (tmp_path / "photos" / "cut.png").write_bytes(b"")
    local: dict[str, Any] = {"max_rejects": 0.6, "engine": {"kind": "local", "workers": 0}}
    tokenshard.convert_images(tmp_path / "photos", tmp_path / "tokens", "patch:4x4,k=32", **local)
    words = ["transcode", str(tmp_path / "tokens"), str(tmp_path / "out"), "--workers", "0", "--codec", "zstd"]
    printed = json.loads(command(*words, "--quiet", "--json"))
    assert {"num_samples", "num_rejects", "seconds", "fingerprint"} <= printed.keys()
    for name in ("info", "stats"):
        (level,) = json.loads(command(name, str(tmp_path / "out"), "--json"))["levels"]
        assert (level["codec"], level["log2_alphabet"]) == ("zstd", 5)
        assert f"{level['bits_per_token']:.4g}" in command(name, str(tmp_path / "out"))
    before, after = tokenshard.open(tmp_path / "tokens"), sound(tmp_path / "out")
    assert same_codes(before, after)
    assert after.table().equals(before.table())
    assert after.manifest.preprocess == before.manifest.preprocess
    assert after.tokenizer_files() == before.tokenizer_files()
    assert after.manifest.totals.rejects == 0
    assert after.manifest.source["dataset"] == {
        "version": 1,
        "fingerprint": before.fingerprint,
        "levels": 1,
        "rejects": 1,
        "source": before.manifest.source,
    }
    shown = command("show", str(tmp_path / "out"), "--out", str(tmp_path / "grid.png"))
    assert "00.png  30 x 16 pixels, 32 ids" in shown
    # images of the same tokenizer can be appended to what was transcoded
    Image.new("RGB", (30, 16), (9, 9, 9)).save(tmp_path / "photos" / "new.png")
    more = tokenshard.convert_images(tmp_path / "photos", tmp_path / "out", mode=Mode(append=True), **local)
    assert more.num_samples == 21
    assert sound(tmp_path / "out")[20]["key"] == "new.png"


def test_what_a_dataset_gained_is_appended(tokens: Path, tmp_path: Path) -> None:
    transcode(tokens, tmp_path / "out", source={"version": 1})
    assert len(tokenshard.open(tmp_path / "out")) == 400
    with pytest.raises(SpecError, match=r"source.version: 1 there, 2 here"):
        transcode(tokens, tmp_path / "out", source={"version": 2})
    assert transcode(tokens, tmp_path / "out", Mode(append=True)).num_samples == 500
    after = sound(tmp_path / "out")
    assert after.manifest.version == 2
    assert same_codes(tokenshard.open(tokens), after)
    assert transcode(tokens, tmp_path / "out", Mode(append=True)).num_units == 0


def test_what_cannot_be_appended_leaves_the_dataset_open_for_what_can(tokens: Path, tmp_path: Path) -> None:
    transcode(tokens, tmp_path / "out", source={"version": 1})
    for source in ({"drop": ["tags"]}, {"levels": 2}):
        with pytest.raises(SpecError, match=r"different: tags|has alphabets"):
            transcode(tokens, tmp_path / "out", Mode(append=True), source=source)
    more = transcode(tokens, tmp_path / "out", Mode(append=True), source={"keys": "prefix:again/"})
    assert more.num_samples == 900
    assert sound(tmp_path / "out")[400]["key"] == "again/s00000"


def test_how_it_is_run_changes_nothing(tokens: Path, tmp_path: Path, s3_url: str, ray_address: str) -> None:
    alone = transcode(tokens, tmp_path / "alone", unit={"samples": 60}, engine={"kind": "local", "workers": 0})
    words = ["transcode", str(tokens), str(tmp_path / "two"), "--unit-samples", "60", "--json", "--quiet"]
    two = tokenshard_command(
        *words, "--engine", "local", "--workers", "2", "--batch-size", "7", "--decode-threads", "2"
    )
    assert json.loads(two.stdout)["fingerprint"] == alone.fingerprint
    cluster = {"kind": "ray", "address": ray_address, "workers": 2}
    assert transcode(tokens, tmp_path / "ray", unit={"samples": 60}, engine=cluster).fingerprint == alone.fingerprint
    source, bucket = Store(tokens), Store(s3_url)
    for entry in source.list():
        bucket.put(f"tokens/{entry.name}", source.read(entry.name))
    there = transcode(f"{s3_url}/tokens", f"{s3_url}/out", unit={"samples": 60})
    assert there.fingerprint == alone.fingerprint
    assert same_codes(tokenshard.open(tokens), sound(f"{s3_url}/out"))


def test_a_killed_driver_goes_on_where_it_was(tokens: Path, tmp_path: Path) -> None:
    undisturbed = transcode(tokens, tmp_path / "undisturbed", unit={"samples": 10})
    out = tmp_path / "out"
    words = command_line("transcode", str(tokens), str(out), "--unit-samples", "10", "--workers", "2", "--quiet")
    done: dict[str, int] = {}
    for wanted in (3, 12):
        with subprocess.Popen(words, stderr=subprocess.PIPE) as driver:
            end = time.monotonic() + 120
            while len(list((out / "data").glob("*"))) < wanted:
                assert driver.poll() is None, driver.stderr and driver.stderr.read()
                assert time.monotonic() < end
                threading.Event().wait(0.01)
            driver.send_signal(signal.SIGKILL)
        assert not (out / "manifest").exists()
        shards = {path.name: path.stat().st_mtime_ns for path in (out / "data").glob("*")}
        assert done.items() <= shards.items()
        done = shards
    subprocess.run(words, check=True)
    assert sound(out).fingerprint == undisturbed.fingerprint
    assert done.items() <= {path.name: path.stat().st_mtime_ns for path in (out / "data").glob("*")}.items()


def test_a_damaged_or_missing_shard_stops_the_job_until_it_is_restored(tokens: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tokens"
    subprocess.run(["cp", "-r", str(tokens), str(copy)], check=True)
    shard = tokenshard.open(copy).manifest.shards[2]
    path, content = copy / shard.path, (copy / shard.path).read_bytes()
    damaged = bytearray(content)
    damaged[shard.row_groups[0].codes[1].offset + 40] ^= 1
    path.write_bytes(damaged)
    for generous in (0, 1):
        with pytest.raises(JobError, match=rf"{shard.path}: row group 0 .*codes_1 damaged \(checksum differs\)"):
            transcode(copy, tmp_path / "out", unit={"samples": 50}, max_rejects=generous)
    assert not (tmp_path / "out" / "manifest").exists()
    # levels that are not read do not matter
    transcode(copy, tmp_path / "coarse", source={"levels": 1})
    path.write_bytes(content)
    assert transcode(copy, tmp_path / "out", unit={"samples": 50}).num_samples == 500
    path.unlink()
    line = refused("transcode", str(copy), str(tmp_path / "none"), "--quiet")
    assert shard.path in line
    assert "the file is missing" in line


def test_a_dataset_is_not_rewritten_in_place(tokens: Path, tmp_path: Path) -> None:
    before = sorted(tokens.rglob("*"))
    with pytest.raises(SpecError, match="is source and output at once"):
        transcode(tokens, f"{tokens}/", Mode(overwrite=True))
    assert sorted(tokens.rglob("*")) == before
    assert "no token dataset here" in refused("transcode", str(tmp_path), str(tmp_path / "out"), "--quiet", code=2)


def test_packed_bytes_beside_the_ids_travel_with_them_and_stay_packed(tmp_path: Path) -> None:
    rows = token_rows(100, stream=20)
    write_dataset(tmp_path / "tokens", [rows])
    moved = transcode(tmp_path / "tokens", tmp_path / "moved", codec="pack")
    dataset = tokenshard.open(moved.output)
    assert {column.role for column in dataset.manifest.columns if column.name == "residual"} == {"stream"}
    assert dataset.table(["residual"])["residual"].equals(rows.batch.columns["residual"])
    with pytest.raises(SpecError, match="residual belong to its ids as they are"):
        transcode(tmp_path / "tokens", tmp_path / "fewer", source={"codebook_size": 4})
