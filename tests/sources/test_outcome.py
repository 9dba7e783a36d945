"""What a reject says is the same on every machine."""

from __future__ import annotations

import numpy as np
import pytest

from tokenshard.errors import InputError
from tokenshard.sources.base import Reject, Sample
from tokenshard.sources.outcome import outcome, planned_reject
from tokenshard.store import Store


def raise_(error: Exception) -> bytes:
    raise error


def decode_of(message: str) -> Reject:
    def decode(data: bytes) -> np.ndarray:
        raise ValueError(message)

    result = outcome("a.png", "a.png", lambda: b"data", decode, {})
    assert isinstance(result, Reject)
    return result


def test_a_sample_carries_its_key_pixels_raw_size_and_columns() -> None:
    result = outcome("k", "u", lambda: b"12345", lambda data: np.zeros((1, 2, 3), np.uint8), {"label": 4})
    assert isinstance(result, Sample)
    assert (result.key, result.uri, result.raw_bytes, result.columns) == ("k", "u", 5, {"label": 4})


def test_messages_are_one_line_that_names_the_input_without_paths_or_addresses() -> None:
    one = decode_of("cannot read '/tmp/x1/folder/a.png'\n with <_io.BytesIO object at 0x7f01aa>, see 0xdeadbeef12")
    two = decode_of("cannot read '/home/me/a.png'\n with <_io.BytesIO object at 0x7eeee0>, see 0xcafecafe34")
    assert one == two
    assert one.message == "a.png: cannot read 'a.png' with , see"
    assert one.traceback_sha256 is not None


def test_different_failures_have_different_traceback_hashes() -> None:
    assert decode_of("one").traceback_sha256 != decode_of("other").traceback_sha256


def test_a_wrapped_error_gives_its_name_to_the_reject() -> None:
    def decode(data: bytes) -> np.ndarray:
        try:
            raise SyntaxError("bad chunk")
        except SyntaxError as error:
            raise InputError("the PNG is damaged") from error

    result = outcome("k", "archive.tar", lambda: b"", decode, {})
    assert isinstance(result, Reject)
    assert (result.stage, result.error) == ("decode", "SyntaxError")
    assert result.message == "archive.tar (k): the PNG is damaged"


def test_a_missing_file_is_rejected_alike_from_every_storage(tmp_path: object) -> None:
    results = [
        outcome("gone.png", "gone.png", lambda store=store: store.read("gone.png"), lambda data: None, {})  # type: ignore[misc, arg-type, return-value]
        for store in (Store(f"{tmp_path}"), Store("memory://nothing/here"))
    ]
    assert results[0] == results[1]
    assert results[0] == Reject("gone.png", "gone.png", "fetch", "FileNotFoundError", "gone.png: no such file")


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("deep"), SyntaxError("x"), KeyError("k"), OSError(5, "I/O")]
)
def test_no_error_escapes(error: Exception) -> None:
    result = outcome("k", "k", lambda: raise_(error), lambda data: np.zeros(1), {})
    assert isinstance(result, Reject)
    assert (result.stage, result.error) == ("fetch", type(error).__name__)


def test_a_planned_error_becomes_a_reject_of_its_kind() -> None:
    reject = planned_reject("k#2", "k", "duplicate key: an earlier input has it")
    assert reject == Reject("k#2", "k", "plan", "duplicate key", "k#2: duplicate key: an earlier input has it")
