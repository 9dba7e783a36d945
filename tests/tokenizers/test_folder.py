"""A tokenizer as a folder: written once, checked when read, and refused in one clear line when anything is off."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenshard.errors import FormatError, TokenshardError
from tokenshard.store import Store
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer, tokenizer_from
from tokenshard.tokenizers.patch import PatchTokenizer
from tokenshard.tokenizers.weights import weights_sha256, weights_to_bytes


@pytest.fixture
def folder(tokenizer: PatchTokenizer, tmp_path: Path) -> Path:
    save_tokenizer(tokenizer, Store(tmp_path), "tok")
    return tmp_path / "tok"


def rewrite(folder: Path, **changes: Any) -> None:
    """Change fields of tokenizer.json, as someone editing it by hand would."""
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, **changes}))


def replace_weights(folder: Path, weights: bytes) -> None:
    """Put other weights there, with a matching hash."""
    (folder / "model.safetensors").write_bytes(weights)
    rewrite(folder, weights_sha256=weights_sha256(weights))


def test_a_saved_tokenizer_comes_back_with_the_same_ids_pictures_and_fingerprint(
    tokenizer: PatchTokenizer, folder: Path, crops: NDArray[np.uint8]
) -> None:
    loaded = load_tokenizer(Store(folder))
    ids = loaded.encode(crops)
    assert loaded.spec.fingerprint == tokenizer.spec.fingerprint
    assert (ids == tokenizer.encode(crops)).all()
    assert (loaded.decode(ids) == tokenizer.decode(ids)).all()


def test_it_can_be_made_from_its_description_and_weights_alone(tokenizer: PatchTokenizer) -> None:
    made = tokenizer_from(tokenizer.spec, weights_to_bytes(tokenizer.tensors()))
    assert made.spec == tokenizer.spec


@pytest.mark.parametrize("root", ["memory://tokenizers", "s3"])
@pytest.mark.integration
def test_any_store_will_do(tokenizer: PatchTokenizer, root: str, request: pytest.FixtureRequest) -> None:
    store = Store(request.getfixturevalue("s3_url") if root == "s3" else root)
    save_tokenizer(tokenizer, store, "tokenizer/abc")
    assert load_tokenizer(store, "tokenizer/abc").spec == tokenizer.spec


def test_saving_again_writes_the_same_bytes_and_another_tokenizer_is_refused(
    tokenizer: PatchTokenizer, folder: Path, crops: NDArray[np.uint8]
) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    save_tokenizer(tokenizer, Store(folder), "")
    with pytest.raises(TokenshardError, match="belongs to another tokenizer"):
        save_tokenizer(PatchTokenizer.fit([crops[0]], 0, k=8), Store(folder), "")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert before.keys() == {"tokenizer.json", "model.safetensors"}


def test_a_changed_byte_anywhere_in_the_weights_is_refused(folder: Path) -> None:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    for place in range(0, len(weights), len(weights) // 20):
        damaged = weights.copy()
        damaged[place] ^= 1
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(FormatError, match=r"model\.safetensors: SHA-256 .* copy it again"):
            load_tokenizer(Store(folder))


def wrong_shape(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    replace_weights(folder, weights_to_bytes({**tensors, "centroids": tensors["centroids"][:-1]}))


def wrong_dtype(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    replace_weights(folder, weights_to_bytes({**tensors, "centroids": tensors["centroids"].astype(np.float32)}))


def missing_tensor(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    replace_weights(folder, weights_to_bytes({"centroids": tensors["centroids"]}))


def pickle_inside(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    replace_weights(folder, pickle.dumps(tensors))


def cut_short(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    replace_weights(folder, weights_to_bytes(tensors)[:-1])


def empty_weights(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    replace_weights(folder, b"")


def header_that_claims_too_much(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    header = b'{"centroids":{"dtype":"I16","shape":[4000000000,4000000000],"data_offsets":[0,2]}}'
    replace_weights(folder, len(header).to_bytes(8, "little") + header + b"\0\0")


def huge_values(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    huge = np.full_like(tensors["components"], -32768)
    replace_weights(
        folder,
        weights_to_bytes({**tensors, "components": huge, "centroids": np.full_like(tensors["centroids"], -32768)}),
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (wrong_shape, r"tensor centroids is int16 \[255, 16\]; expected int16 \[256, 16\]"),
        (wrong_dtype, "tensor centroids is float32"),
        (missing_tensor, "the weights lack codewords, components"),
        (pickle_inside, "not a safetensors file"),
        (cut_short, "not a safetensors file"),
        (empty_weights, "not a safetensors file"),
        (header_that_claims_too_much, "not a safetensors file"),
        (lambda folder, _: os.remove(folder / "model.safetensors"), r"model\.safetensors: no such file"),
        (lambda folder, _: os.remove(folder / "tokenizer.json"), r"tokenizer\.json: no such file"),
        (lambda folder, _: rewrite(folder, kind="telepathy"), "unknown tokenizer kind 'telepathy'"),
        (lambda folder, _: rewrite(folder, format_version=2), "format version 2 needs a newer tokenshard"),
        (lambda folder, _: rewrite(folder, format="other"), "not the description of a tokenizer"),
        (lambda folder, _: rewrite(folder, levels=[]), "levels"),
        (lambda folder, _: rewrite(folder, levels=[512]), "tensor centroids"),
        (lambda folder, _: rewrite(folder, levels=[1 << 40]), "do not fit a patch tokenizer"),
        (lambda folder, _: rewrite(folder, downsample=[8, 8]), "do not fit a patch tokenizer"),
        (lambda folder, _: rewrite(folder, config={}), r"config\.patch: Field required"),
        (lambda folder, _: rewrite(folder, config={"patch": [4, 400], "components": 16}), r"config\.patch\.1"),
        (lambda folder, _: (folder / "tokenizer.json").write_text("{"), "not a JSON document"),
        (lambda folder, _: (folder / "tokenizer.json").write_text("[" * 100_000), "not a JSON document"),
        (lambda folder, _: (folder / "tokenizer.json").write_bytes(b"\xff\xfe\0"), "not a JSON document"),
        (
            lambda folder, _: (folder / "tokenizer.json").write_text(" " * (1 << 20) + "{}"),
            "more than the 1048576 allowed",
        ),
    ],
)
def test_damage_gives_one_line_that_names_the_file(
    tokenizer: PatchTokenizer, folder: Path, damage: Callable[[Path, dict[str, NDArray[Any]]], None], message: str
) -> None:
    damage(folder, tokenizer.tensors())
    with pytest.raises(FormatError, match=message) as error:
        load_tokenizer(Store(folder))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_of_any_size_a_tensor_can_hold_stay_exact(tokenizer: PatchTokenizer, folder: Path) -> None:
    huge_values(folder, tokenizer.tensors())
    loaded = load_tokenizer(Store(folder))
    assert (loaded.encode(np.full((1, 4, 4, 3), 255, np.uint8)) == 0).all()


def test_unknown_fields_of_a_later_minor_version_are_ignored(tokenizer: PatchTokenizer, folder: Path) -> None:
    rewrite(folder, remark="written by a later version")
    assert load_tokenizer(Store(folder)).spec == tokenizer.spec
