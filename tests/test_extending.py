"""docs/extending.md: the package that it shows is installed as written, and converts in processes of its own."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("hatchling", reason="extra dev")
import tokenshard as ts
from integration.command import refused, tokenshard_command
from tokenshard.codecs.base import Ids, id_dtype
from tokenshard.codecs.choose import choose_codec, load_codec
from tokenshard.codecs.extension import check_same_package
from tokenshard.errors import FormatError, SpecError
from tokenshard.extensions import extensions

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILE = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which Python sees the package of the page, installed by pip in a folder."""
    project, installed = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("installed")
    for name, text in FILE.findall(PAGE.read_text(encoding="utf-8")):
        (project / name).write_text(text, encoding="utf-8")
    words = ["install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--target", str(installed)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, str(project)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {"PYTHONPATH": seen(installed)}


def seen(folder: Path) -> str:
    """A PYTHONPATH with the packages of a folder first."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Makes the packages of a folder those that are installed, in this process."""

    def install(folder: Path) -> None:
        monkeypatch.syspath_prepend(str(folder))
        extensions.cache_clear()

    yield install
    monkeypatch.undo()
    extensions.cache_clear()


@pytest.fixture
def installed(environment: dict[str, str], packages: Callable[[Path], None]) -> None:
    """The package of the page, in this process too."""
    packages(Path(environment["PYTHONPATH"].split(os.pathsep)[0]))


def package(folder: Path, name: str, entry_points: str, version: str = "1.0") -> Path:
    """A folder with what an installed package says of itself."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)
    return folder


def ran(environment: dict[str, str], *words: str) -> dict[str, Any]:
    done = tokenshard_command(*words, "--json", **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray[Any, Any]]:
    skimage_data = pytest.importorskip("skimage.data")
    return [getattr(skimage_data, name)()[:96, :96] for name in ("astronaut", "chelsea", "coffee")]


def test_a_source_of_a_package_is_a_form_like_any_other(
    environment: dict[str, str], photos: list[np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "camera").mkdir()
    with (tmp_path / "camera" / "door.mjpeg").open("wb") as file:
        for photo in photos:
            data = io.BytesIO()
            Image.fromarray(photo).save(data, "JPEG")
            file.write(data.getvalue())
    words = ["--form", "mjpeg", "--tokenizer", "patch:8x8,k=16", "--workers", "1", "--quiet"]
    made = ran(environment, "convert", "images", str(tmp_path / "camera"), str(tmp_path / "out"), *words)
    assert (made["num_samples"], made["num_rejects"]) == (3, 0)


def test_a_tokenizer_of_a_package_is_fitted_stored_and_decodes(
    environment: dict[str, str], photos: list[np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{number}.png")
    out = str(tmp_path / "out")
    words = ["--tokenizer", "grey:8,k=32", "--workers", "1", "--quiet"]
    assert ran(environment, "convert", "images", str(tmp_path / "photos"), out, *words)["num_samples"] == 3
    drawn = tokenshard_command("show", out, "--out", str(tmp_path / "grid.png"), **environment)
    assert drawn.returncode == 0, drawn.stderr
    assert Image.open(tmp_path / "grid.png").size[0] >= 96
    missing = tokenshard_command("show", out, "--out", str(tmp_path / "grid.png"))
    assert missing.returncode == 1
    assert "unknown tokenizer kind 'grey'" in missing.stderr


def test_an_extension_that_cannot_be_imported_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    path = seen(package(tmp_path, "broken", "[tokenshard.tokenizers]\nodd = nowhere:KIND\n"))
    done = tokenshard_command(
        "convert", "images", str(tmp_path), str(tmp_path / "out"), "--tokenizer", "odd", PYTHONPATH=path
    )
    assert done.returncode == 2
    assert "'odd' of the installed package broken cannot be loaded: No module named 'nowhere'" in done.stderr


@pytest.fixture(scope="module")
def coded(
    environment: dict[str, str], photos: list[np.ndarray[Any, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A dataset `runs` whose ids the codec of the page wrote, and `pack`, the same with one of the format."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("coded")
    (folder / "photos").mkdir()
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(folder / "photos" / f"{number}.png")
    for codec in ("runs", "pack"):
        words = ["--tokenizer", "patch:8x8,k=16", "--codec", codec, "--workers", "1", "--quiet"]
        out = str(folder / codec)
        assert ran(environment, "convert", "images", str(folder / "photos"), out, *words)["num_samples"] == 3
    return folder


def test_a_codec_of_a_package_stores_ids_that_come_back(
    environment: dict[str, str], installed: None, coded: Path
) -> None:
    ours, plain = ts.open(str(coded / "runs")), ts.open(str(coded / "pack"))
    np.testing.assert_array_equal(ours.codes(range(3)), plain.codes(range(3)))
    np.testing.assert_array_equal(ours[2]["codes"], plain[2]["codes"])
    batch = next(iter(ts.loader(ours, batch_size=3, columns=["codes", "key"])))
    np.testing.assert_array_equal(batch["codes"], plain.codes(range(3)))
    assert ran(environment, "verify", str(coded / "runs"), "--deep")["ok"]
    stats = ran(environment, "stats", str(coded / "runs"))
    assert (stats["codec"], stats["levels"][0]["model_bytes"]) == ("runs", 4 * 16)


def test_a_dataset_says_whose_codec_it_has_and_that_older_readers_must_refuse(coded: Path) -> None:
    manifest = json.loads((coded / "runs" / "manifest" / "00000001.json").read_text())
    (spec,) = manifest["code"]["columns"]
    assert (spec["codec"], spec["package"], manifest["min_reader"]) == ("runs", "tokenshard-extras==1.0", 3)
    keys = pq.read_metadata(next((coded / "runs" / "data").iterdir())).metadata
    assert keys[b"tokenshard.min_reader"] == b"3"
    assert json.loads(keys[b"tokenshard.columns"])["codes"] == [spec]
    manifest = json.loads((coded / "pack" / "manifest" / "00000001.json").read_text())
    assert "package" not in manifest["code"]["columns"][0]
    assert manifest["min_reader"] == 1


def test_rows_are_recoded_with_the_codec_of_a_package_and_back(
    environment: dict[str, str], coded: Path, tmp_path: Path
) -> None:
    for source, codec in (("pack", "runs"), ("runs", "pack")):
        out = str(tmp_path / codec)
        words = ["--codec", codec, "--workers", "1", "--quiet"]
        assert ran(environment, "transcode", str(coded / source), out, *words)["num_samples"] == 3
    assert ran(environment, "verify", str(tmp_path / "runs"), "--deep")["ok"]
    np.testing.assert_array_equal(
        ts.open(str(tmp_path / "pack")).codes(range(3)), ts.open(str(coded / "pack")).codes(range(3))
    )


def test_rows_are_deleted_and_shards_compacted_with_the_codec_of_a_package(
    environment: dict[str, str], installed: None, coded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    shutil.copytree(coded / "runs", out)
    for words in (["delete", str(out), "1.png"], ["compact", str(out)]):
        done = tokenshard_command(*words, **environment)
        assert done.returncode == 0, done.stderr
        assert json.loads(max((out / "manifest").iterdir()).read_text())["min_reader"] == 3
    np.testing.assert_array_equal(ts.open(str(out)).codes(range(2)), ts.open(str(coded / "pack")).codes([0, 2]))


def test_without_the_package_ids_end_in_an_error_that_names_it(coded: Path, tmp_path: Path) -> None:
    runs = str(coded / "runs")
    assert len(ts.open(runs)) == 3
    assert ts.open(runs).table(columns=["key"]).num_rows == 3
    says = "has the codec 'runs' of the package tokenshard-extras, which is not installed; install version 1.0 of it"
    with pytest.raises(FormatError, match=says):
        ts.open(runs).codes([0])
    assert says in refused("show", runs, "--out", str(tmp_path / "grid.png"))
    report = json.loads(tokenshard_command("verify", runs, "--deep", "--json").stdout)
    assert not report["ok"]
    assert says in report["errors"][0]
    refusal = refused("transcode", str(coded / "pack"), str(tmp_path / "out"), "--codec", "runs", code=2)
    assert "'runs' is not one of 'auto', 'pack', 'zstd', 'context', 'copy'" in refusal


def test_another_package_with_a_codec_of_that_name_is_not_taken_for_it(
    coded: Path, packages: Callable[[Path], None], tmp_path: Path
) -> None:
    packages(package(tmp_path, "others", "[tokenshard.codecs]\nruns = nowhere:Coder\n", "2.0"))
    with pytest.raises(FormatError, match="of the package tokenshard-extras, but the one that is installed belongs to"):
        ts.open(str(coded / "runs")).codes([0])


def test_only_the_version_that_wrote_a_column_may_write_more_of_it(installed: None) -> None:
    chosen = choose_codec(IDS, GRIDS, 40, "runs")
    spec = chosen.spec("codes")
    check_same_package(chosen.codec, spec)
    with pytest.raises(SpecError, match=r"written with tokenshard-extras==0\.9, but tokenshard-extras==1\.0 is"):
        check_same_package(chosen.codec, spec.model_copy(update={"package": "tokenshard-extras==0.9"}))


def test_an_append_that_another_version_may_not_write_leaves_nothing_behind(
    environment: dict[str, str], coded: Path, photos: list[np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    from PIL import Image

    newer = tmp_path / "newer"
    shutil.copytree(environment["PYTHONPATH"].split(os.pathsep)[0], newer)
    (info,) = newer.glob("*.dist-info")
    metadata = info / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    out, more = tmp_path / "runs", tmp_path / "photos"
    shutil.copytree(coded / "runs", out)
    shutil.copytree(coded / "photos", more)
    Image.fromarray(photos[0][::-1]).save(more / "more.png")
    before = sorted(path for path in out.rglob("*") if path.is_file())
    words = ["--tokenizer", "patch:8x8,k=16", "--codec", "runs", "--workers", "1", "--quiet", "--append"]
    for path, says in ((seen(newer), "but tokenshard-extras==1.1 is installed"), (seen(tmp_path), "not installed")):
        done = tokenshard_command("convert", "images", str(more), str(out), *words, PYTHONPATH=path)
        assert says in done.stderr or "'runs' is not one of" in done.stderr
        assert sorted(path for path in out.rglob("*") if path.is_file()) == before
    done = tokenshard_command("convert", "images", str(more), str(out), *words, **environment)
    assert done.returncode == 0, done.stderr
    assert len(ts.open(str(out))) == 4


SIZES = [0, 300, 1, 0, 4000, 77]
GRIDS = np.array(SIZES, np.int32)[:, None]
IDS: Ids = np.repeat(np.random.default_rng(0).integers(0, 40, sum(SIZES)), 1 + np.arange(sum(SIZES)) % 300)[
    : sum(SIZES)
].astype(np.uint16)


@pytest.mark.parametrize("alphabet", [40, 1 << 16, 1 << 17])
def test_the_codec_of_the_page_is_lossless_and_no_damage_gets_ids_out_of_it_that_are_none(
    installed: None, alphabet: int
) -> None:
    ids = (IDS.astype(np.int64) * (alphabet // 40)).astype(id_dtype(alphabet))
    chosen = choose_codec(ids, GRIDS, alphabet, "runs")
    model = chosen.codec.model_bytes()
    codec = load_codec(chosen.spec("codes"), model)
    data, lengths = codec.encode(ids, GRIDS)
    np.testing.assert_array_equal(codec.decode(data, lengths, GRIDS), ids)
    draw, refused = np.random.default_rng(1), 0
    for _ in range(200):
        damaged = data.copy()
        damaged[draw.integers(len(data), size=draw.integers(1, 4))] = draw.integers(256)
        try:
            found = codec.decode(damaged, lengths, GRIDS)
        except FormatError:
            refused += 1
        else:
            assert (len(found), found.dtype) == (len(ids), ids.dtype)
            assert int(found.max()) < alphabet
    assert refused > 20
    with pytest.raises(FormatError, match="needs the model file"):
        load_codec(chosen.spec("codes"), (model or b"")[:-4])


FAULTY = """
import numpy as np

class Coder:
    model = None
    def __init__(self, alphabet): pass
    @classmethod
    def fit(cls, ids, grids, alphabet): return cls(alphabet)
    @classmethod
    def from_model(cls, model, alphabet): return cls(alphabet)
    def model_bytes(self): return self.model
    def encode(self, ids, grids): return ids.astype("<u4").view(np.uint8), (4 * grids.prod(1)).astype(np.int32)
    def decode(self, data, lengths, grids, out): out[:] = data.view("<u4")

class Forgets(Coder):
    def decode(self, data, lengths, grids, out): out[1:] = data.view("<u4")[1:]

class Draws(Coder):
    def encode(self, ids, grids):
        data, lengths = super().encode(ids, grids)
        return data ^ np.random.default_rng().integers(256, size=len(data), dtype=np.uint8), lengths

class Leaks(Coder):
    def encode(self, ids, grids): return super().encode(ids, grids)[0], np.zeros(len(grids), np.int32)

class Writes(Coder):
    def encode(self, ids, grids):
        ids[0] = 0

class Joins(Coder):
    def decode(self, data, lengths, grids, out):
        if len(grids) < 2:
            raise ValueError("needs neighbours")
        super().decode(data, lengths, grids, out)

class Pickles(Coder):
    model = {"ids": []}
"""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Forgets", "decoded ids differ from those that were encoded"),
        ("Draws", "encodes the same ids to other bytes"),
        ("Leaks", "`encode` must give uint8 streams and their int32 lengths, which add up"),
        ("Writes", "read-only"),
        ("Joins", "needs neighbours"),
        ("Pickles", "its model is not of 1 to 16777216 bytes"),
    ],
)
def test_a_codec_that_breaks_its_promises_is_refused_before_anything_is_stored(
    name: str, reason: str, packages: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "faulty_codecs.py").write_text(FAULTY)
    lines = [f"{kind.lower()} = faulty_codecs:{kind}" for kind in ("Coder", name)]
    packages(package(tmp_path, "faulty", "\n".join(["[tokenshard.codecs]", *lines])))
    choose_codec(IDS + np.uint16(1), GRIDS, 41, "coder")
    with pytest.raises(SpecError, match=f"codec '{name.lower()}' of faulty==1.0 cannot be used: .*{reason}"):
        choose_codec(IDS + np.uint16(1), GRIDS, 41, name.lower())
