"""PDF files and page images: every page a row, whatever is wrong a reject that says so, nothing else lost."""

from __future__ import annotations

import io
import json
import resource
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pdf_files import Word, pdf, scan
from tokenshard.errors import SpecError
from tokenshard.sources.base import Reject, Sample
from tokenshard.sources.documents.open import open_document_source
from tokenshard.spec.documents import DocumentSourceSpec
from tokenshard.store import Store

PASSWORDS = {
    "encrypted/issue6010_1.pdf": "abc",
    "encrypted/issue6010_2.pdf": "æøå",
    "*/libreoffice-writer-password.pdf": "openpassword",
    "*/password-example.pdf": "test",
}


def items(path: str | Path, threads: int = 1, **fields: Any) -> dict[str, Sample | Reject]:
    """All pages of a source by key, planned and read as the engine does, on a source of its own each."""
    spec = DocumentSourceSpec(path=str(path), **fields)
    planner = open_document_source(spec)
    plan = pa.Table.from_batches(list(planner.plan()))
    reader = open_document_source(spec, state=json.loads(json.dumps(planner.state())))
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda thunk: thunk(), reader.read(plan)))
    assert [item.key for item in found] == plan.column("key").to_pylist()
    return {item.key: item for item in found}


def samples(path: str | Path, **fields: Any) -> list[Sample]:
    found = list(items(path, **fields).values())
    assert all(isinstance(item, Sample) for item in found), found
    return found  # type: ignore[return-value]


def test_every_page_is_an_input_with_its_text_and_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pages = [[Word("first", 72, 700)], [Word("second", 72, 700), Word("page", 120, 700)]]
    (tmp_path / "a" / "b.pdf").write_bytes(pdf(pages, title="Two pages"))
    one, two = samples(tmp_path)
    assert (one.key, two.key) == ("a/b.pdf#1", "a/b.pdf#2")
    assert (one.columns["document"], two.columns["page"], two.columns["pages"]) == ("a/b.pdf", 2, 2)
    assert (one.columns["title"], json.loads(one.columns["metadata"])) == ("Two pages", {"author": "Nobody"})
    assert (one.columns["page_width"], one.columns["page_height"], one.columns["page_rotation"]) == (612, 792, 0)
    assert (one.columns["text"], two.columns["text"]) == ("first", "second page")
    assert one.raw_bytes + two.raw_bytes == (tmp_path / "a" / "b.pdf").stat().st_size
    assert one.data.size == 0


@pytest.mark.parametrize(("rotate", "expected"), [(0, (0.25, 0.75)), (90, (0.25, 0.25)), (180, (0.75, 0.25))])
def test_words_are_where_they_are_seen_on_the_upright_page(
    tmp_path: Path, rotate: int, expected: tuple[float, float]
) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([[Word("i", 250, 250)]], size=(1000, 1000), rotate=rotate))
    (page,) = samples(tmp_path)
    assert page.text is not None
    assert page.text.boxes is not None
    left, top, right, bottom = page.text.boxes[0]
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx(expected, abs=0.01)


def test_images_have_as_many_pixels_as_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([[Word("dark", 72, 700)]]))
    (tmp_path / "b.png").write_bytes(png(400, 200))
    shapes = {page.key: page.data.shape for page in samples(tmp_path, render=True, page_pixels=20_000)}
    assert shapes == {"a.pdf#1": (160, 124, 3), "b.png#1": (100, 200, 3)}
    shapes = {page.key: page.data.shape for page in samples(tmp_path, render=True, dpi=36)}
    assert shapes == {"a.pdf#1": (396, 306, 3), "b.png#1": (200, 400, 3)}
    image = samples(tmp_path / "a.pdf", render=True, dpi=72)[0].data
    assert image[80:95, 70:95].min() < 100
    assert image[100:].min() == 255


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (9, 9, 9)).save(file, "PNG")
    return file.getvalue()


def test_page_ranges_choose_pages_of_each_document(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([[]] * 6))
    (tmp_path / "b.pdf").write_bytes(pdf([[]] * 2))
    assert list(items(tmp_path, pages="2,4-5,2")) == ["a.pdf#2", "a.pdf#4", "a.pdf#5", "b.pdf#2"]
    assert list(items(tmp_path, pages="5-")) == ["a.pdf#5", "a.pdf#6"]


@pytest.mark.parametrize("pages", ["0", "3-2", "a", "1,,2"])
def test_page_ranges_that_make_no_sense_are_refused(pages: str) -> None:
    with pytest.raises(ValueError, match="pages"):
        DocumentSourceSpec(path="x", pages=pages)


def test_a_page_without_text_needs_ocr_unless_it_is_blank(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([scan(64, 64), b"", [Word("text", 72, 72)]]))
    (tmp_path / "b.png").write_bytes(png(40, 20))
    assert [page.columns["needs_ocr"] for page in samples(tmp_path)] == [True, False, False, True]


def test_one_bad_page_does_not_lose_its_document(tmp_path: Path) -> None:
    good = pdf([[Word("one", 72, 72)], [Word("two", 72, 72)], [Word("three", 72, 72)]])
    (tmp_path / "a.pdf").write_bytes(good.replace(b"6 0 obj\n<< /Type /Page ", b"6 0 obj\n[ /Type /Page ", 1))
    found = items(tmp_path)
    assert [type(item) for item in found.values()] == [Sample, Reject, Sample]
    bad = found["a.pdf#2"]
    assert isinstance(bad, Reject)
    assert (bad.stage, bad.error) == ("decode", "PageDamaged")


def test_pictures_that_are_far_larger_than_their_page_are_rejected_undecoded(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([scan(800, 800), [Word("small", 72, 72)]]))
    found = items(tmp_path, max_pixels=500_000)
    assert isinstance(found["a.pdf#2"], Sample)
    bad = found["a.pdf#1"]
    assert isinstance(bad, Reject)
    assert bad.error == "PageTooLarge"
    assert "800 x 800" in bad.message


def test_limits_on_pages_text_and_bytes_make_rejects(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([[Word("some text", 72, 72)]] * 3))
    (tmp_path / "b.pdf").write_bytes(pdf([[Word("ok", 72, 72)]]))
    (tmp_path / "c.pdf").write_bytes(pdf([[Word("ok", 72, 72)]] * 9))
    found = items(tmp_path, max_pages=4, max_chars=5, max_bytes=2000)
    problems = {key: item.error for key, item in found.items() if isinstance(item, Reject)}
    assert problems == {"a.pdf#1": "PageTooLarge", "a.pdf#2": "PageTooLarge", "a.pdf#3": "PageTooLarge",
                        "c.pdf": "InputError"}  # fmt: skip
    assert "max_pages" in message(items(tmp_path, max_pages=4)["c.pdf"])


def message(item: Sample | Reject) -> str:
    assert isinstance(item, Reject)
    return item.message


def test_pages_that_take_too_long_to_draw_are_rejected(tmp_path: Path) -> None:
    curves = b"\n".join(b"0 %d m 612 0 0 792 612 %d c S" % (n % 792, n % 700) for n in range(60_000))
    (tmp_path / "a.pdf").write_bytes(pdf([curves, [Word("quick", 72, 72)]]))
    started = time.monotonic()
    found = items(tmp_path, render=True, max_seconds=0.05)
    assert time.monotonic() - started < 20
    assert message(found["a.pdf#1"]).endswith("drawing the page takes more than max_seconds (0.05)")
    assert isinstance(found["a.pdf#2"], Sample)


def test_documents_in_an_archive_are_read_from_where_they_lie_in_it(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, data in {"d/a.pdf": pdf([[Word("inside", 72, 72)]] * 2), "b.png": png(30, 20), "c.txt": b"?"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    found = samples(tmp_path)
    assert [page.key for page in found] == ["x.tar/d/a.pdf#1", "x.tar/d/a.pdf#2", "x.tar/b.png#1"]
    assert found[1].columns["text"] == "inside"
    whole, part = tmp_path / "x.tar", tmp_path / "y.tar"
    part.write_bytes(whole.read_bytes()[:1300])
    assert "damaged archive" in message(items(tmp_path)["y.tar"])


def test_documents_on_an_object_store_are_the_same(tmp_path: Path, s3_url: str) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([[Word("here", 72, 72)], [Word("and", 72, 72), Word("there", 100, 72)]]))
    Store(s3_url).put("docs/a.pdf", (tmp_path / "a.pdf").read_bytes())
    remote, local = samples(f"{s3_url}/docs"), samples(tmp_path)
    assert [(page.key, page.columns) for page in remote] == [(page.key, page.columns) for page in local]


def test_threads_share_documents(tmp_path: Path) -> None:
    for name in "abc":
        words = [[Word(f"{name}{page}", 72, 72)] for page in range(8)]
        (tmp_path / f"{name}.pdf").write_bytes(pdf(words))
    before = set(threading.enumerate())
    found = items(tmp_path, threads=8, render=True, page_pixels=10_000)
    assert set(threading.enumerate()) <= before
    texts = [item.columns["text"] for item in found.values() if isinstance(item, Sample)]
    assert texts == [f"{name}{page}" for name in "abc" for page in range(8)]


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.doc").write_bytes(b"?")
    with pytest.raises(SpecError, match="no documents found"):
        items(tmp_path)


# -- real files --------------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_all_real_documents_end_as_rows_or_rejects_with_the_right_reason(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDF_PASSWORDS", json.dumps(PASSWORDS))
    folder = data_dir / "documents"
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = items(folder, passwords_env="PDF_PASSWORDS", render=True, page_pixels=100_000, pages="1-4")
    after = resource.getrusage(resource.RUSAGE_SELF)
    rejects = {key: item.error for key, item in found.items() if isinstance(item, Reject)}
    assert rejects == {
        "broken/Pages-tree-refs.pdf#2": "PageDamaged",
        "broken/bug1606566.pdf": "PdfDamaged",
        "broken/empty.pdf": "PdfDamaged",
        "broken/hugemono.pdf#1": "PageTooLarge",
        "broken/invalid.pdf": "PdfDamaged",
        "broken/poppler-395-0-fuzzed.pdf": "PdfDamaged",
        "broken/poppler-742-0-fuzzed.pdf": "PdfDamaged",
        "broken/poppler-937-0-fuzzed.pdf#1": "PageDamaged",
    }
    documents = {key.partition("#")[0] for key in found}
    assert documents == {path.relative_to(folder).as_posix() for path in folder.rglob("*.pdf")}
    assert after.ru_utime - before.ru_utime < 0.25 * len(found) + 5
    assert after.ru_maxrss - before.ru_maxrss < 400 << 10  # KiB


@pytest.mark.data
def test_encrypted_documents_without_their_password_are_rejected(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data_dir / "documents" / "encrypted"
    with pytest.raises(SpecError, match="no usable input"):
        items(folder)
    (tmp_path / "passwords").write_text("test\n")
    found = items(folder, passwords_file=str(tmp_path / "passwords"))
    assert [key for key, item in found.items() if isinstance(item, Sample)] == [
        f"password-example.pdf#{page}" for page in range(1, 5)
    ]
    assert "does not open it" in message(found["issue6010_1.pdf"])
    with pytest.raises(SpecError, match="NO_SUCH is not set"):
        items(folder, passwords_env="NO_SUCH")


@pytest.mark.data
def test_filled_in_forms_are_drawn(data_dir: Path) -> None:
    (page,) = samples(data_dir / "documents" / "libreoffice-form.pdf", render=True, dpi=72)
    assert np.unique(page.data.reshape(-1, 3), axis=0).shape[0] > 20


def test_what_is_not_a_password_file_says_nothing_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([[]]))
    (tmp_path / "passwords").write_text('{"a.pdf": "secret"')
    with pytest.raises(SpecError, match="expected one password") as raised:
        items(tmp_path, passwords_file=str(tmp_path / "passwords"))
    assert "secret" not in str(raised.value)
