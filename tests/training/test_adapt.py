"""`train adapt`: codes of flipped and cropped images without pixels, for every trainer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokenshard.errors import SpecError
from tokenshard.shards.dataset import open_dataset
from tokenshard.spec.job import TrainAdapt, build_job
from tokenshard.store import Store
from tokenshard.tokenizers.folder import tokenizer_from
from tokenshard.training.evaluate import evaluate
from tokenshard.training.folder import load_model
from tokenshard.training.models.adapter import AdapterConfig, TokenAdapter
from tokenshard.training.pairs import moved_images
from tokenshard.training.setting import Outcome
from tokenshard.training.start import train
from training.conftest import CLASSES, adapt_job, classifier_job, converted, draw, mtm_job, quiet


@pytest.fixture(scope="module")
def adapted(tokens: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """An adapter that learned flips and crops from 96 images, 3 views each."""
    out = tmp_path_factory.mktemp("adapter")
    job = adapt_job(tokens, pictures, out)
    source = {**job.source.model_dump(), "crops": 2}
    return out, train(build_job(TrainAdapt, {**job.model_dump(), "source": source, "steps": 250}), quiet)


def adapter_of(out: Path) -> TokenAdapter:
    module = load_model(Store(out), "adapt").module
    assert isinstance(module, TokenAdapter)
    return module


def test_its_flips_agree_with_codes_of_flipped_images_far_better_than_flipped_grids(
    adapted: tuple[Path, Outcome], tokens: Path
) -> None:
    """Also of images that it never saw, encoded here."""
    tokenizer = tokenizer_from(*open_dataset(tokens / "train").tokenizer_files())
    images = np.stack([draw(name, number) for name in CLASSES for number in range(300, 320)])
    ids, wanted = (
        torch.from_numpy(tokenizer.encode(np.ascontiguousarray(one)).astype(np.int64))
        for one in (images, images[:, :, ::-1])
    )
    found = adapter_of(adapted[0]).moved(ids, torch.ones(len(ids), dtype=torch.bool))
    right, plain = float((found == wanted).float().mean()), float((ids.flip(3) == wanted).float().mean())
    assert right >= plain + 0.1
    metrics = adapted[1].metrics
    assert metrics["val_flip"] == pytest.approx(right, abs=0.1)
    assert metrics["val_flip_grid"] == pytest.approx(plain, abs=0.1)
    assert metrics["val_crop"] >= metrics["val_crop_grid"] + 0.05


def test_the_folder_of_an_adapter_is_small_and_complete(adapted: tuple[Path, Outcome]) -> None:
    out, outcome = adapted
    assert outcome.finished
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        *("README.md", "config.json", "model.safetensors", "shards.json")
    }
    assert {path.name for path in (out / "training").iterdir()} == {"metrics.csv", "metrics.jsonl"}
    weights = sum(tensor.numel() for tensor in adapter_of(out).state_dict().values())
    size = (out / "model.safetensors").stat().st_size
    assert size == pytest.approx(2 * weights, rel=0.05)
    assert f"in {size:,} bytes" in (out / "README.md").read_text()


def test_a_move_is_that_of_the_map() -> None:
    torch.manual_seed(0)
    config = AdapterConfig(
        alphabets=(16, 8), dim=4, embedding="learned", grid=(4, 6), width=32, depth=1, channels=3, crops=True
    )
    module = TokenAdapter(config).eval()
    with torch.no_grad():
        module.positions.zero_()
        for part in (module.before, module.behind):
            for block in part:
                block.attention.out.weight.zero_()
    ids = torch.randint(0, 8, (3, 2, 4, 6))
    ids[:, :, 0, 0] = ids[:, :, 2, 5] = 3
    flips = torch.tensor([True, False, True])
    whole = torch.tensor([[0, 0, 4, 6]]).expand(3, 4)
    moved = module(ids, flips)
    assert torch.allclose(moved, module(ids, flips, whole), atol=1e-5)
    # without neighbours and positions a place gets what its own codes make of it: equal ones the same
    places = moved.view(3, 4, 6, -1)
    for sample, columns in ((0, (5, 0)), (1, (0, 5)), (2, (5, 0))):
        assert torch.allclose(places[sample, 0, columns[0]], places[sample, 2, columns[1]], atol=1e-6)
    corner = torch.tensor([[2, 3, 2, 3]]).expand(3, 4)
    assert not torch.allclose(module(ids, flips, corner), moved, atol=1e-3)
    assert module.moved(ids, flips, corner).shape == ids.shape


def test_views_of_images_are_boxes_of_whole_codes_resized_and_flipped() -> None:
    image = draw("rings", 0)
    boxes = np.array([[0, 0, 8, 8], [2, 4, 4, 4]])
    flipped, cropped = moved_images(image, boxes, np.array([True, False]), (8, 8))
    assert (flipped == image[:, ::-1]).all()
    wanted = np.asarray(Image.fromarray(image[8:24, 16:32]).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs(cropped.astype(int) - wanted.astype(int)).max() <= 2


def test_flips_are_learned_from_a_dataset_of_flipped_images(tokens: Path, pictures: Path, tmp_path: Path) -> None:
    for path in (pictures / "train").rglob("*.png"):
        place = tmp_path / "flipped" / path.relative_to(pictures / "train")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(place)
    fitted = str(next((tokens / "train" / "tokenizer").iterdir()))
    flipped = converted(tmp_path / "flipped", tmp_path / "tokens", fitted)
    source = {"path": str(tokens / "train"), "flipped": str(flipped), "crops": 0}
    outcome = train(adapt_job(tokens, pictures, tmp_path / "out", source=source), quiet)
    assert outcome.metrics["val_flip"] >= outcome.metrics["val_flip_grid"] + 0.1
    assert "val_crop" not in outcome.metrics
    assert not adapter_of(tmp_path / "out").config.crops


def test_a_stopped_training_goes_on_to_the_same_adapter_without_the_images(
    tokens: Path, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures / "train", tmp_path / "images")
    options: dict[str, Any] = {"steps": 15, "log": {"every": 5, "checkpoint_every": 4}}
    straight = train(adapt_job(tokens, pictures, tmp_path / "straight", **options), quiet)
    source = {"path": str(tokens / "train"), "images": str(tmp_path / "images"), "crops": 1}
    out = tmp_path / "parts"
    assert not train(
        adapt_job(tokens, pictures, out, source=source, engine={"max_minutes": 0}, **options), quiet
    ).finished
    shutil.rmtree(tmp_path / "images")
    parts = train(adapt_job(tokens, pictures, out, source=source, **options), quiet)
    assert parts.fingerprint == straight.fingerprint != ""


@pytest.mark.parametrize("kind", [classifier_job, mtm_job])
def test_every_trainer_augments_with_it_and_counts_its_bytes(
    kind: Any, adapted: tuple[Path, Outcome], tokens: Path, tmp_path: Path
) -> None:
    off = {"cutmix": 0, "synonyms": 0, "swap": 0, "noise": 0, "crop_scale": [1, 1]}
    losses = []
    for name, adapt in (("with", {"adapt": str(adapted[0]), "adapt_share": 1}), ("without", {})):
        job = kind(tokens, tmp_path / name, augment={**off, **adapt}, steps=1)
        losses.append(train(job, quiet).metrics["loss"])
    assert losses[0] != losses[1]
    counted = json.loads((tmp_path / "with" / "shards.json").read_text())["adapter"]
    assert counted["bytes"] == (adapted[0] / "model.safetensors").stat().st_size
    assert counted["sha256"] == load_model(Store(adapted[0])).document.weights_sha256
    assert f"adapter: {counted['bytes']:,} bytes" in (tmp_path / "with" / "README.md").read_text()
    assert "adapter" not in json.loads((tmp_path / "without" / "shards.json").read_text())


def test_an_adapter_for_other_ids_or_grids_and_other_uses_of_it_are_refused(
    adapted: tuple[Path, Outcome], classified: tuple[Path, Outcome], pictures: Path, tokens: Path, tmp_path: Path
) -> None:
    use = {"augment": {"adapt": str(adapted[0])}}
    other = converted(pictures / "val", tmp_path / "other", "patch:4x4,k=16")
    source = {"path": str(other)}
    with pytest.raises(SpecError, match=r"holds ids of tokenizer .*convert with --tokenizer"):
        train(classifier_job(tokens, tmp_path / "out", source=source, **use), quiet)
    source = {"path": str(tokens / "train"), "crop": [4, 4]}
    with pytest.raises(SpecError, match=r"adapts grids of 8x8 codes, those of .* are 4x4; train an adapter"):
        train(classifier_job(tokens, tmp_path / "out", source=source, **use), quiet)
    with pytest.raises(SpecError, match="holds a model of kind 'classifier'; a 'adapt' one is needed"):
        train(classifier_job(tokens, tmp_path / "out", augment={"adapt": str(classified[0])}), quiet)
    with pytest.raises(SpecError, match="holds an adapter, which is for --adapt"):
        evaluate(load_model(Store(adapted[0])), open_dataset(tokens / "val"))
    flipped = {"path": str(tokens / "train"), "flipped": str(tokens / "val"), "crops": 0}
    with pytest.raises(SpecError, match=r"has none of the keys of .*keep their names"):
        train(adapt_job(tokens, pictures, tmp_path / "out", source=flipped), quiet)
    Image.fromarray(draw("rings", 0)[:16]).save(tmp_path / "small.png")
    small = {"path": str(tokens / "train"), "images": str(tmp_path / "small.png")}
    with pytest.raises(SpecError, match="none of its images has 8x8 codes"):
        train(adapt_job(tokens, pictures, tmp_path / "out", source=small), quiet)
    for fields, message in (
        ({}, "learns from images or from flipped"),
        ({"flipped": "x"}, "shows no crops: set crops to 0"),
    ):
        with pytest.raises(SpecError, match=message):
            build_job(TrainAdapt, {"source": {"path": "t", **fields}, "output": "o"})
