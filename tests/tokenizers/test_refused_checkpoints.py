"""Checkpoints, and folders of imported ones, that are refused: one line says what is wrong, and nothing is run."""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import vqgan_checkpoints as made
from tokenshard.errors import FormatError, SpecError
from tokenshard.store import Store
from tokenshard.tokenizers.checkpoints.load import import_checkpoint
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer
from tokenshard.tokenizers.weights import weights_sha256
from vqgan_checkpoints import ibq_yaml, imported, saved

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def test_a_tampered_folder_of_an_imported_one_is_refused(tmp_path: Path) -> None:
    save_tokenizer(imported(tmp_path, made.mage()), Store(tmp_path), "tok")
    weights, description = tmp_path / "tok" / "model.safetensors", tmp_path / "tok" / "tokenizer.json"
    kept, name = weights.read_bytes(), "encoder.levels.0.blocks.0.conv1.weight"
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(FormatError, match="SHA-256"):
        load_tokenizer(Store(tmp_path), "tok")
    for value, message in (
        (torch.zeros(32, 32, 1, 1), r"expected float32 \[32, 32, 3, 3\]"),
        (None, "the weights lack"),
    ):
        tensors = safetensors.torch.load(kept)
        del tensors[name]
        if value is not None:
            tensors[name] = value
        weights.write_bytes(safetensors.torch.save(tensors))
        spec = {**json.loads(description.read_text()), "weights_sha256": weights_sha256(weights.read_bytes())}
        description.write_text(json.dumps(spec))
        with pytest.raises(FormatError, match=message):
            load_tokenizer(Store(tmp_path), "tok")


Change = Callable[[dict[str, Tensor]], object]


def without(name: str) -> Change:
    return lambda state: state.pop(name)


def having(name: str, *shape: int, value: float = 1, dtype: torch.dtype = torch.float32) -> Change:
    return lambda state: state.update({name: torch.full(shape, value, dtype=dtype)})


SURPLUS = "holds what does not belong to a taming network: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("encoder.mid.block_1.conv1.bias"), r"lacks .* network: encoder\.middle\.blocks\.0\.conv1\.bias$"),
        (without("encoder.conv_in.weight"), r"lacks encoder\.conv_in\.weight$"),
        (without("quantize.embedding.weight"), "lacks the codebook"),
        (without("post_quant_conv.weight"), r"lacks tensors of the network: decoder\.project\.weight$"),
        (having("encoder.extra.weight", 3), SURPLUS + r"encoder\.extra\.weight$"),
        (having("encoder.mid.block_1.nin_shortcut.bias", 64), SURPLUS + r"encoder\.mid\.block_1\.nin_shortcut\.bias$"),
        (having("text_model.weight", 3), SURPLUS + r"text_model\.weight$"),
        (having("decoder.conv_out.weight", 4, 32, 3, 3), r"conv_out\.weight is \[4, 32, 3, 3\]; .* \[3, 32, 3, 3\]$"),
        (having("encoder.conv_in.bias", 32, value=np.nan), r"encoder\.conv_in\.bias holds .* not finite"),
        (having("encoder.conv_in.bias", 32, dtype=torch.int64), "is torch.int64, not floating-point"),
        (having("quantize.proj.weight", 64, 4, 1, 1), r"lacks quantize\.proj\.bias"),
        (having("encoder.down.7.block.0.norm1.weight", 32), "lacks tensors of the levels of the encoder"),
    ],
)
def test_missing_left_over_and_misshapen_tensors_are_listed(change: Change, message: str, tmp_path: Path) -> None:
    state = made.taming().state
    change(state)
    path = saved(tmp_path, state)
    with pytest.raises(FormatError, match=message) as error:
        import_checkpoint(path, layout="taming")
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_tensors_of_no_known_layout_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"layer.weight": torch.zeros(3, 3)})
    with pytest.raises(FormatError, match=r"none of taming, llamagen, diffusers, maskgit .*e\.g\. layer\.weight"):
        import_checkpoint(path)


class Runs:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_a_pickle_with_code_is_refused_in_one_line_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, {"state_dict": made.taming().state, "hook": Runs()}, "evil.ckpt")
    with pytest.raises(FormatError, match=r"runs code \(posix\.system\), which is never done") as error:
        import_checkpoint(path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_arguments_that_trainers_store_do_no_harm(tmp_path: Path) -> None:
    checkpoint = made.llamagen()
    arguments = argparse.Namespace(lr=1e-4, hook=argparse.Namespace())
    path = saved(tmp_path, {"model": checkpoint.state, "args": arguments, "log": collections.OrderedDict()}, "a.pt")
    assert import_checkpoint(path).layout == "llamagen"


def test_callbacks_that_lightning_stores_are_left_out_without_lightning(tmp_path: Path) -> None:
    module = types.ModuleType("pytorch_lightning.callbacks")
    checkpointing = type("ModelCheckpoint", (), {"__module__": module.__name__})
    attributes = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.__dict__.update(ModelCheckpoint=checkpointing, AttributeDict=attributes)
    names = {"pytorch_lightning": types.ModuleType("pytorch_lightning"), module.__name__: module}
    sys.modules.update(names)
    try:
        state = {"state_dict": made.taming().state, "callbacks": {checkpointing: {"best": 0.1}}}
        path = saved(tmp_path, {**state, "hyper_parameters": attributes(lr=1e-4)}, "last.ckpt")
    finally:
        for name in names:
            del sys.modules[name]
    assert import_checkpoint(path).layout == "taming"
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x02}q\x00.", b"{}"])
def test_files_that_are_no_checkpoints_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(FormatError, match="neither a safetensors file"):
        import_checkpoint(str(tmp_path / "x.ckpt"))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = Path(saved(tmp_path, made.taming().state, "x.pt"))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"data.pkl", b"dutu.pkl"))
    with pytest.raises(FormatError, match=r"x\.pt"):
        import_checkpoint(str(path))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FormatError, match=r"x\.pt"):
        import_checkpoint(str(path))


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (ibq_yaml(n_embed=128), FormatError, "codes are 64 in the tensors and 128 in the document"),
        (ibq_yaml(remap="used.npy"), FormatError, "remapped"),
        (ibq_yaml(ddconfig={"double_z": True}), FormatError, "double_z is True; only False can be imported"),
        ("a: [1", FormatError, "cannot be read as a document"),
        ("model: 3", FormatError, "not the description of a taming network"),
        ("- 1", FormatError, "not an object"),
    ],
)
def test_a_document_that_does_not_fit_is_refused(
    document: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, made.taming().state)
    (tmp_path / "given.yaml").write_text(document)
    with pytest.raises(error, match=message):
        import_checkpoint(path, document=str(tmp_path / "given.yaml"))


def test_a_folder_or_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        import_checkpoint(str(tmp_path / "none.pt"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpecError, match="is a folder"):
        import_checkpoint(str(tmp_path / "folder"))
