"""From thunks to ids inside a unit: order, rejects, the bounds on memory, and decoding that hides behind encoding."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenshard.engine.encode import encode_samples
from tokenshard.engine.tokenizing import TokenizerEncoder
from tokenshard.errors import StoreError
from tokenshard.sources.base import Reject, Sample, Thunk
from tokenshard.spec.engine import EngineSpec
from tokenshard.spec.tokenizer import TokenizerSpec

Pixels = NDArray[np.uint8]
BAD = 255
"""A pixel value that :class:`Means` cannot encode."""


class Means:
    """A tokenizer with one id an image: the value of its first pixel. Notes the batches it gets."""

    def __init__(self, seconds: float = 0.0, on_batch: Callable[[int], None] = lambda size: None) -> None:
        self.batches: list[tuple[int, ...]] = []
        self._seconds, self._on_batch = seconds, on_batch

    @property
    def spec(self) -> TokenizerSpec:
        return TokenizerSpec(
            kind="means", levels=(256,), downsample=(2, 2), numerics="integer", weights_sha256="0" * 64
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return 1, 1

    def encode(self, images: Pixels) -> NDArray[Any]:
        self.batches.append(images.shape)
        self._on_batch(len(images))
        time.sleep(self._seconds * len(images))
        first = images[:, 0, 0, 0]
        if (first == BAD).any():
            raise ValueError(f"pixels of {first.max()} in /tmp/batch")
        return first.astype(np.uint16).reshape(-1, 1, 1, 1)

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> Pixels:
        return np.tile(codes.astype(np.uint8), (1, *(size or (1, 1)), 3))

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {}


def image(value: int, side: int = 2) -> Pixels:
    return np.full((side, side, 3), value, np.uint8)


def decoded(number: int, data: Pixels, seconds: float = 0.0) -> Thunk:
    def thunk() -> Sample:
        time.sleep(seconds)
        return Sample(f"k{number}", f"k{number}.png", data, 100)

    return thunk


def refused(number: int) -> Thunk:
    return lambda: Reject(f"k{number}", f"k{number}.png", "decode", "UnidentifiedImageError", "not an image")


def encode(thunks: list[Thunk], tokenizer: Means | None = None, **limits: Any) -> tuple[dict[str, int], list[Reject]]:
    """Key -> id of what was encoded, in order; and the rejects."""
    rejects: list[Reject] = []
    encoder = TokenizerEncoder(tokenizer or Means(), rank=2)
    found = encode_samples(thunks, encoder, EngineSpec.model_validate(limits), rejects)
    return {sample.key: int(encoded.ids.item()) for sample, encoded in found}, rejects


KINDS = st.sampled_from(["image", "large image", "unreadable", "bad for the encoder"])


@given(st.lists(KINDS, max_size=40), st.integers(1, 9), st.integers(1, 200), st.integers(1, 3))
def test_results_and_rejects_come_in_order_whatever_the_limits(
    kinds: list[str], batch_size: int, batch_bytes: int, threads: int
) -> None:
    thunks = {
        "image": lambda number: decoded(number, image(number)),
        "large image": lambda number: decoded(number, image(number, 3)),
        "unreadable": refused,
        "bad for the encoder": lambda number: decoded(number, image(BAD)),
    }
    ids, rejects = encode(
        [thunks[kind](number) for number, kind in enumerate(kinds)],
        batch_size=batch_size,
        batch_bytes=batch_bytes,
        decode_threads=threads,
    )
    good = [number for number, kind in enumerate(kinds) if "image" in kind]
    assert list(ids.items()) == [(f"k{number}", number) for number in good]
    assert [reject.key for reject in rejects] == [f"k{n}" for n in range(len(kinds)) if n not in good]
    stages = {"unreadable": "decode", "bad for the encoder": "encode"}
    assert [reject.stage for reject in rejects] == [stages[kind] for kind in kinds if kind in stages]


def test_a_sample_that_cannot_be_encoded_is_put_aside_alone() -> None:
    values = [1, 2, BAD, 4, 5]
    ids, rejects = encode([decoded(number, image(value)) for number, value in enumerate(values)])
    assert ids == {"k0": 1, "k1": 2, "k3": 4, "k4": 5}
    (reject,) = rejects
    assert (reject.key, reject.uri, reject.stage, reject.error) == ("k2", "k2.png", "encode", "ValueError")
    assert reject.message == "k2.png (k2): pixels of 255 in batch", "no folders of this machine"


def test_a_reject_of_the_encoder_does_not_depend_on_its_batch() -> None:
    values = [1, 2, BAD, 4, 5]
    thunks = [decoded(number, image(value)) for number, value in enumerate(values)]
    assert encode(thunks, batch_size=1)[1] == encode(thunks, batch_size=5)[1]


def test_images_of_equal_size_are_encoded_together() -> None:
    tokenizer = Means()
    ids, _ = encode([decoded(n, image(n, side=2 + n % 2)) for n in range(8)], tokenizer, batch_size=6)
    assert list(ids.values()) == list(range(8))
    assert tokenizer.batches == [(3, 2, 2, 3), (3, 3, 3, 3), (1, 2, 2, 3), (1, 3, 3, 3)]


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_stay_within_the_bytes_allowed(threads: int) -> None:
    tokenizer = Means()
    bytes_each = image(0).nbytes
    encode([decoded(n, image(n)) for n in range(10)], tokenizer, batch_bytes=4 * bytes_each, decode_threads=threads)
    assert [shape[0] for shape in tokenizer.batches] == [4, 4, 2]


def test_an_image_larger_than_the_bytes_allowed_goes_alone() -> None:
    tokenizer = Means()
    sides = [2, 9, 2]
    ids, _ = encode([decoded(n, image(n, side)) for n, side in enumerate(sides)], tokenizer, batch_bytes=20)
    assert list(ids.values()) == [0, 1, 2]
    assert [shape[:2] for shape in tokenizer.batches] == [(1, 2), (1, 9), (1, 2)]


def test_decoding_ahead_keeps_to_the_bytes_allowed_while_the_encoder_is_busy() -> None:
    """At most one batch of bytes is in the encoder, one waits decoded, and each thread works on one image."""
    threads, allowed, held, most = 2, 4, 0, 0
    lock = threading.Lock()

    def change(by: int) -> None:
        nonlocal held, most
        with lock:
            held += by
            most = max(most, held)

    def counted(number: int) -> Thunk:
        def thunk() -> Sample:
            change(+1)
            return Sample(f"k{number}", f"k{number}.png", image(number), 100)

        return thunk

    tokenizer = Means(seconds=0.005, on_batch=lambda size: change(-size))
    ids, _ = encode(
        [counted(n) for n in range(60)],
        tokenizer,
        batch_size=64,
        batch_bytes=allowed * image(0).nbytes,
        decode_threads=threads,
    )
    assert list(ids.values()) == list(range(60))
    assert allowed < most <= 2 * allowed + threads + 1


def test_storage_out_of_reach_stops_the_unit_and_what_was_begun() -> None:
    def unreachable() -> Sample:
        raise StoreError("s3://photos: timed out", transient=True)

    ran: list[int] = []

    def noted(number: int) -> Thunk:
        return lambda: ran.append(number) or Sample(f"k{number}", f"k{number}.png", image(1), 1)  # type: ignore[func-returns-value]

    thunks = [unreachable, *(noted(number) for number in range(1000))]
    with pytest.raises(StoreError, match="timed out"):
        encode(thunks, decode_threads=2)
    assert len(ran) < 100
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_decoding_hides_behind_encoding() -> None:
    """Decoding takes 0.04 s on each of two threads and encoding 0.01 s: one after the other it would be 2.5 x ideal."""
    count = 48
    ideal = count * 0.04 / 2
    started = time.monotonic()
    ids, _ = encode(
        [decoded(n, image(n), seconds=0.04) for n in range(count)], Means(seconds=0.01), batch_size=4, decode_threads=2
    )
    assert time.monotonic() - started <= 1.3 * ideal
    assert len(ids) == count
