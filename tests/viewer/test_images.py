"""Samples, codes, codebook, storage and rates of a dataset of pictures are those of the dataset itself."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tokenshard
from tokenshard.report.quality import psnr
from tokenshard.spec.job import JOB_KINDS, build_job
from viewing import CLASSES, LOCAL, Browser


def pixels(browser: Browser, path: str) -> NDArray[np.uint8]:
    reply = browser.ask(f"/api/{path}")
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(reply.body)).convert("RGB"))


@pytest.fixture(scope="module")
def dataset(pictures: Path) -> Any:
    return tokenshard.open(pictures)


@pytest.fixture(scope="module")
def codes(dataset: Any) -> NDArray[Any]:
    return np.asarray(dataset.codes(range(len(dataset))))


# -- samples ----------------------------------------------------------------------------------------------------------


def test_pages_follow_each_other_to_the_end(browser: Browser, dataset: Any) -> None:
    keys, at = [], 0
    while at is not None:
        page = browser.get(f"samples?from={at}&count=100")
        keys += [sample["key"] for sample in page["samples"]]
        at = page["next"]
    assert keys == dataset.table(["key"])["key"].to_pylist()
    assert page["total"] == 240


def test_samples_are_found_by_the_begin_or_a_part_of_their_key(browser: Browser, dataset: Any) -> None:
    keys = dataset.table(["key"])["key"].to_pylist()
    for wanted, contains in (("cat/", ""), ("ship/00", ""), ("7.png", "1"), ("t/01", "1"), ("nothing", ""), ("é", "1")):
        found = browser.get(f"samples?count=200&key={quote(wanted)}&contains={contains}")
        expected = [key for key in keys if (wanted in key if contains else key.startswith(wanted))]
        assert [sample["key"] for sample in found["samples"]] == expected
        assert found["next"] is None


def test_a_page_of_found_samples_goes_on_where_the_last_one_ended(browser: Browser, dataset: Any) -> None:
    labels = dataset.table(["label"])["label"].to_pylist()
    found, at = [], 0
    while at is not None:
        page = browser.get(f"samples?count=7&from={at}&where=label+%3D%3D+1")
        found += [sample["number"] for sample in page["samples"]]
        assert all(sample["labels"]["label"] == CLASSES[1] for sample in page["samples"])
        at = page["next"]
    assert found == [number for number, label in enumerate(labels) if label == 1]


def test_key_and_columns_are_asked_together(browser: Browser) -> None:
    found = browser.get("samples?count=200&key=0&contains=1&where=label+in+[0,2]+and+key+%3E+'c'")["samples"]
    assert {sample["labels"]["label"] for sample in found} == {"ship"}
    assert len(found) == 80


def test_a_sample_is_looked_up_by_its_key(browser: Browser, dataset: Any) -> None:
    key = dataset[77]["key"]
    assert browser.get(f"keys?key={quote(key)}") == {"key": key, "number": 77}


def test_a_sample_shows_its_columns_and_what_its_label_means(browser: Browser, dataset: Any) -> None:
    found = browser.get("samples/90")
    values = {column["name"]: column["value"] for column in found["columns"]}
    assert values == {name: value for name, value in dataset[90].items() if name != "codes"}
    [label] = [column for column in found["columns"] if column["role"] == "label"]
    assert label["means"] == CLASSES[label["value"]]
    assert found["codes"] == {"levels": 1, "grid": [8, 8], "ids": 64}


def test_pictures_are_what_the_ids_decode_to(browser: Browser, dataset: Any, codes: NDArray[Any]) -> None:
    decoded = dataset.tokenizer.decode(codes[:, None], (32, 32))
    browser.get("samples?from=96&count=48")
    for number in (0, 49, 50, 100, 239):
        for kind in ("picture", "thumbnail"):
            assert np.array_equal(pixels(browser, f"samples/{number}/{kind}.png"), decoded[number])


def test_a_download_has_a_name_that_every_system_takes(browser: Browser) -> None:
    key = browser.get("samples/100")["key"]
    name = browser.ask("/api/samples/100/picture.png?download=1").headers["content-disposition"]
    assert name == f'attachment; filename="{key.replace("/", "-")}.png"'
    assert browser.ask("/api/samples/100/codes.png?download=1").headers["content-disposition"].endswith('-codes-0.png"')


# -- codes ------------------------------------------------------------------------------------------------------------


def test_codes_of_a_sample_come_with_their_ranks(browser: Browser, codes: NDArray[Any]) -> None:
    found = browser.get("samples/17/codes")
    counts = np.bincount(codes.ravel(), minlength=64)
    order = sorted(range(64), key=lambda code: (-counts[code], code))
    assert found["shape"] == [8, 8]
    assert found["ids"] == codes[17].ravel().tolist()
    assert found["counted"] == {"samples": 240, "of": 240, "ids": codes.size}
    assert {one["code"]: one["times"] for one in found["codes"]} == Counter(codes[17].ravel().tolist())
    for one in found["codes"]:
        assert (one["count"], one["rank"]) == (counts[one["code"]], order.index(one["code"]))


def test_a_picture_of_codes_has_one_colour_for_each(browser: Browser, codes: NDArray[Any]) -> None:
    for by in ("id", "rank"):
        shown = pixels(browser, f"samples/17/codes.png?by={by}")
        assert shown.shape == (8, 8, 3)
        colours = {code: shown[codes[17] == code] for code in np.unique(codes[17])}
        assert all((found == found[0]).all() for found in colours.values())
        assert len({tuple(found[0]) for found in colours.values()}) == len(colours)


def test_the_codebook_is_listed_by_use_with_a_picture_of_each(browser: Browser, dataset: Any, codes: Any) -> None:
    counts = np.bincount(codes.ravel(), minlength=64)
    found = browser.get("codebook/0?order=most&count=256")
    assert [one["count"] for one in found["codes"]] == sorted(counts.tolist(), reverse=True)
    assert found["used"] == np.count_nonzero(counts)
    least = browser.get("codebook/0?order=least&count=256")
    assert [one["code"] for one in least["codes"]] == [one["code"] for one in found["codes"]][::-1]
    strip = pixels(browser, "codebook/0/strip.png?order=most&count=256")
    alone = dataset.tokenizer.decode(np.array([one["code"] for one in found["codes"]]).reshape(-1, 1, 1, 1))
    assert np.array_equal(strip.reshape(alone.shape), alone)


def test_a_code_names_its_samples_and_its_neighbours(browser: Browser, dataset: Any, codes: NDArray[Any]) -> None:
    code = int(np.bincount(codes.ravel()).argmax())
    found = browser.get(f"codebook/0/{code}")
    times = [int((sample == code).sum()) for sample in codes]
    assert [place["times"] for place in found["samples"]] == sorted(times, reverse=True)[:12]
    for place in found["samples"]:
        assert times[place["number"]] == place["times"]
        assert dataset[place["number"]]["key"] == place["key"]
    below = Counter(codes[:, 1:][codes[:, :-1] == code].tolist())
    left = Counter(codes[:, :, :-1][codes[:, :, 1:] == code].tolist())
    for side, expected in (("below", below), ("left", left)):
        assert [one["times"] for one in found["neighbours"][side]] == [n for _, n in expected.most_common(12)]
        assert all(one["times"] == expected[one["code"]] for one in found["neighbours"][side])
    share = np.bincount(codes.ravel(), minlength=64) / codes.size
    one = found["neighbours"]["below"][0]
    assert one["lift"] == pytest.approx(one["times"] / below.total() / share[one["code"]])
    assert "next" not in found["neighbours"]


# -- storage ----------------------------------------------------------------------------------------------------------


def test_bytes_of_all_columns_add_up_to_those_of_the_files(browser: Browser, pictures: Path) -> None:
    found = browser.get("storage")
    sizes = {column["name"]: column["bytes"] for column in found["columns"]}
    models = sum(file.stat().st_size for file in (pictures / "models").iterdir())
    shards = sum(file.stat().st_size for file in (pictures / "data").iterdir())
    assert sum(sizes.values()) == pytest.approx(shards + models)
    assert (found["num_shards"], found["shards_read"], len(found["shards"])) == (5, 5, 5)
    assert sum(shard["rows"] for shard in found["shards"]) == 240
    assert {column["role"] for column in found["columns"]} >= {"code", "key", "label", "length", "footer", "model"}


def test_levels_hold_what_is_stored_against_entropies(browser: Browser, codes: NDArray[Any]) -> None:
    [level] = browser.get("storage")["levels"]
    share = np.bincount(codes.ravel()) / codes.size
    share = share[share > 0]
    assert level["order0_entropy"] == pytest.approx(-(share * np.log2(share)).sum())
    assert level["log2_alphabet"] == 6
    assert 0 < level["bits_per_token"] < 10


def test_rejects_are_counted_by_reason_and_named(browser: Browser) -> None:
    found = browser.get("rejects")
    assert found["total"] == found["read"] == 1
    [reason] = found["reasons"]
    [row] = found["rows"]
    assert reason["count"] == 1
    assert (row["key"], row["error"]) == ("bird/broken.png", reason["error"])
    assert row["message"]


# -- rates ------------------------------------------------------------------------------------------------------------


def test_fewer_codes_cost_fewer_bits_and_decibels(browser: Browser) -> None:
    choices = browser.get("rates")
    assert (choices["levels"], choices["codebook"], choices["sizes"]) == (1, 64, [32, 16, 8, 4, 2])
    found = [browser.get(f"samples/5/rate?codes={size}") for size in (0, 32, 8, 2)]
    for name in ("bits", "fixed_bits", "psnr", "bits_per_pixel"):
        values = [one[name] for one in found]
        assert values == sorted(values, reverse=True), name
        assert len(set(values)) == len(values)
    assert found[0]["same"]
    assert found[0]["stored_bits"] > 0


def test_a_rate_is_what_transcode_makes_of_the_dataset(browser: Browser, pictures: Path, tmp_path: Path) -> None:
    source = {"path": str(pictures), "codebook_size": 8}
    tokenshard.run(build_job(JOB_KINDS["transcode"], {"source": source, "output": str(tmp_path / "small"), **LOCAL}))
    small, full = tokenshard.open(tmp_path / "small"), tokenshard.open(pictures)
    for number in (5, 200):
        key = full[number]["key"]
        ids = np.asarray(small[small.index(key)]["codes"])
        expected = small.tokenizer.decode(ids[None, None], (32, 32))[0]
        assert np.array_equal(pixels(browser, f"samples/{number}/rate.png?codes=8"), expected)
        whole = full.tokenizer.decode(np.asarray(full[number]["codes"])[None, None], (32, 32))[0]
        found = browser.get(f"samples/{number}/rate?codes=8")
        assert found["psnr"] == pytest.approx(psnr(whole, expected))


def test_stored_bits_of_all_samples_are_those_of_the_streams(browser: Browser, dataset: Any) -> None:
    shard = dataset.manifest.shards[0]
    bits = sum(browser.get(f"samples/{number}/rate")["stored_bits"] for number in range(shard.rows))
    assert bits == 8 * sum(group.codes[0].length for group in shard.row_groups)


PATHS = ("dataset", "samples", "samples/0", "samples/0/codes", "codebook/0", "codebook/0/0", "storage", "rates")


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_plain_json(browser: Browser, path: str) -> None:
    json.loads(browser.ask(f"/api/{path}").body, parse_constant=pytest.fail)
