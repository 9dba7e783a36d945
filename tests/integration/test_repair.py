"""`verify --repair`: a new version with what could be restored, filled or only counted as lost, and all of it said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from click.testing import CliRunner
from PIL import Image

import tokenshard
from engine.arrays import import_arrays
from tokenshard.cli.main import cli
from tokenshard.engine.convert import Mode
from tokenshard.engine.repair import Repair, repair
from tokenshard.errors import FormatError, JobError
from tokenshard.quantizers.lookup import Lookup
from tokenshard.report.quality import psnr
from tokenshard.shards.manifest import read_manifest
from tokenshard.shards.rejects import read_rejects
from tokenshard.shards.verify import verify
from tokenshard.spec.manifest import ShardEntry
from tokenshard.store import Store
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import AutoEncoder, NetworkConfig, StackConfig
from tokenshard.tokenizers.folder import save_tokenizer
from tokenshard.tokenizers.trained import ConvConfig

pytestmark = pytest.mark.integration
LOCAL: dict[str, Any] = {"engine": {"kind": "local", "workers": 0}}
SECTOR = 512
COUNT = 6
KEYS = [f"{folder}/{number}.png" for folder, first in (("cup", 0), ("table", 1)) for number in range(first, COUNT, 2)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tiles of 320 x 240 pixels in two classes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        tile = skimage.data.coffee()[30 * number :][:240, 30 * number :][:, :320]
        path = folder / ("cup", "table")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(tile).save(path)
    return folder


@pytest.fixture(scope="module")
def intact(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The dataset with one codec: 60 x 80 ids of 256 codes an image, a row group of six images, one shard."""
    root, made = tmp_path_factory.mktemp("intact"), {}

    def make(codec: str) -> Path:
        if codec not in made:
            made[codec] = root / codec
            tokenshard.convert_images(photos, made[codec], "patch:4x4,k=256", codec=codec, **LOCAL)
        return made[codec]

    return make


@pytest.fixture
def tokens(intact: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of it to do damage to."""

    def copy(codec: str = "context") -> Path:
        shutil.copytree(intact(codec), tmp_path / "tokens")
        return tmp_path / "tokens"

    return copy


def shard_of(root: Path) -> ShardEntry:
    return read_manifest(Store(root), 1).shards[0]


def overwrite(root: Path, start: int, content: bytes) -> None:
    path = root / shard_of(root).path
    data = bytearray(path.read_bytes())
    data[start : start + len(content)] = content
    path.write_bytes(data)


def garbage(length: int) -> bytes:
    return np.random.default_rng(0).integers(1, 256, length).astype(np.uint8).tobytes()


def sound(root: Path) -> Any:
    report = verify(Store(root), deep=True)
    assert report.ok, report.errors
    return tokenshard.open(root)


def repaired(root: Path) -> tuple[Repair, Any]:
    """What repair did, and the new version; the damaged file is as it was."""
    damaged = {path: path.read_bytes() for path in root.rglob("*.*") if path.is_file()}
    done = repair(Store(root))
    assert all(path.read_bytes() == content for path, content in damaged.items())
    ds = sound(root)
    assert ds.manifest.version == done.version == 2
    assert ds.manifest.parent == 1
    assert ds.manifest.source["repair"] == list(done.lines)
    return done, ds


def stream(root: Path, row: int) -> tuple[int, int]:
    """Where the stream of a row begins and ends in the file."""
    chunk = shard_of(root).row_groups[0].codes[0]
    lengths = tokenshard.open(root, version=1).read_group(0).lengths[0]
    assert lengths is not None
    end = chunk.offset + int(lengths[: row + 1].sum())
    return end - int(lengths[row]), end


@pytest.mark.parametrize("codec", ["context", "pack", "zstd"])
def test_a_wrong_byte_is_put_right_and_the_file_is_the_committed_one_again(codec: str, tokens) -> None:
    root = tokens(codec)
    shard, before = shard_of(root), tokenshard.open(root).codes(range(COUNT))
    place = shard.row_groups[0].codes[0].offset + 700
    overwrite(root, place, bytes([(root / shard.path).read_bytes()[place] ^ 8]))
    done, ds = repaired(root)
    assert (done.restored_bytes, done.filled_ids, done.lost_samples) == (1, 0, 0)
    assert done.lines == (f"{shard.path}: restored exactly: 1 wrong bytes at {place}",)
    assert np.array_equal(ds.codes(range(COUNT)), before)
    assert ds.manifest.shards[0].sha256 == shard.sha256
    assert ds.manifest.shards[0].path != shard.path
    assert repair(Store(root)) == Repair(None)


def test_a_hole_in_a_stream_leaves_what_is_before_it_and_the_rest_is_filled(tokens, photos: Path) -> None:
    root = tokens("context")
    before = tokenshard.open(root).codes(range(COUNT))
    start, end = stream(root, 3)
    hole = end // SECTOR * SECTOR - SECTOR
    assert (hole - start) / (end - start) > 0.6, "the hole must leave more than half of the row"
    overwrite(root, hole, bytes(SECTOR))
    done, ds = repaired(root)
    after = ds.codes(range(COUNT))
    changed = [row for row in range(COUNT) if not np.array_equal(after[row], before[row])]
    assert changed == [3]
    wrong = np.flatnonzero(after[3].ravel() != before[3].ravel())
    assert wrong[0] >= (hole - start) / (end - start) * before[3].size * 0.8
    assert (done.filled_samples, done.lost_samples) == (1, 0)
    assert len(wrong) <= done.filled_ids <= before[3].size - wrong[0] + 8
    assert f"{done.filled_ids:,} ids filled from their neighbours in rows 3" in done.lines[-1]
    # better than the mean code in their place
    codebook = ds.tokenizer.codebooks()[0]
    first = before[3].size - done.filled_ids
    mean = np.square(codebook - codebook[before[3].ravel()[:first]].mean(axis=0)).sum(axis=1).argmin()
    by_mean = np.where(np.arange(before[3].size) < first, before[3].ravel(), mean).reshape(before[3].shape)
    whole, filled, plain = (ds.tokenizer.decode(ids[None, None])[0] for ids in (before[3], after[3], by_mean))
    assert psnr(whole, filled) > psnr(whole, plain)


def test_a_hole_in_packed_ids_costs_just_the_ids_in_it(tokens) -> None:
    root = tokens("pack")
    before = tokenshard.open(root).codes(range(COUNT))
    hole = shard_of(root).row_groups[0].codes[0].offset // SECTOR * SECTOR + 9 * SECTOR
    overwrite(root, hole, bytes(SECTOR))
    done, ds = repaired(root)
    assert (done.filled_ids, done.lost_samples) == (SECTOR, 0)
    after = ds.codes(range(COUNT))
    differing = np.flatnonzero(after != before)
    offset = hole - shard_of(root).row_groups[0].codes[0].offset
    assert offset <= differing[0] <= differing[-1] < offset + SECTOR


def test_garbage_takes_the_rows_it_lies_in_and_retry_brings_them_back(tokens, photos: Path, tmp_path: Path) -> None:
    root = tokens("context")
    before = tokenshard.open(root).codes(range(COUNT))
    start, end = stream(root, 2)
    overwrite(root, (start + end) // 2, garbage(40))
    result = CliRunner().invoke(cli, ["verify", str(root), "--repair"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "version 2: 0 bytes restored exactly, 0 ids of 0 samples filled, 1 sample became a reject" in result.output
    assert "1 row became a reject: 2" in result.output
    ds = sound(root)
    assert len(ds) == COUNT - 1
    assert np.array_equal(ds.codes(range(COUNT - 1)), np.delete(before, 2, axis=0))
    (row,) = read_rejects(Store(root), ds.manifest).to_pylist()
    assert (row["key"], row["uri"], row["stage"], row["error"]) == ("cup/4.png", "cup/4.png", "fetch", "DamagedShard")
    words = ["retry", str(root), "--workers", "0", "--quiet"]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    ds = sound(root)
    assert (len(ds), ds.manifest.version, ds.manifest.totals.rejects) == (COUNT, 3, 0)
    assert np.array_equal(ds[ds.index("cup/4.png")]["codes"], before[2])


@pytest.mark.parametrize("codec", ["pack", "zstd"])
def test_garbage_in_ids_without_a_check_of_their_own_takes_the_row_group(codec: str, tokens) -> None:
    root = tokens(codec)
    shard = shard_of(root)
    overwrite(root, shard.row_groups[0].codes[0].offset + 300, garbage(40))
    done, ds = repaired(root)
    assert (done.lost_samples, len(ds)) == (COUNT, 0)
    assert ds.manifest.shards == ()
    assert read_rejects(Store(root), ds.manifest)["key"].to_pylist() == KEYS


def test_a_lost_file_is_a_list_of_rejects_with_their_keys(tokens, photos: Path) -> None:
    root = tokens("context")
    before, path = tokenshard.open(root)[4], root / shard_of(root).path
    path.unlink()
    done = repair(Store(root))
    (line,) = done.lines
    assert line.startswith(f"{shard_of(root).path}: 6 rows became rejects: 0, 1, 2, 3, 4, 5 (")
    tokenshard.convert_images(photos, root, "patch:4x4,k=256", Mode(retry=True), codec="context", **LOCAL)
    ds = sound(root)
    assert np.array_equal(ds[ds.index(before["key"])]["codes"], before["codes"])


def test_without_the_plan_rows_are_named_by_their_place(tokens) -> None:
    root = tokens("context")
    shutil.rmtree(root / "_job")
    (root / shard_of(root).path).write_bytes(b"PAR1")
    repair(Store(root))
    rows = read_rejects(Store(root), read_manifest(Store(root))).to_pylist()
    assert [row["key"] for row in rows] == [f"{shard_of(root).path}#{row}" for row in range(COUNT)]


def test_damaged_labels_are_empty_and_damaged_keys_cost_the_rows(tokens, tmp_path: Path) -> None:
    root = tokens("context")
    chunks = tokenshard.open(root).reader(0).chunks[0]
    _, end = chunks["label"]
    overwrite(root, end - 6, garbage(5))
    done, ds = repaired(root)
    assert (len(ds), done.lost_samples, done.filled_ids) == (COUNT, 0, 0)
    assert ds.table(["label"])["label"].null_count == COUNT
    assert "column 'label' is damaged: its 6 values are empty now" in done.lines[0]
    shutil.rmtree(root)
    root = tokens("context")
    _, end = chunks["key"]
    overwrite(root, end - 12, garbage(10))
    done, ds = repaired(root)
    assert done.lost_samples == COUNT
    assert read_rejects(Store(root), ds.manifest)["key"].to_pylist() == KEYS


def test_a_lost_level_of_residuals_becomes_no_residual(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stack = StackConfig(stem=4, channels=(8,), blocks=(1,))
    network = NetworkConfig(dim=4, encoder=stack, decoder=stack)
    quantizer = Lookup.of([torch.randn(32, 4), torch.randn(32, 4)])
    config = ConvConfig(network=network, quantizer="lookup", quantizer_options=quantizer.options())
    tokenizer = ConvVQ(config, AutoEncoder(network), quantizer)
    save_tokenizer(tokenizer, Store(tmp_path / "rvq"), "")
    root = tmp_path / "tokens"
    tokenshard.convert_images(photos, root, str(tmp_path / "rvq"), codec="context", **LOCAL)
    before = tokenshard.open(root).codes(range(COUNT))
    group = tokenshard.open(root).read_group(0)
    lengths = group.lengths[1]
    assert lengths is not None
    overwrite(root, shard_of(root).row_groups[0].codes[1].offset + int(lengths[:2].sum()) + 60, garbage(30))
    done, ds = repaired(root)
    after = ds.codes(range(COUNT))
    assert np.array_equal(after[:, 0], before[:, 0])
    assert [row for row in range(COUNT) if not np.array_equal(after[row], before[row])] == [2]
    neutral = np.square(tokenizer.codebooks()[1]).sum(axis=1).argmin()
    assert (after[2, 1] == neutral).all()
    assert (done.filled_ids, done.lost_samples) == (before[2, 1].size, 0)


def test_ids_that_stand_for_no_vectors_are_not_filled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = [(rng.random((1, 3000)) ** 3 * 200).astype(np.uint16) for _ in range(8)]
    import_arrays(tmp_path, codes, source={"alphabet": 200}, codec="pack")
    root = tmp_path / "tokens"
    hole = shard_of(root).row_groups[0].codes[0].offset // SECTOR * SECTOR + 9 * SECTOR
    overwrite(root, hole, bytes(SECTOR))
    done, ds = repaired(root)
    assert (done.filled_ids, done.lost_samples, len(ds)) == (0, 1, 7)
    lost = int(read_rejects(Store(root), ds.manifest)["key"].to_pylist()[0][1:])
    assert ds.manifest.splits == {"test": 2 - (lost % 4 == 0), "train": 6 - (lost % 4 != 0)}


def test_short_samples_that_share_a_stream_are_lost_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = [(rng.random((1, 6, 6)) ** 3 * 200).astype(np.uint16) for _ in range(64)]
    import_arrays(tmp_path, codes, source={"alphabet": 200, "grid": (6, 6)}, codec="context")
    root = tmp_path / "tokens"
    assert read_manifest(Store(root)).code.columns[0].group == 16
    group = tokenshard.open(root).read_group(0)
    assert group.lengths[0] is not None
    overwrite(root, shard_of(root).row_groups[0].codes[0].offset + int(group.lengths[0][0]) + 50, garbage(30))
    done, ds = repaired(root)
    assert (done.filled_ids, done.lost_samples) == (0, 16)
    kept = [number for number in range(64) if not 16 <= number < 32]
    assert np.array_equal(ds.codes(range(48)), np.concatenate([codes[number] for number in kept]))


def test_what_cannot_be_repaired_is_refused(tokens, photos: Path) -> None:
    root = tokens("context")
    overwrite(root, stream(root, 1)[0] + 9, garbage(40))
    (root / "_job" / "00000002").mkdir()
    shutil.copy(root / "_job" / "00000001" / "job.json", root / "_job" / "00000002" / "job.json")
    with pytest.raises(JobError, match="a job was started and is not finished"):
        repair(Store(root))
    shutil.rmtree(root / "_job" / "00000002")
    (weights,) = (root / "tokenizer").rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FormatError, match="the file is damaged or was replaced"):
        repair(Store(root))


def test_an_intact_dataset_gets_no_new_version(tokens) -> None:
    root = tokens("context")
    result = CliRunner().invoke(cli, ["verify", str(root), "--repair", "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["repair"]["version"] is None
    assert read_manifest(Store(root)).version == 1
