"""`train classifier` and `train mtm`: they learn, go on where they were stopped, and leave models that work alone."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from integration.command import command_line, tokenshard_command
from tokenshard.cli.main import main
from tokenshard.errors import FormatError, SpecError
from tokenshard.shards.dataset import Dataset, open_dataset
from tokenshard.spec.job import TrainClassifier, TrainMtm, build_job
from tokenshard.store import Store
from tokenshard.training.classifier import logits_of
from tokenshard.training.codes import code_space, unigram_entropy
from tokenshard.training.evaluate import evaluate, predict, probe
from tokenshard.training.folder import load_model
from tokenshard.training.setting import Outcome
from tokenshard.training.start import train
from training.conftest import CLASSES, draw


def quiet(text: str) -> None:
    """Where nobody listens."""


def classifier_job(tokens: Path, out: Path, **changes: Any) -> TrainClassifier:
    fields: dict[str, Any] = {
        "source": {"path": str(tokens / "train"), "val": str(tokens / "val")},
        "output": str(out),
        "model": {"size": "micro"},
        "optimizer": {"lr": 2e-3, "ema": 0.9},
        "augment": {"cutmix": 0, "synonyms": 0, "swap": 0, "noise": 0, "crop_scale": [0.6, 1]},
        "batch": 16,
        "steps": 100,
        "log": {"every": 25, "checkpoint_every": 50},
    }
    job = build_job(TrainClassifier, {**fields, **changes})
    assert isinstance(job, TrainClassifier)
    return job


def mtm_job(tokens: Path, out: Path, **changes: Any) -> TrainMtm:
    fields: dict[str, Any] = {
        "source": {"path": str(tokens / "train"), "val": str(tokens / "val")},
        "output": str(out),
        "model": {"size": "micro", "stem": "patch"},
        "decoder": {"depth": 1},
        "optimizer": {"lr": 3e-3, "ema": 0.9},
        "batch": 16,
        "steps": 150,
        "samples": 5,
        "log": {"every": 50, "checkpoint_every": 150},
    }
    job = build_job(TrainMtm, {**fields, **changes})
    assert isinstance(job, TrainMtm)
    return job


@pytest.fixture(scope="module")
def classified(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("models") / "classifier"
    return out, train(classifier_job(tokens, out), quiet)


@pytest.fixture(scope="module")
def pretrained(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("models") / "mtm"
    return out, train(mtm_job(tokens, out), quiet)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def test_a_classifier_learns_and_leaves_a_model_metrics_and_hashes(
    classified: tuple[Path, Outcome], tokens: Path
) -> None:
    out, outcome = classified
    assert outcome.finished
    assert outcome.metrics["val_top1"] > 0.6  # three classes
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        *("README.md", "config.json", "model.safetensors", "shards.json")
    }
    assert {path.name for path in (out / "training").iterdir()} == {"metrics.csv", "metrics.jsonl"}
    rows = rows_of(out)
    assert [row["step"] for row in rows] == [1, 25, 50, 75, 100]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all({"images_per_second", "loader_images_per_second", "grad_norm", "lr"} <= row.keys() for row in rows)
    assert [row["step"] for row in rows if "val_top1" in row] == [50, 100]
    table = list(csv.DictReader((out / "training" / "metrics.csv").open()))
    assert float(table[-1]["val_top1"]) == rows[-1]["val_top1"]
    config = json.loads((out / "config.json").read_text())
    assert tuple(config["names"]) == CLASSES
    listed = json.loads((out / "shards.json").read_text())["datasets"]
    assert [entry["part"] for entry in listed] == ["train", "val"]
    manifest = open_dataset(tokens / "train").manifest
    assert listed[0]["fingerprint"] == manifest.fingerprint
    assert [shard["sha256"] for shard in listed[0]["shards"]] == [shard.sha256 for shard in manifest.shards]
    assert manifest.fingerprint[:16] in (out / "README.md").read_text()


def test_a_finished_run_is_left_alone_and_one_with_other_options_is_refused(
    classified: tuple[Path, Outcome], tokens: Path
) -> None:
    out, _ = classified
    said: list[str] = []
    before = (out / "config.json").stat().st_mtime_ns
    assert train(classifier_job(tokens, out), said.append).finished
    assert "nothing was done" in said[0]
    assert (out / "config.json").stat().st_mtime_ns == before
    with pytest.raises(SpecError, match="trained otherwise; choose another output folder"):
        train(classifier_job(tokens, out, steps=101), quiet)


@pytest.mark.parametrize("kind", [classifier_job, mtm_job])
def test_a_run_that_is_stopped_in_the_middle_of_an_epoch_goes_on_to_the_same_weights(
    kind: Any, tokens: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"steps": 15, "model": {"size": "micro", "stem": "patch", "dropout": 0.1}}  # 6 an epoch
    log = {"every": 5, "checkpoint_every": 4}
    assert train(kind(tokens, tmp_path / "straight", log=log, **options), quiet).finished
    out = tmp_path / "parts"
    stopped = train(kind(tokens, out, log=log, engine={"max_minutes": 0}, **options), quiet)
    assert not stopped.finished
    assert (out / "training" / "state.json").exists()
    said: list[str] = []
    while not train(kind(tokens, out, log=log, engine={"max_minutes": 0}, **options), said.append).finished:
        assert len(said) < 100
    assert any(line.startswith("going on from step") for line in said)
    straight, parts = weights_of(tmp_path / "straight"), weights_of(out)
    assert all(torch.equal(straight[name], parts[name]) for name in straight)
    assert [row["step"] for row in rows_of(out)] == sorted({row["step"] for row in rows_of(out)})
    assert not (out / "training" / "state.json").exists()


def test_a_state_of_another_job_and_a_damaged_one_are_refused(tokens: Path, tmp_path: Path) -> None:
    now = {"max_minutes": 0}
    train(classifier_job(tokens, tmp_path, engine=now), quiet)
    with pytest.raises(SpecError, match=r"state\.json: belongs to a run with other options"):
        train(classifier_job(tokens, tmp_path, seed=1), quiet)
    state = next((tmp_path / "training").glob("state-*.safetensors"))
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"state\.json: damaged .*remove it to train anew"):
        train(classifier_job(tokens, tmp_path), quiet)


@pytest.mark.integration
def test_a_run_that_is_killed_three_times_goes_on_to_the_same_weights(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def command(out: Path, steps: int = 24) -> list[str]:
        words = ("--data", str(tokens / "train"), "--size", "micro", "--batch", "16", "--steps", str(steps))
        logs = ("--device", "cpu", "--checkpoint-every", "1", "--log-every", "1", "--set", "model.drop_path=0.1")
        return command_line("train", "classifier", str(out), *words, *logs)

    def step(out: Path) -> int:
        try:
            return int(json.loads((out / "training" / "state.json").read_text())["step"])
        except FileNotFoundError:
            return 0

    killed = tmp_path / "killed"
    for wanted in (3, 5, 11):  # two in one epoch of 6 steps
        running = subprocess.Popen(command(killed), stderr=subprocess.DEVNULL)
        while step(killed) < wanted and running.poll() is None:
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        assert not (killed / "config.json").exists()
    resumed = subprocess.run(command(killed), capture_output=True, text=True, check=True)
    assert "going on from step" in resumed.stderr
    subprocess.run(command(tmp_path / "straight"), capture_output=True, check=True)
    one, other = weights_of(killed), weights_of(tmp_path / "straight")
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [[(row["step"], row["loss"]) for row in rows_of(out)] for out in (killed, tmp_path / "straight")]
    assert losses[0] == losses[1]


def test_the_model_gives_the_same_logits_in_a_fresh_process_without_pickle(
    classified: tuple[Path, Outcome], tokens: Path, tmp_path: Path
) -> None:
    out, _ = classified
    ids = torch.from_numpy(np.asarray(open_dataset(tokens / "val").codes(range(8))).astype(np.int64))[:, None]
    module: Any = load_model(Store(out)).module
    with torch.inference_mode():
        mine = logits_of(module, ids)
    np.save(tmp_path / "ids.npy", ids.numpy())
    code = f"""
import pickle, numpy as np, torch
def refuse(*arguments, **options):
    raise AssertionError("a pickle is read")
pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
from tokenshard.store import Store
from tokenshard.training.classifier import logits_of
from tokenshard.training.folder import load_model
torch.set_num_threads(1)
with torch.inference_mode():
    found = logits_of(load_model(Store({str(out)!r})).module, torch.from_numpy(np.load({str(tmp_path / "ids.npy")!r})))
np.save({str(tmp_path / "logits.npy")!r}, found.numpy())
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (torch.from_numpy(np.load(tmp_path / "logits.npy")) - mine).abs().max() <= 1e-6


def test_predict_tokenizes_and_classifies_images(classified: tuple[Path, Outcome]) -> None:
    model = load_model(Store(classified[0]))
    tokenizer = model.tokenizer()
    right = 0
    for name in CLASSES:
        for number in range(200, 210):
            best = predict(model, tokenizer, draw(name, number))
            assert [one["name"] for one in best] == [CLASSES[one["class"]] for one in best]
            assert sum(one["probability"] for one in best) == pytest.approx(1)
            right += best[0]["name"] == name
    assert right > 18


def test_evaluation_gives_the_figures_of_the_run(classified: tuple[Path, Outcome], tokens: Path) -> None:
    out, outcome = classified
    found = evaluate(load_model(Store(out)), open_dataset(tokens / "val"), batch=7)
    assert found["num_samples"] == 48
    assert found["top1"] == pytest.approx(outcome.metrics["val_top1"])
    assert found["loss"] == pytest.approx(outcome.metrics["val_loss"], abs=1e-5)


def test_masked_modeling_starts_at_ln_v_learns_and_draws_images(pretrained: tuple[Path, Outcome], tokens: Path) -> None:
    out, outcome = pretrained
    rows = rows_of(out)
    assert rows[0]["loss"] == pytest.approx(np.log(32), abs=0.1)
    assert rows[0]["bits_per_token"] == pytest.approx(rows[0]["loss"] / np.log(2), rel=1e-5)
    assert outcome.metrics["val_bits_per_token"] < unigram_entropy(open_dataset(tokens / "train")) - 0.1
    with Image.open(out / "training" / "samples-00000150.png") as picture:
        assert picture.size == (3 * 32, 2 * 32)  # five images in a square of three a row
        assert len(set(picture.getdata())) > 20
    found = evaluate(load_model(Store(out)), open_dataset(tokens / "val"), batch=16)
    assert found["bits_per_token"] == pytest.approx(outcome.metrics["val_bits_per_token"], abs=1e-4)


def test_the_references_of_the_loss_are_said(tokens: Path, tmp_path: Path) -> None:
    said: list[str] = []
    train(mtm_job(tokens, tmp_path, steps=1, samples=0), said.append)
    dataset = open_dataset(tokens / "train")
    counts = np.bincount(np.concatenate([np.asarray(codes).ravel() for codes in dataset.iter_codes()]))
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log2(share)).sum())
    assert unigram_entropy(dataset) == pytest.approx(entropy)
    assert f"5.00 where all codes are equally likely (ln: 3.47), {entropy:.2f} by their frequency" in said[0]


@pytest.mark.parametrize("head", ["tied", "two-level", "vq-logits"])
def test_every_head_is_saved_and_loaded(head: str, tokens: Path, tmp_path: Path) -> None:
    decoder = {"depth": 1, "head": head, "clusters": 8}
    outcome = train(mtm_job(tokens, tmp_path, steps=2, samples=0, decoder=decoder), quiet)
    found = evaluate(load_model(Store(tmp_path)), open_dataset(tokens / "val"), batch=16)
    assert found["loss"] == pytest.approx(outcome.metrics["val_loss"], abs=1e-5)


def test_augmented_vectors_become_codes_again_for_masked_modeling(tokens: Path, tmp_path: Path) -> None:
    augment = {"crop_scale": [0.5, 1.0], "synonyms": 0.2, "noise": 0, "swap": 0, "cutmix": 0}
    model = {"size": "micro", "stem": "patch", "grid": [6, 4]}
    outcome = train(mtm_job(tokens, tmp_path, steps=3, augment=augment, model=model), quiet)
    assert outcome.finished
    assert load_model(Store(tmp_path)).encoder.config.positions == (3, 2)


def test_residual_codes_are_learned_by_their_sum_and_by_level(residual_tokens: Path, tmp_path: Path) -> None:
    space = code_space(open_dataset(residual_tokens))
    assert (space.alphabets, space.grid) == ((16, 16, 16), (8, 8))
    for head, name in (("auto", "summed"), ("tied", "tied")):
        job = mtm_job(residual_tokens, tmp_path / head, steps=4, decoder={"depth": 1, "head": head})
        summed = {"schedule": "cosine", "low": 0, "drop": 0}
        source = {"path": str(residual_tokens)}
        job = build_job(TrainMtm, {**job.model_dump(), "source": source, "mask": summed})  # type: ignore[assignment]
        assert train(job, quiet).finished
        assert load_model(Store(tmp_path / head)).document.model["head"] == name
        assert (tmp_path / head / "training" / "samples-00000004.png").exists()


def test_a_classifier_begins_with_the_encoder_of_a_masked_model(
    pretrained: tuple[Path, Outcome], tokens: Path, tmp_path: Path
) -> None:
    start = {"start": str(pretrained[0]), "model": {}}
    train(classifier_job(tokens, tmp_path / "one", steps=1, optimizer={"lr": 1e-12}, **start), quiet)
    mine, theirs = load_model(Store(tmp_path / "one")).encoder, load_model(Store(pretrained[0])).encoder
    for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name
    assert mine.config.stem == "patch"
    decayed = {"lr": 2e-3, "layer_decay": 0.8, "ema": 0.9}
    outcome = train(classifier_job(tokens, tmp_path / "two", optimizer=decayed, **start), quiet)
    assert outcome.metrics["val_top1"] > 0.5


@pytest.mark.parametrize("kind", ["knn", "linear", "attentive"])
def test_probes_learn_from_shards_alone(kind: Any, classified: tuple[Path, Outcome], tokens: Path) -> None:
    model = load_model(Store(classified[0]))
    ds, val = open_dataset(tokens / "train"), open_dataset(tokens / "val")
    found = probe(model, ds, val, kind, layer=4 if kind == "attentive" else None, neighbours=5, batch=32, epochs=20)
    assert found["top1"] > 0.5
    assert 0 <= found["layer"] <= 4


def test_neighbours_with_shuffled_labels_are_at_chance(classified: tuple[Path, Outcome], tokens: Path) -> None:
    from tokenshard.training.probe import Features, knn_accuracy, read_features
    from tokenshard.training.setting import held_out_loader

    encoder = load_model(Store(classified[0])).encoder
    sets: list[Dataset] = [open_dataset(tokens / "train"), open_dataset(tokens / "val")]
    mine, other = (
        read_features(encoder, held_out_loader(one, 32, ("label",), None, None), "label", [4]) for one in sets
    )
    scores = []
    for seed in range(10):
        order = torch.randperm(len(mine.y), generator=torch.Generator().manual_seed(seed))
        scores.append(knn_accuracy(Features(mine.x, mine.y[order]), other, 5, 3))
    assert np.mean(scores) == pytest.approx(1 / 3, abs=0.1)
    assert knn_accuracy(mine, other, 5, 3) > max(scores)


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mistaken(
    pictures: Path, tokens: Path, classified: tuple[Path, Outcome], pretrained: tuple[Path, Outcome]
) -> dict[str, Path]:
    """Datasets and models by the names that mistakes below have for them."""
    from tokenshard.api import convert_images
    from training.conftest import converted

    renamed = pictures / "renamed"
    shutil.copytree(pictures / "val", renamed)
    (renamed / "rings").rename(renamed / "circles")
    fitted = str(next((tokens / "train" / "tokenizer").iterdir()))
    converted(renamed, pictures / "other-classes", fitted)
    converted(pictures / "val", pictures / "other-tokenizer", "patch:4x4,k=16")
    convert_images(pictures / "val", pictures / "no-labels", fitted, source={"labels": "none"}, engine={"workers": 0})
    shutil.copytree(tokens / "train", pictures / "truncated")
    shard = next((pictures / "truncated" / "data").iterdir())
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    places = {name: pictures / name for name in ("other-classes", "other-tokenizer", "no-labels", "truncated")}
    return {**places, "TRAIN": tokens / "train", "VAL": tokens / "val", "MTM": pretrained[0], "MODEL": classified[0]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train classifier --data no-labels OUT", "no column 'label' to learn from; convert with --labels"),
        (
            "train classifier --data TRAIN --classes 2 OUT",
            "goes from 0 to 2, .*fit 2 classes; give --classes 3",
        ),
        (
            "train classifier --data TRAIN --val other-tokenizer OUT",
            "its tokenizer is .*convert it with --tokenizer",
        ),
        ("train classifier --data TRAIN --val other-classes OUT", "class 0 is 'circles', in .* it is 'horizontal'"),
        ("train classifier --data TRAIN --batch 500 OUT", "96 samples do not fill a batch of 500; give --batch 96"),
        (
            "train classifier --data TRAIN --from MTM --size small OUT",
            "another model: its width is 96, not 384; leave",
        ),
        ("train classifier --data other-tokenizer --from MTM OUT", "reads ids of tokenizer .*convert with --tokenizer"),
        ("train classifier --data truncated --batch 8 OUT", r"data/.*parquet: .*(truncated|damaged|ends|bytes)"),
        ("train classifier --data TRAIN --size huge OUT", "model.size: .*'micro'.*got 'huge'"),
        ("train classifier --data TRAIN --set augment.noize=1 OUT", "augment.noize: unknown field; allowed: .*noise"),
        ("train classifier --data TRAIN --device cuda:77 OUT", "device 'cuda:77' cannot be used here"),
        ("train mtm --data TRAIN --grid 7x7 OUT", "7x7 codes is no multiple of the stride 2"),
        ("train mtm --data TRAIN --set model.stem=overlap OUT", "needs stem `patch`"),
        ("train mtm --data TRAIN --set mask.drop=0.9 OUT", "drop <= low"),
        ("eval MODEL --data other-tokenizer", "holds ids of tokenizer .*convert with --tokenizer"),
        ("eval MODEL --data other-classes", "class 0 is 'circles'"),
        ("eval TRAIN --data VAL", "no trained model here"),
        ("predict MTM photos", "holds a model of kind 'mtm'; a 'classifier' one is needed"),
        ("probe MTM --data TRAIN --val VAL --layer 9", "has 4 blocks; --layer must be from 0 to 4, or all"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    words: str, message: str, mistaken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {**mistaken, "OUT": tmp_path / "out"}
    with pytest.raises(SystemExit) as stopped:
        main([str(places.get(word, word)) for word in words.split()])
    assert stopped.value.code == (1 if "truncated" in words else 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("tokenshard: ", "Error: "))]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.integration
def test_the_commands_print_what_they_found_as_json(mistaken: dict[str, Path], pictures: Path) -> None:
    def answer(*words: str) -> str:
        done = tokenshard_command(*words, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        return done.stdout

    model, val = str(mistaken["MODEL"]), str(mistaken["VAL"])
    assert json.loads(answer("eval", model, "--data", val, "--json"))["num_samples"] == 48
    words = ("--data", str(mistaken["TRAIN"]), "--val", val, "--kind", "knn", "--json")
    assert json.loads(answer("probe", model, *words))["top1"] > 0.5
    lines = answer("predict", model, str(pictures / "val"), "--json").splitlines()
    assert len(lines) == 48
    assert {json.loads(line)["classes"][0]["name"] for line in lines} <= set(CLASSES)


def test_a_damaged_model_is_refused(classified: tuple[Path, Outcome], tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(classified[0], copy)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(FormatError, match=r"model\.safetensors: SHA-256 differs"):
        load_model(Store(copy))
    weights.write_bytes((classified[0] / "model.safetensors").read_bytes())
    config = json.loads((copy / "config.json").read_text())
    for change in ({"depth": 5}, {"width": 16384, "heads": 1}, {"alphabets": [1 << 40]}, {"grid": [4096, 4096]}):
        wrong = {**config, "model": {**config["model"], "encoder": {**config["model"]["encoder"], **change}}}
        (copy / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(FormatError, match="do not fit each other"):
            load_model(Store(copy))
    (copy / "config.json").write_text(json.dumps({**config, "format_version": 2}))
    with pytest.raises(FormatError, match="needs a newer tokenshard"):
        load_model(Store(copy))
