"""The grid tokenizer: ids and cells that depend on nothing but the cells around them, and no borders of patches."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sources.grids.making import terrain
from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.tokenizers.grid import GridTokenizer
from tokenshard.tokenizers.lapped import RING
from tokenshard.tokenizers.registry import parse_tokenizer

STEP = 20.0


@pytest.fixture(scope="module")
def tokenizer() -> GridTokenizer:
    return GridTokenizer.fit([terrain(512, 512, 1)], 0, k=64, codebooks=2, step=STEP)


def test_cells_within_the_ring_decode_as_in_the_whole_field(tokenizer: GridTokenizer) -> None:
    """Both halves of a cut agree with the uncut field bit for bit: there are no seams."""
    steps = np.rint(terrain(128, 160, 2) / STEP * 64) / 64
    whole = tokenizer.field(tokenizer.codes(steps))
    for top, left in ((0, 0), (32, 64), (64, 88)):
        ring = [slice(max(0, start - 8 * RING), start + 48 + 8 * RING) for start in (top, left)]
        codes = tokenizer.codes(steps[ring[0], ring[1]])
        found = tokenizer.field(codes)
        inner = [
            slice(start - part.start, start - part.start + 48) for start, part in zip((top, left), ring, strict=True)
        ]
        assert np.array_equal(found[inner[0], inner[1]], whole[top : top + 48, left : left + 48])


def test_moving_a_field_by_whole_steps_moves_its_means_and_nothing_else(tokenizer: GridTokenizer) -> None:
    steps = terrain(64, 64, 3) / STEP
    codes, moved = tokenizer.codes(steps), tokenizer.codes(steps + 77)
    assert np.array_equal(moved.means - 77, codes.means)
    assert np.array_equal(moved.gains, codes.gains)
    assert np.array_equal(moved.shapes, codes.shapes)
    assert np.array_equal(tokenizer.field(moved) - 77, tokenizer.field(codes))


def test_errors_jump_no_more_between_patches_than_within(tokenizer: GridTokenizer) -> None:
    steps = terrain(256, 256, 4) / STEP
    error = tokenizer.field(tokenizer.codes(steps)) - steps
    for axis in (0, 1):
        jumps = np.abs(np.diff(error, axis=axis)).mean(axis=1 - axis)
        borders = np.arange(len(jumps)) % 8 == 7
        assert jumps[borders].mean() <= 1.10 * jumps[~borders].mean()


def test_more_steps_and_codebooks_bring_decoded_fields_closer() -> None:
    train, test = [terrain(256, 256, 1)], terrain(128, 128, 5)
    errors = []
    for step, codebooks in ((80.0, 1), (20.0, 2), (5.0, 4)):
        made = GridTokenizer.fit(train, 0, k=64, codebooks=codebooks, step=step)
        found = made.field(made.codes(test / step)) * step
        errors.append(float(np.abs(found - test).mean()))
    assert errors[0] > 1.2 * errors[1] > 1.44 * errors[2]
    flat = np.repeat(np.repeat(test.reshape(16, 8, 16, 8).mean(axis=(1, 3)), 8, 0), 8, 1)
    assert errors[0] < 0.75 * np.abs(flat - test).mean()


def test_patches_below_the_floor_have_no_shape_and_cells_without_value_no_ids(tokenizer: GridTokenizer) -> None:
    field = np.zeros((32, 48))
    field[:, 32:] = (terrain(32, 16, 6) + 3000) / STEP
    field[:8, 8:16] = np.nan
    field[16:20, 16:24] = np.nan
    ids = tokenizer.encode(field[None])
    assert (ids[0, 1:, :, :3] == 0).all()
    assert (ids[0, 1, :, 4:] > 0).any()
    assert ids[0, 0, 0, 1] == 0
    assert (np.delete(ids[0, 0].ravel(), 1) > 0).all()
    found = tokenizer.decode(ids)[0]
    assert np.isnan(found[:8, 8:16]).all()
    assert np.isnan(found).sum() == 64
    assert np.nanmax(np.abs(found[:, :16])) <= 0.51


def test_ids_and_codes_are_inverse_and_far_means_are_held(tokenizer: GridTokenizer) -> None:
    codes = tokenizer.codes(terrain(40, 56, 7) / STEP + 150)
    ids = tokenizer.ids(codes)
    assert (ids < np.array(tokenizer.spec.levels)[:, None, None]).all()
    assert np.array_equal(tokenizer.ids(tokenizer.codes_of(ids)), ids)
    far = tokenizer.ids(tokenizer.codes(np.full((8, 8), 1e30)))
    assert far[0, 0, 0] == tokenizer.means - 1


def test_a_saved_tokenizer_is_the_same_and_damage_is_refused(tokenizer: GridTokenizer) -> None:
    again = GridTokenizer.from_tensors(tokenizer.spec, tokenizer.tensors())
    assert again.spec == tokenizer.spec
    field = terrain(64, 64, 8)[None] / STEP
    assert np.array_equal(again.encode(field), tokenizer.encode(field))
    twice = GridTokenizer.fit([terrain(512, 512, 1)], 0, k=64, codebooks=2, step=STEP)
    assert twice.spec.fingerprint == tokenizer.spec.fingerprint
    for name, bad in (("surface", np.full((8, 64), 1 << 30, np.int32)), ("codewords", tokenizer.codewords * np.nan)):
        with pytest.raises(FormatError, match=name):
            GridTokenizer.from_tensors(tokenizer.spec, {**tokenizer.tensors(), name: bad})
    with pytest.raises(FormatError, match="not those of a grid tokenizer"):
        GridTokenizer.from_tensors(tokenizer.spec.model_copy(update={"levels": (1024, 40, 64)}), tokenizer.tensors())


def test_what_cannot_be_encoded_or_decoded_is_refused(tokenizer: GridTokenizer) -> None:
    with pytest.raises(InputError, match="expected fields float"):
        tokenizer.encode(np.zeros((1, 8, 8, 3), np.uint8))
    ids = tokenizer.encode(np.zeros((1, 16, 16)))
    with pytest.raises(FormatError, match="do not fit"):
        tokenizer.decode(ids + np.uint16(5000))
    with pytest.raises(FormatError, match="is not 40x16 cells"):
        tokenizer.decode(ids, (40, 16))


def test_options_are_checked_before_anything_is_read() -> None:
    assert parse_tokenizer("grid:8x8,k=256,step=2.5,floor=4") == (
        "grid",
        {"patch": (8, 8), "k": 256, "step": 2.5, "floor": 4.0},
    )
    with pytest.raises(SpecError, match="step must be a positive number in the unit of the grid"):
        parse_tokenizer("grid:step=-1")
    with pytest.raises(SpecError, match="codebooks must be 1 to 8"):
        GridTokenizer.fit([terrain(16, 16)], 0, codebooks=9)


@pytest.mark.parametrize("field", [np.full((16, 16), np.nan), np.full((5, 3), 7.0), np.zeros((0, 0))])
def test_fields_that_show_nothing_still_make_a_tokenizer(field: NDArray[np.float64]) -> None:
    made = GridTokenizer.fit([field] if field.size else [], 0)
    assert np.allclose(made.decode(made.encode(np.full((1, 9, 9), 3.0))), 3)
