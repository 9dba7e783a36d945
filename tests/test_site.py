"""The documentation as a site: it builds without a warning, its links lead somewhere, and it needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="extra docs")
import tokenshard

ROOT = Path(__file__).parents[1]
HTTPS = re.compile(r"https?://[a-z0-9-]+(\.[a-z0-9-]+)+(:\d+)?(/\S*)?$")


class Links(HTMLParser):
    """What a page links to, what it loads by itself, and the anchors that it has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.loaded |= {values["src"]} if "src" in values else set()
        if "href" in values:
            (self.loaded if tag == "link" else self.links).add(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = ["-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_and_anchor_leads_somewhere(pages: dict[Path, Links]) -> None:
    broken = []
    for page, found in pages.items():
        for link in found.links | found.loaded:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("data:"):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].anchors if target in pages else {""}
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append((page.name, link))
    assert broken == []


def test_links_to_other_sites_are_well_formed(pages: dict[Path, Links]) -> None:
    outside = {link for found in pages.values() for link in found.links if urlsplit(link).scheme}
    assert {link for link in outside if not HTTPS.match(link)} == set()


def test_pages_load_nothing_from_other_servers(site: Path, pages: dict[Path, Links]) -> None:
    assert {link for found in pages.values() for link in found.loaded if urlsplit(link).scheme or "//" in link} == set()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_what_repository_readers_see_is_on_the_site_too(pages: dict[Path, Links], site: Path) -> None:
    """Python-Markdown takes fewer things for lists and tables than GitHub does, and says nothing."""
    from markdown_it import MarkdownIt

    github = MarkdownIt("commonmark").enable("table")
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "RESULTS.md", *(ROOT / "schemas").glob("*.md")]:
        built = site / (
            f"{page.stem}.html" if page.parent.name == "docs" else f"repository/{page.parent.name}/{page.stem}.html"
        )
        article = built.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        expected = github.render(page.read_text(encoding="utf-8"))
        for tag in ("li", "h2"):
            assert _count(expected, tag) <= _count(article, tag), (page.name, tag)
        assert _count(expected, "table") <= _count(article, "table"), page.name


def _count(html: str, tag: str) -> int:
    return len(re.findall(f"<{tag}[ >]", html))


def test_all_public_names_are_in_the_reference(pages: dict[Path, Links], site: Path) -> None:
    anchors = pages[site / "api.html"].anchors
    assert {name for name in tokenshard.__all__ if f"tokenshard.{name}" not in anchors} == set()


def test_all_fields_of_job_specs_are_in_the_reference(site: Path) -> None:
    import json

    page = (site / "job-specs.html").read_text(encoding="utf-8")
    models = json.loads((ROOT / "schemas" / "job.schema.json").read_text(encoding="utf-8"))["$defs"]
    fields = {name for model in models.values() for name in model.get("properties", {})}
    assert {name for name in fields if f"<code>{name}</code>" not in page} == set()
