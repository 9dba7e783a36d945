"""`transcode` to fewer codes, to coarse and fine ids, and to the codes in use: from stored ids alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

import tokenshard
from engine.arrays import import_arrays
from tokenshard.engine.convert import Conversion, Mode
from tokenshard.errors import JobError, SpecError
from tokenshard.report.quality import order0_entropy
from tokenshard.shards.manifest import read_manifest
from tokenshard.shards.stats import dataset_stats
from tokenshard.shards.verify import verify
from tokenshard.spec.job import Transcode, build_job
from tokenshard.store import Store
from tokenshard.tokenizers.coarse import CoarseFine

pytestmark = pytest.mark.integration
LOCAL: dict[str, Any] = {"engine": {"kind": "local", "workers": 0}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "chelsea", "coffee"):
        for number in range(4):
            tile = getattr(skimage.data, name)()[:256, 64 * number : 64 * number + 60]
            Image.fromarray(tile).save(folder / f"{name}{number}.png")
    return folder


@pytest.fixture(scope="module")
def tokens(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images of 32 x 8 ids of 256 codes; the pixels are gone."""
    root = tmp_path_factory.mktemp("data")
    shutil.copytree(photos, root / "photos")
    tokenshard.convert_images(root / "photos", root / "tokens", "patch:8x8,k=256", **LOCAL)
    shutil.rmtree(root / "photos")
    return root / "tokens"


def transcode(src: Path, out: Path, mode: Mode | None = None, codec: str = "auto", **source: Any) -> Conversion:
    job = {"source": {"path": str(src), **source}, "output": str(out), "codec": codec, **LOCAL}
    return tokenshard.run(build_job(Transcode, job), mode)


def sound(out: Path) -> Any:
    report = verify(Store(out), deep=True)
    assert report.ok, report.errors
    return tokenshard.open(out)


def test_fewer_codes_from_ids_alone(tokens: Path, photos: Path, tmp_path: Path) -> None:
    first = transcode(tokens, tmp_path / "small", codebook_size=64)
    before, after = tokenshard.open(tokens), sound(tmp_path / "small")
    assert [level.alphabet for level in after.manifest.code.levels] == [64]
    assert after.manifest.tokenizer.fingerprint == after.tokenizer.spec.fingerprint
    assert after.manifest.tokenizer != before.manifest.tokenizer
    (table,) = after.tokenizer.maps
    assert all((table[before[n]["codes"]] == after[n]["codes"]).all() for n in range(len(before)))
    assert after.table().equals(before.table())
    entropies = [
        order0_entropy(np.concatenate([codes.ravel() for codes in ds.codes(range(12))])) for ds in (before, after)
    ]
    assert entropies[1] < entropies[0] - 1.5
    # a new image gets the ids that the map makes of those of the first tokenizer
    image = np.asarray(Image.open(photos / "coffee2.png"))[None]
    assert np.array_equal(after.tokenizer.encode(image), table[before.tokenizer.encode(image)])
    assert transcode(tokens, tmp_path / "again", codebook_size=64).fingerprint == first.fingerprint


def test_images_and_ids_are_appended_to_fewer_codes(tokens: Path, photos: Path, tmp_path: Path) -> None:
    transcode(tokens, tmp_path / "small", codebook_size=16)
    transcode(tokens, tmp_path / "small", Mode(append=True), codebook_size=16, keys="prefix:again/")
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "astronaut0.png", tmp_path / "more" / "new.png")
    folder = tmp_path / "small" / "tokenizer" / read_manifest(Store(tmp_path / "small")).tokenizer.fingerprint
    tokenshard.convert_images(tmp_path / "more", tmp_path / "small", str(folder), Mode(append=True), **LOCAL)
    ds = sound(tmp_path / "small")
    assert len(ds) == 25
    assert np.array_equal(ds[ds.index("astronaut0.png")]["codes"], ds[ds.index("new.png")]["codes"])
    assert np.array_equal(ds[ds.index("again/coffee1.png")]["codes"], ds[ds.index("coffee1.png")]["codes"])
    other = {"codec": "pack", "keys": "prefix:other/"}
    with pytest.raises(SpecError, match="ids of two tokenizers cannot be mixed"):
        transcode(tokens, tmp_path / "small", Mode(append=True), **other)
    transcode(tokens, tmp_path / "smaller", codebook_size=8)
    with pytest.raises(SpecError, match="is not derived from that of"):
        transcode(tmp_path / "smaller", tmp_path / "small", Mode(append=True), codebook_size=4, keys="prefix:other/")


def test_coarse_ids_are_read_without_the_fine_ones(tokens: Path, tmp_path: Path) -> None:
    transcode(tokens, tmp_path / "two", coarse=16, codec="pack")
    transcode(tmp_path / "two", tmp_path / "one", levels=1, codec="pack")
    before, two, one = tokenshard.open(tokens), sound(tmp_path / "two"), sound(tmp_path / "one")
    view = two.tokenizer.view
    assert np.array_equal(view.clusters, before.coarse(16).clusters)
    for number in range(len(before)):
        coarse, fine = two[number]["codes"]
        assert np.array_equal(view.join(coarse, fine), before[number]["codes"])
        assert np.array_equal(one[number]["codes"], coarse)
    read = [sum(stream.nbytes for stream in two.read_group(0, levels).streams) for levels in (1, 2)]
    assert read[0] * 8 == before.manifest.totals.ids * 4 < read[1] * 8
    shown = [ds.tokenizer.decode(ds[0]["codes"].reshape(1, -1, 32, 8)) for ds in (two, one)]
    assert np.array_equal(shown[0], before.tokenizer.decode(before[0]["codes"][None, None]))
    assert shown[1].shape == shown[0].shape


def test_a_view_of_coarse_ids_needs_no_other_dataset(tokens: Path) -> None:
    ds = tokenshard.open(tokens)
    view = ds.coarse(32)
    assert isinstance(view, CoarseFine)
    codes = np.concatenate([codes.ravel() for codes in ds.codes(range(len(ds)))])
    assert np.array_equal(view.join(*view.split(codes)), codes)
    assert view.split(codes)[0].max() < 32


@pytest.fixture(scope="module")
def scattered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two levels of ids below 8,192 and 70,000, of which 391 and 30 occur."""
    root, rng = tmp_path_factory.mktemp("scattered"), np.random.default_rng(0)
    first, second = np.sort(rng.choice(8192, 391, replace=False)), np.sort(rng.choice(70000, 30, replace=False))
    drawn = [book[rng.permutation(np.resize(np.arange(len(book)), 40 * 64))] for book in (first, second)]
    samples = np.stack([ids.reshape(40, 8, 8) for ids in drawn], axis=1)
    import_arrays(root, list(samples.astype(np.int32)), source={"alphabet": [8192, 70000], "grid": (8, 8)})
    return root / "tokens"


def test_codes_in_use_are_numbered_afresh_and_the_table_leads_back(scattered: Path, tmp_path: Path) -> None:
    transcode(scattered, tmp_path / "out", codec="pack", used_codes=True)
    before, after = tokenshard.open(scattered), sound(tmp_path / "out")
    assert np.array_equal(before.codes(range(40)), after.codes(range(40)))
    assert after.codes([0]).dtype == np.int32
    assert after.tokenizer_files() == before.tokenizer_files()
    levels = after.manifest.code.levels
    assert [level.alphabet for level in levels] == [8192, 70000]
    assert [len(level.remap or ()) for level in levels] == [391, 30]
    assert [level["bits_per_token"] for level in dataset_stats(after)["levels"]] == [9.0, 5.0]
    stored = after.read_group(0).decode()
    assert np.array_equal(np.array(levels[0].remap)[stored[0]], before.codes(range(40))[:, 0].ravel())
    # and back to the whole alphabet
    transcode(tmp_path / "out", tmp_path / "back", codec="pack")
    back = sound(tmp_path / "back")
    assert [level.remap for level in back.manifest.code.levels] == [None, None]
    assert np.array_equal(back.codes(range(40)), before.codes(range(40)))


def test_the_setting_of_seit_takes_nine_bits_an_id_and_less_when_coded(tmp_path: Path) -> None:
    """32 x 32 ids an image, 391 of 8,192 codes in use (arXiv:2306.11339): 1.15 kB an image before any modelling."""
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        for place in range(4):
            tile = getattr(skimage.data, name)()[-224:, 50 * place : 50 * place + 224]
            Image.fromarray(tile).save(tmp_path / "photos" / f"{name}{place}.png")
    tokenshard.convert_images(tmp_path / "photos", tmp_path / "dense", "patch:7x7,k=391", **LOCAL)
    scattered = np.sort(np.random.default_rng(0).choice(8192, 391, replace=False))
    codes = [scattered[sample] for sample in tokenshard.open(tmp_path / "dense").codes(range(16))]
    import_arrays(tmp_path, [one[None] for one in codes], source={"alphabet": 8192})
    for codec in ("pack", "context"):
        transcode(tmp_path / "tokens", tmp_path / codec, codec=codec, used_codes=True)
    pack, context = (sound(tmp_path / codec) for codec in ("pack", "context"))
    assert all(np.array_equal(*pair) for pair in zip(codes, pack.codes(range(16)), strict=True))
    an_image = [dataset_stats(ds)["levels"][0]["stream_bytes"] / len(ds) for ds in (pack, context)]
    assert an_image[0] <= 1.01 * 1150
    assert an_image[1] < 0.8 * an_image[0]


def test_an_id_without_a_number_cannot_be_appended(scattered: Path, tmp_path: Path) -> None:
    transcode(scattered, tmp_path / "out", used_codes=True)
    unused = next(
        n for n in range(8192) if n not in (read_manifest(Store(tmp_path / "out")).code.levels[0].remap or ())
    )
    known = tokenshard.open(scattered)[3]["codes"]
    for number, first in ((100, known[0, 0, 0]), (200, unused)):
        codes = known.copy()
        codes[0, 0, 0] = first
        (tmp_path / str(number)).mkdir()
        import_arrays(tmp_path / str(number), [codes], first=number, source={"alphabet": [8192, 70000], "grid": (8, 8)})
    transcode(tmp_path / "100" / "tokens", tmp_path / "out", Mode(append=True))
    ds = sound(tmp_path / "out")
    assert np.array_equal(ds[40]["codes"], known)
    with pytest.raises(JobError, match="1 x encode: InputError"):
        transcode(tmp_path / "200" / "tokens", tmp_path / "out", Mode(append=True))


def test_what_cannot_be_done_is_said_before_any_work(tokens: Path, scattered: Path, tmp_path: Path) -> None:
    for src, source, message in (
        (tokens, {"codebook_size": 256}, "has codebooks of .256. codes; give a smaller size"),
        (tokens, {"codebook_size": (8, 8)}, "codebook sizes for 2 levels, the ids have 1"),
        (tokens, {"coarse": 256}, "256 coarse ids of 256 ids"),
        (scattered, {"codebook_size": 8}, "no codebook came with them"),
    ):
        with pytest.raises(SpecError, match=message):
            transcode(src, tmp_path / "no", **source)
    assert not (tmp_path / "no").exists()
    with pytest.raises(SpecError, match="exclude each other; transcode twice"):
        transcode(tokens, tmp_path / "no", coarse=8, used_codes=True)
