"""Entropy tables that come with a tokenizer: taken by small datasets, part of the dataset, checked when read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tokenshard
from reference_reader import read_dataset
from tokenshard.codecs.choose import choose_codec
from tokenshard.codecs.context import ContextCodec
from tokenshard.errors import FormatError
from tokenshard.report.tokenizer_quality import tokenizer_quality
from tokenshard.shards.stats import dataset_stats
from tokenshard.shards.verify import verify
from tokenshard.spec.job import Transcode, build_job
from tokenshard.store import Store
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.folder import load_tokenizer, read_tables, save_tokenizer
from tokenshard.tokenizers.packaged import saved_tokenizer
from tokenshard.tokenizers.tables import fit_tables

PACKAGED = saved_tokenizer("default")


@pytest.fixture(scope="module")
def dataset(photos: list[NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three windows of photographs by `default`."""
    folder = tmp_path_factory.mktemp("small")
    for number, photo in enumerate(photos):
        (folder / "raw").mkdir(exist_ok=True)
        Image.fromarray(photo[:160, :200]).save(folder / "raw" / f"{number}.png")
    tokenshard.convert_images(folder / "raw", folder / "tokens", tokenizer="default", engine={"workers": 0})
    return folder / "tokens"


def test_a_small_dataset_takes_the_tables_and_stores_no_model(dataset: Path) -> None:
    opened = tokenshard.open(dataset)
    [table] = load_tokenizer(PACKAGED).spec.tables
    assert opened.manifest.models == {}
    assert opened.manifest.tables == {table: PACKAGED.size(f"{table}.tsm")}
    assert opened.manifest.code.columns[0].model == table
    stats = dataset_stats(opened)
    assert stats["model_bytes"] == 0
    assert stats["bits_per_token"] < stats["order0_entropy"]


def test_the_tables_are_in_the_dataset_and_other_readers_find_them(dataset: Path) -> None:
    _, samples = read_dataset(dataset)
    opened = tokenshard.open(dataset)
    assert all((sample.codes[0] == opened[number]["codes"]).all() for number, sample in enumerate(samples))
    assert verify(Store(dataset), deep=True).errors == ()


def test_what_is_appended_is_coded_with_them_too(
    dataset: Path, photos: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    from tokenshard.engine.convert import Mode

    output = tmp_path / "tokens"
    shutil.copytree(dataset, output)
    (tmp_path / "more").mkdir()
    Image.fromarray(photos[0][100:200, :200]).save(tmp_path / "more" / "x.png")
    mode = Mode(append=True)
    tokenshard.convert_images(tmp_path / "more", output, tokenizer="default", mode=mode, engine={"workers": 0})
    assert tokenshard.open(output).manifest.tables == tokenshard.open(dataset).manifest.tables
    assert verify(Store(output), deep=True).errors == ()


def test_a_transcoded_dataset_keeps_them(dataset: Path, tmp_path: Path) -> None:
    job = {"source": {"path": str(dataset)}, "output": str(tmp_path / "again"), "engine": {"workers": 0}}
    tokenshard.run(build_job(Transcode, job))
    again = tokenshard.open(tmp_path / "again")
    assert again.manifest.tables == tokenshard.open(dataset).manifest.tables
    assert verify(Store(tmp_path / "again"), deep=True).errors == ()


def test_damaged_tables_are_reported_and_refused(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "tokens"
    shutil.copytree(dataset, output)
    [table] = (output / "tokenizer").glob("*/*.tsm")
    data = bytearray(table.read_bytes())
    data[100] ^= 1
    table.write_bytes(data)
    assert any(table.name in error for error in verify(Store(output)).errors)
    with pytest.raises(FormatError, match=rf"{table.name}: damaged"):
        _ = tokenshard.open(output)[0]
    with pytest.raises(FormatError, match=rf"{table.name}: damaged \(SHA-256 differs\); copy it again"):
        tokenshard.convert_images(tmp_path, tmp_path / "new", tokenizer=str(table.parent))
    table.unlink()
    with pytest.raises(FormatError, match=rf"{table.name}: no such file"):
        tokenshard.convert_images(tmp_path, tmp_path / "new", tokenizer=str(table.parent))


def test_many_ids_pay_for_a_model_of_their_own() -> None:
    draw = np.random.default_rng(0)
    ids = np.minimum(draw.geometric(0.2, 200_000), 63).astype(np.uint16)
    grids = np.full((200, 2), (20, 50), np.int32)
    flat = ContextCodec.fit(np.arange(64, dtype=np.uint16), np.array([[8, 8]], np.int32), 64).model_bytes()
    many = choose_codec(ids, grids, 64, "context", table=flat)
    assert not many.given
    few = choose_codec(np.arange(64, dtype=np.uint16), np.array([[8, 8]], np.int32), 64, "context", table=flat)
    assert few.given
    assert few.spec("codes").model is not None
    with pytest.raises(FormatError, match="tables of 64 ids for an alphabet of 65"):
        choose_codec(ids, grids, 65, "context", table=flat)


def test_tables_fitted_on_images_belong_to_a_tokenizer_of_their_own(
    photos: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(PACKAGED)
    assert isinstance(tokenizer, ConvVQ)
    windows = [photo[:96, :128] for photo in photos]
    tables = fit_tables(tokenizer, windows)
    assert tables == fit_tables(tokenizer, windows)
    made = tokenizer.with_tables(tables)
    save_tokenizer(made, Store(tmp_path), "", tables)
    loaded = load_tokenizer(Store(tmp_path))
    assert loaded.spec == made.spec
    assert loaded.spec.fingerprint != tokenizer.spec.fingerprint
    assert loaded.spec.weights_sha256 == tokenizer.spec.weights_sha256
    assert read_tables(Store(tmp_path), loaded.spec) == tables


def test_the_report_leaves_the_bytes_of_the_tables_out_as_those_of_the_weights(
    photos: list[NDArray[np.uint8]],
) -> None:
    tokenizer = load_tokenizer(PACKAGED)
    windows = [photo[:160, :200] for photo in photos]
    tables = read_tables(PACKAGED, tokenizer.spec)
    with_tables, alone = (tokenizer_quality(tokenizer, windows, given) for given in (tables, ()))
    assert (with_tables.tables, alone.tables) == ((True,), (False,))
    assert with_tables.bits_per_token < alone.bits_per_token
    assert with_tables.psnr == alone.psnr
