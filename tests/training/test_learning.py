"""`train classifier` and `train mtm`: they learn, go on where they were stopped, and leave models that work alone."""

from __future__ import annotations

import csv
import importlib
import json
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

from integration.command import command_line
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
from training.conftest import CLASSES, classifier_job, draw, mtm_job, quiet


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


def test_figures_go_to_tensorboard_where_asked_for(tokens: Path, tmp_path: Path) -> None:
    event_file = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = {"every": 1, "checkpoint_every": 3, "tensorboard": True}
    train(classifier_job(tokens, tmp_path, steps=3, log=log), quiet)
    events = event_file.EventAccumulator(str(tmp_path / "training" / "tensorboard")).Reload()
    assert {"loss", "val_top1", "lr", "images_per_second", "loader_images_per_second"} <= set(events.Tags()["scalars"])
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows_of(tmp_path)]


def test_figures_go_to_weights_and_biases_where_asked_for(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = classifier_job(tokens, tmp_path / "out", steps=2, log={"every": 1, "wandb": "project"})
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    try:
        wandb: Any = importlib.import_module("wandb")
    except ImportError:
        with pytest.raises(SpecError, match=r"wandb is not installed; run: pip install 'tokenshard\[wandb\]'"):
            train(job, quiet)
        return
    train(job, quiet)
    assert wandb.run is None  # all is written
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


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
    with Image.open(out / "training" / "samples-00000200.png") as picture:
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


def test_parts_that_are_given_in_part_have_the_defaults_of_the_kind_of_job() -> None:
    fields = {"source": {"path": "x"}, "output": "y", "model": {"size": "micro"}, "augment": {"swap": 0.5}}
    job = build_job(TrainMtm, fields)
    assert (job.model.stem, job.augment.noise, job.augment.crop_scale, job.augment.swap) == ("patch", 0, (1, 1), 0.5)
    assert job.optimizer.betas == (0.9, 0.95)
    other = build_job(TrainClassifier, fields)
    assert (other.model.stem, other.augment.noise, other.model.model_fields_set) == ("overlap", 0.25, {"size"})


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
    assert outcome.metrics["val_top1"] > 0.7


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
