"""Other libraries get the samples of the loader: each adapter with the real library."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from shards.conftest import Rows
from tokenshard.errors import SpecError
from tokenshard.loading.adapters import Samples, TorchBatches, numpy_batches, to_hf
from tokenshard.loading.loader import TokenLoader
from tokenshard.loading.order import Shuffle
from tokenshard.shards.dataset import Dataset

Make = Callable[..., tuple[Dataset, list[Rows]]]
COUNTS = (300, 7, 193)
COLUMNS = ("codes", "key", "label")
MIXED = Shuffle(4, 2)


def loader_of(dataset: Dataset, shuffle: bool | Shuffle = MIXED, **options: Any) -> TokenLoader:
    return TokenLoader(dataset, 32, shuffle, 5, COLUMNS, rank=0, world=1, threads=1, **options)


def rows_of(batches: Iterable[dict[str, Any]]) -> list[tuple[str, int, list[Any]]]:
    return [
        (key, int(label), np.asarray(codes).tolist())
        for batch in batches
        for key, label, codes in zip(batch["key"], batch["label"], batch["codes"], strict=True)
    ]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("remainder", ["short", "drop", "spill"])
def test_workers_of_a_dataloader_hand_out_the_batches_of_the_loader(
    datasets: Make, workers: int, remainder: Any
) -> None:
    dataset, _ = datasets(*COUNTS)
    batches = TorchBatches(loader_of(dataset, remainder=remainder))
    torch_loader = DataLoader(batches, batch_size=None, num_workers=workers)
    alone = loader_of(dataset, remainder=remainder)
    for epoch in range(2):
        batches.set_epoch(epoch)
        found = list(torch_loader)
        expected = list(alone)
        assert len(found) == len(expected)
        assert rows_of(found) == rows_of(expected)
        assert all(batch["codes"].dtype == torch.uint16 for batch in found)


def test_workers_that_live_on_go_to_the_next_epoch_by_themselves(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS)
    torch_loader = DataLoader(TorchBatches(loader_of(dataset)), batch_size=None, num_workers=2, persistent_workers=True)
    alone = loader_of(dataset)
    for _ in range(3):
        assert rows_of(torch_loader) == rows_of(alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_dataloader_resumes_exactly(datasets: Make, workers: int) -> None:
    nodes = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    dataset, _ = datasets(*COUNTS)

    def make() -> Any:
        return nodes.StatefulDataLoader(TorchBatches(loader_of(dataset)), batch_size=None, num_workers=workers)

    whole = rows_of(loader_of(dataset))
    for stop in (1, 4, 7):
        first = make()
        iterator = iter(first)
        begun = rows_of(next(iterator) for _ in range(stop))
        state = json.loads(json.dumps(first.state_dict()))
        second = make()
        second.load_state_dict(state)
        assert begun + rows_of(second) == whole


def test_samples_are_a_map_style_dataset(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS)
    samples = pickle.loads(pickle.dumps(Samples(dataset, COLUMNS)))
    assert len(samples) == len(dataset)
    assert rows_of(DataLoader(samples, batch_size=32, num_workers=2)) == rows_of(loader_of(dataset, False))
    numbers = list(loader_of(dataset).sample_numbers())
    found = list(DataLoader(samples, batch_size=None, sampler=numbers, num_workers=2))
    assert rows_of(found) == rows_of(loader_of(dataset))
    assert found[0]["codes"].dtype == torch.uint16


@pytest.mark.parametrize("options", [{"varied": True}, {"codecs": ("pack", "context")}], ids=repr)
def test_samples_of_all_shapes_are_those_of_the_dataset(datasets: Make, options: dict[str, Any]) -> None:
    dataset, written = datasets(*COUNTS, **options)
    samples, expected = Samples(dataset), [sample for rows in written for sample in rows.samples()]
    assert all(np.array_equal(samples[n]["codes"], sample) for n, sample in enumerate(expected))
    assert [codes.tolist() for codes in samples[[5, -1]]["codes"]] == [expected[5].tolist(), expected[-1].tolist()]


def test_grain_reads_samples_as_a_data_source(datasets: Make) -> None:
    grain = pytest.importorskip("grain", reason="grain is not installed")
    dataset, _ = datasets(*COUNTS)
    source = Samples(dataset, COLUMNS)
    expected = rows_of(loader_of(dataset, False))
    in_order = grain.MapDataset.source(source).batch(32)
    assert rows_of(in_order) == expected
    shuffled = grain.MapDataset.source(source).shuffle(seed=3)
    assert sorted(row["key"] for row in shuffled) == [key for key, _, _ in expected]
    sampler = grain.samplers.IndexSampler(len(source), num_epochs=1)
    found = list(grain.DataLoader(data_source=source, sampler=sampler, worker_count=0))
    assert [row["key"] for row in found] == [key for key, _, _ in expected]


def test_hugging_face_datasets_stream_the_samples(datasets: Make) -> None:
    distributed = pytest.importorskip("datasets.distributed", reason="Hugging Face datasets is not installed")
    dataset, _ = datasets(*COUNTS)
    expected = rows_of(loader_of(dataset, False))
    stream = to_hf(dataset, COLUMNS)
    assert stream.num_shards == dataset.num_row_groups
    assert rows_of(stream.batch(32)) == expected
    halves = [distributed.split_dataset_by_node(stream, rank, 2) for rank in range(2)]
    assert sorted(row["key"] for half in halves for row in half) == [key for key, _, _ in expected]
    state_of = to_hf(dataset, COLUMNS)
    iterator = iter(state_of)
    first = [next(iterator)["key"] for _ in range(100)]
    again = to_hf(dataset, COLUMNS)
    again.load_state_dict(state_of.state_dict())
    assert first + [row["key"] for row in again] == [key for key, _, _ in expected]
    assert stream.features["codes"].dtype == "uint16"


def test_hugging_face_datasets_stream_samples_of_all_shapes(datasets: Make) -> None:
    pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    for options in ({"varied": True}, {"rank": 1, "varied": True}, {"codecs": ("pack", "context")}):
        dataset, written = datasets(*COUNTS, **options)
        expected = [sample.tolist() for rows in written for sample in rows.samples()]
        assert [np.asarray(row["codes"]).tolist() for row in to_hf(dataset)] == expected


def test_numpy_batches_are_the_tensors_of_the_loader(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS)
    found = list(numpy_batches(loader_of(dataset)))
    assert rows_of(found) == rows_of(loader_of(dataset))
    assert {type(found[0]["codes"]), type(found[0]["label"])} == {np.ndarray}


def test_unknown_columns_are_refused(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS)
    for make in (Samples, to_hf):
        with pytest.raises(SpecError, match="no column 'colour'; there are key"):
            make(dataset, ["colour"])
