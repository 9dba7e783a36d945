"""Reports as readers open them: a file in a browser, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from integration.command import convert, refused, tokenshard_command

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of a photograph as tokens; one has a name that is markup."""
    photograph = pytest.importorskip("skimage.data").astronaut()
    root = tmp_path_factory.mktemp("report")
    (root / "images").mkdir()
    for number in range(24):
        name = f"<img src=x onerror=alert({number})>.png" if number % 5 == 0 else f"{number}.png"
        Image.fromarray(photograph[20 * number : 20 * number + 48, 100:164]).save(root / "images" / name)
    convert(root / "images", root / "tokens", "--tokenizer", "patch:8x8,k=64", "--engine", "local", "--workers", "0")
    return root / "tokens"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 420)])
def test_the_page_opens_from_a_file_and_asks_for_nothing(
    tokens: Path, chromium: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    report = tmp_path / "report.html"
    done = tokenshard_command("report", str(tokens), "--html", str(report))
    assert done.returncode == 0, done.stderr
    assert report.stat().st_size < 2_000_000
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert said == []
    assert [address for address in asked if not address.startswith("data:image/")] == [report.as_uri()]
    pictures = page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth])")
    assert len(pictures) >= 3 * 8
    assert all(complete and width > 0 for complete, width in pictures)
    assert "<img src=x onerror=" in page.inner_text("main")
    titles = page.eval_on_selector_all("h2", "heads => heads.map(head => head.textContent)")
    assert titles[:4] == ["Size", "Bits a token", "Use of the codebook", "Samples"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 24, 28)")
    page.close()


def test_the_same_figures_as_text_and_as_json(tokens: Path) -> None:
    text = tokenshard_command("report", str(tokens)).stdout
    found = json.loads(tokenshard_command("report", str(tokens), "--json").stdout)
    assert found["dataset"]["fingerprint"] in text
    assert f"{found['codes']['bits_per_token']:.3f} bits each" in text
    assert "\x1b" not in text


def test_a_report_goes_from_s3_to_s3(tokens: Path, s3_url: str) -> None:
    from tokenshard.store import Store

    source, bucket = Store(tokens), Store(s3_url)
    for entry in source.list():
        bucket.put(f"tokens/{entry.name}", source.read(entry.name))
    done = tokenshard_command("report", f"{s3_url}/tokens", "--html", f"{s3_url}/reports/one.html")
    assert done.returncode == 0, done.stderr
    assert bucket.read("reports/one.html").startswith(b"<!doctype html>")


def test_a_folder_is_no_name_for_a_report(tokens: Path) -> None:
    assert "is a folder" in refused("report", str(tokens), "--html", str(tokens), code=2)
