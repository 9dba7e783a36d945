"""Files of weights of other programs: tensors by name, of one file or of a folder, and nothing else is read or run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tokenshard.errors import FormatError, SpecError
from tokenshard.tokenizers.checkpoints.tensors import read_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


def equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "before 1.6"])
def test_every_kind_of_file_is_read(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    if kind == "safetensors":
        safetensors.torch.save_file(STATE, file)
    else:
        torch.save(STATE, file, _use_new_zipfile_serialization=kind == "zip")
    found = read_weights(str(file))
    assert equal(found.tensors, STATE)
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_files_of_a_folder_are_read_together(tmp_path: Path) -> None:
    torch.save({"a.weight": STATE["a.weight"]}, tmp_path / "one.pth")
    safetensors.torch.save_file({"a.bias": STATE["a.bias"]}, tmp_path / "two.safetensors")
    (tmp_path / "README.md").write_text("not weights")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.pth").write_bytes(b"not read")
    found = read_weights(f"{tmp_path}/")
    assert equal(found.tensors, STATE)
    torch.save({"a.weight": STATE["a.weight"] + 1}, tmp_path / "one.pth")
    assert read_weights(str(tmp_path)).sha256 != found.sha256
    torch.save({"a.bias": STATE["a.bias"]}, tmp_path / "one.pth")
    with pytest.raises(FormatError, match=r"two\.safetensors: a\.bias is in another file of the folder too"):
        read_weights(str(tmp_path))


class Runs:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("archived", [True, False])
def test_code_is_named_and_not_run(archived: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**STATE, "hook": Runs()}, "evil.pth", _use_new_zipfile_serialization=archived)
    with pytest.raises(FormatError, match=r"evil\.pth: is a pickle that runs code \(posix\.system\)") as error:
        read_weights("evil.pth")
    assert "\n" not in str(error.value)
    assert not Path("ran").exists()


def test_damaged_files_are_refused_wherever_they_end(tmp_path: Path) -> None:
    file = tmp_path / "cut.pth"
    for archived in (True, False):
        torch.save(STATE, file, _use_new_zipfile_serialization=archived)
        whole = file.read_bytes()
        for end in range(0, len(whole) - 1, 13):
            file.write_bytes(whole[:end])
            with pytest.raises(FormatError, match=r"cut\.pth: (neither a safetensors|not a PyTorch|is a pickle that)"):
                read_weights(str(file))


def test_what_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "one.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    for name, message in (("one", "holds one Tensor, not tensors by name"), ("none", r"no tensors \(but epoch\)")):
        with pytest.raises(FormatError, match=rf"{name}\.pt: holds {message.removeprefix('holds ')}"):
            read_weights(str(tmp_path / f"{name}.pt"))
    with pytest.raises(FormatError, match="more than the 100 allowed"):
        read_weights(str(tmp_path / "one.pt"), most=100)
    with pytest.raises(SpecError, match="no such file"):
        read_weights(str(tmp_path / "nowhere.pt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="holds no file of weights"):
        read_weights(str(tmp_path / "empty"))
