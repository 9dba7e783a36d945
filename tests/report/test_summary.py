"""A report of a dataset: its figures, what it reads for them, and that nothing a dataset says becomes markup."""

from __future__ import annotations

import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenshard.api import TokenDataset, convert_images, open_dataset
from tokenshard.report.summary import codes, figures
from tokenshard.report.summary.figures import summarize
from tokenshard.report.summary.markup import bars, table, tag
from tokenshard.report.summary.page import report_page
from tokenshard.shards.stats import dataset_stats

HOSTILE = "<script>alert(1)</script>&\"'.png"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """100 tiles of photographs in five shards, one of a hostile name, and a file that is no image."""
    photograph = pytest.importorskip("skimage.data").astronaut()
    root = tmp_path_factory.mktemp("report")
    (root / "images").mkdir()
    for number in range(100):
        row, column = 48 * (number // 10), 48 * (number % 10)
        name = HOSTILE.replace("/", "∕") if number == 0 else f"{number:03d}.png"
        Image.fromarray(photograph[row : row + 48, column : column + 48]).save(root / "images" / name)
    (root / "images" / "broken.png").write_bytes(b"no <b>image</b>")
    convert_images(
        root / "images", root / "tokens", tokenizer="patch:8x8,k=64", unit={"samples": 21}, max_rejects=0.1,
        engine={"kind": "local", "workers": 0},
    )  # fmt: skip
    return open_dataset(root / "tokens")


class Tags(HTMLParser):
    """Elements of a page, and the addresses they name."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]
        assert not any(name.startswith("on") for name, _ in attrs)


def test_figures_are_those_of_stats_where_everything_is_read(dataset: TokenDataset) -> None:
    found, exact = summarize(dataset).figures, dataset_stats(dataset)
    assert found["codes"]["decoded_samples"] == len(dataset) == 100
    for name in ("bits_per_token", "file_bits_per_token", "order0_entropy"):
        assert found["codes"][name] == pytest.approx(exact[name])
    assert found["codes"]["levels"][0]["codes_used"] == exact["codes_used"]
    assert sum(found["sizes"]["parts"].values()) == exact["bytes"]
    assert found["sizes"]["parts"]["footers"] == exact["footer_bytes"]


def test_pixels_and_jpeg_are_measured_on_originals(dataset: TokenDataset) -> None:
    sizes = summarize(dataset).figures["sizes"]
    assert sizes["pixel_bytes"] == 100 * 48 * 48 * 3
    assert 0 < sizes["measured_samples"] < 100
    file = io.BytesIO()
    Image.fromarray(next(iter(_pixels(dataset)))).save(file, "JPEG", quality=75)
    assert sizes["jpeg_bytes"] / 100 == pytest.approx(file.tell(), rel=0.6)


def _pixels(dataset: TokenDataset) -> list[np.ndarray[Any, Any]]:
    source = Path(str(dataset.manifest.source["path"]))
    return [np.asarray(Image.open(path)) for path in sorted(source.glob("0*.png"))]


def test_rejects_are_counted_by_reason_with_an_example(dataset: TokenDataset) -> None:
    rejects = summarize(dataset).figures["rejects"]
    (reason,) = rejects["reasons"]
    assert (rejects["total"], reason["count"], reason["example"], reason["stage"]) == (1, 1, "broken.png", "decode")


def test_throughput_is_what_the_driver_wrote(dataset: TokenDataset) -> None:
    (job,) = summarize(dataset).figures["throughput"]
    assert (job["inputs"], job["ended"]) == (101, "finished")
    assert job["inputs_per_second"] > 0


def test_a_large_dataset_is_sampled_and_the_report_says_so(
    dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "MOST_GROUPS", 2)
    monkeypatch.setattr(codes, "MOST_IDS", 500)
    monkeypatch.setattr(figures, "MEASURED", 3)
    read: list[int] = []
    plain = TokenDataset.read_group

    def counted(self: TokenDataset, group: int, *rest: Any, **more: Any) -> Any:
        read.append(group)
        return plain(self, group, *rest, **more)

    monkeypatch.setattr(TokenDataset, "read_group", counted)
    small = open_dataset(dataset.store.root)
    found = summarize(small, 1).figures
    assert set(read) == {0, small.num_row_groups - 1}
    assert found["codes"]["decoded_ids"] <= 500
    assert "spread evenly" in found["notes"][0]
    assert found["sizes"]["measured_samples"] <= 4


def test_without_its_source_a_dataset_still_has_a_report(dataset: TokenDataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.store.root, tmp_path / "moved", ignore=shutil.ignore_patterns("_job"))
    summary = summarize(open_dataset(tmp_path / "moved"))
    assert summary.figures["sizes"]["jpeg_bytes"] is None
    assert summary.figures["throughput"] == []
    assert "Originals are not shown" in " ".join(summary.figures["notes"])
    assert "reconstruction" in report_page(summary)


def test_nothing_in_a_dataset_becomes_markup(dataset: TokenDataset) -> None:
    summary = summarize(dataset, 64)
    assert any("<script>" in sample["key"] for sample in summary.figures["samples"])
    page = report_page(summary)
    tags = Tags(page)
    assert not tags.names & {"script", "iframe", "object", "link", "form"}
    assert "&lt;script&gt;alert(1)" in page
    assert all(address.startswith("data:image/") for address in tags.addresses)
    assert 'http-equiv="Content-Security-Policy" content="default-src &#x27;none&#x27;' in page
    assert len(page) < 2_000_000
    assert not re.search(r"https?://", page)


def test_markup_escapes_text_attributes_and_marks_that_turn_text() -> None:
    assert tag("p", "<b>", title='"x"') == '<p title="&quot;x&quot;">&lt;b&gt;</p>'
    assert tag("p", tag("b", "a")) == "<p><b>a</b></p>"
    assert tag("p", "a‮b\x1b[31m\ud800") == "<p>a�b�[31m?</p>"
    assert tag("img", alt="a\ud800\u202e") == '<img alt="a?\ufffd">'
    assert "&lt;i&gt;" in table(["<i>"], [["<u>"]])
    assert "<u>" not in table(["<i>"], [["<u>"]])


def test_bars_are_drawn_against_the_longest_and_never_vanish() -> None:
    drawn = bars([("a", 200.0, "200"), ("b", 0.01, "0.01")], "b")
    assert "width:100.00%" in drawn
    assert "width:0.30%" in drawn
    assert drawn.count("bar strong") == 1
