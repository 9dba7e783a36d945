"""Mistakes in trainings, and what trained models refuse: each is answered in one line that says what to do."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from integration.command import tokenshard_command
from tokenshard.cli.main import main
from tokenshard.errors import FormatError
from tokenshard.store import Store
from tokenshard.training.folder import load_model
from tokenshard.training.setting import Outcome
from training.conftest import CLASSES


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
        ("train classifier --data other-tokenizer --from MTM OUT", "holds ids of tokenizer .*convert with --tokenizer"),
        ("train classifier --data truncated --batch 8 OUT", r"data/.*parquet: .*(truncated|damaged|ends|bytes)"),
        ("train classifier --data TRAIN --size huge OUT", "model.size: .*'micro'.*got 'huge'"),
        ("train classifier --data TRAIN --set augment.noize=1 OUT", "augment.noize: unknown field; allowed: .*noise"),
        ("train classifier --data TRAIN --device cuda:77 OUT", "device 'cuda:77' cannot be used here"),
        ("train mtm --data TRAIN --grid 7x7 OUT", "7x7 codes is no multiple of the stride 2"),
        ("train mtm --data TRAIN --set model.stem=overlap OUT", "needs stem `patch`"),
        ("train mtm --data TRAIN --set augment.cutmix=1 OUT", "cutmix and augment.mixup mix classes"),
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
