"""Codes that were made elsewhere go through the engine as they are, or are refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tokenshard
from engine.arrays import COLUMNS, import_arrays
from integration.command import refused
from tokenshard.engine.codes import WINDOW_IDS, CodeEncoder, PassingThrough, checked_layout
from tokenshard.engine.convert import Mode
from tokenshard.errors import InputError, JobError, SpecError, TooManyRejects
from tokenshard.shards.rejects import read_rejects
from tokenshard.shards.verify import verify
from tokenshard.sources.base import CodeLayout, Sample
from tokenshard.spec.job import Import, build_job
from tokenshard.store import Store

Codes = NDArray[Any]
LAYOUT = CodeLayout((16, 4), (None, 3), ("height", "width"), (8, 8))


def sample(codes: Any, size: tuple[int, ...] | None = (16, 24)) -> Sample:
    return Sample("k", "u", np.asarray(codes), 1, size=size)


def made(*shapes: tuple[int, ...], alphabets: tuple[int, ...] = (256,), dtype: str = "int64") -> list[Codes]:
    """Codes of these shapes whose neighbours resemble each other, below these alphabets."""
    draw = np.random.default_rng(len(shapes))
    made = []
    for shape in shapes:
        field = draw.random(shape).cumsum(axis=-1) % 1
        limits = np.array(alphabets).reshape(-1, *(1 for _ in shape[1:]))
        made.append((field * limits).astype(dtype))
    return made


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint64", ">i4"])
def test_codes_that_fit_the_layout_pass_as_they_are(dtype: str) -> None:
    codes = np.array([[[1, 2, 15], [0, 4, 9]], [[1, 2, 3], [0, 0, 0]]], dtype)
    passed = CodeEncoder(LAYOUT).checked(sample(codes))
    assert passed.dtype == np.uint16
    assert np.array_equal(passed, codes)
    assert CodeEncoder(LAYOUT).size(sample(codes), codes) == (16, 24)


@pytest.mark.parametrize(
    ("codes", "size", "message"),
    [
        (np.zeros((2, 2)), (16, 24), r"shape \[2, 2\]; expected 2 levels of grids of rank 2"),
        (np.zeros((3, 2, 3), int), (16, 24), "expected 2 levels"),
        (np.zeros((2, 2, 3)), (16, 24), "float64, not integers"),
        (np.zeros((2, 2, 4), int), (16, 32), r"grid of \[2, 4\] among grids of \[None, 3\]"),
        (np.full((2, 2, 3), 4), (16, 24), "id 4 of level 1 is outside the alphabet of 4"),
        (np.full((2, 2, 3), -1), (16, 24), "id -1 of level 0"),
        (np.full((2, 2, 3), 2**64 - 1, np.uint64), (16, 24), "id 18446744073709551615 of level 0"),
        (np.zeros((2, 2, 3), int), (17, 24), r"grid of \[2, 3\] for an input of size \[17, 24\]"),
        (np.zeros((2, 2, 3), int), None, "no height and width"),
    ],
)
def test_codes_that_do_not_fit_are_refused_with_the_reason(codes: Codes, size: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CodeEncoder(LAYOUT).encode([sample(codes, size)])


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (CodeLayout((4,), ()), "rank 0"),
        (CodeLayout((4,), (None,) * 4), "rank 4"),
        (CodeLayout((), (None,)), "0 levels"),
        (CodeLayout((4,) * 257, (None,)), "257 levels"),
        (CodeLayout((4, 0), (None,)), "1 to 1048576"),
        (CodeLayout(((1 << 20) + 1,), (None,)), "1 to 1048576"),
    ],
)
def test_a_layout_no_shard_can_have_is_refused(layout: CodeLayout, message: str) -> None:
    with pytest.raises(SpecError, match=f"codes.npy: .*{message}"):
        checked_layout(layout, "codes.npy")


@pytest.mark.parametrize("shape", [(1, 300_000), (2, 3000, 700), (16, 100, 100, 3), (1, 5)])
def test_the_pilot_keeps_a_bounded_part_of_a_sample(shape: tuple[int, ...]) -> None:
    class Layout:
        def layout(self) -> CodeLayout:
            return CodeLayout((256,) * shape[0], shape[1:])

    job = build_job(Import, {"source": {"path": "a", "format": "x"}, "output": "b"})
    (codes,) = made(shape)
    window = PassingThrough(job, Layout()).window(sample(codes, None), np.random.default_rng(0))  # type: ignore[arg-type]
    part = window.sample.data
    assert part.size <= WINDOW_IDS
    assert part.size * window.whole == pytest.approx(codes.size)
    assert part.flags.c_contiguous
    assert min(part.shape[1:]) >= min(*shape[1:], 9)


RAGGED = {
    "rank 1": [(1, n % 7 * 13) for n in range(40)],
    "rank 2": [(1, 1 + n % 5, 3 + n % 4) for n in range(40)],
    "rank 3": [(1, 1 + n % 2, 2, 3 + n % 4) for n in range(40)],
    "short samples": [(1, 1 + n % 9) for n in range(200)],
}
FIXED = {
    "rank 1": [(1, 30)] * 40,
    "rank 2": [(1, 12, 9)] * 40,
    "rank 3": [(1, 2, 12, 9)] * 40,
    "an input of one id": [(1, 1)] * 3,
}


def check(codes: list[Codes], tmp_path: Path, **fields: Any) -> tokenshard.Dataset:
    """Import and read back: the same ids, columns, and a sound dataset."""
    result = import_arrays(tmp_path, codes, **fields)
    dataset = tokenshard.open(tmp_path / "tokens")
    report = verify(Store(tmp_path / "tokens"), deep=True)
    assert report.ok, report.errors
    assert (result.num_samples, result.num_rejects) == (len(codes), 0)
    for number, array in enumerate(codes):
        found = dataset[number]["codes"]
        assert np.array_equal(found, array if len(array) > 1 else array[0])
    for name, (_, _, _, value) in COLUMNS.items():
        if name != "taken":
            assert dataset.table([name])[name].to_pylist() == [value(number) for number in range(len(codes))]
    assert dataset.manifest.totals.raw_bytes == sum(1000 + number for number in range(len(codes)))
    return dataset


@pytest.mark.parametrize("name", RAGGED)
def test_ragged_grids_of_any_rank(name: str, tmp_path: Path) -> None:
    codes = made(*RAGGED[name])
    dataset = check(codes, tmp_path, unit={"samples": 16})
    assert None in dataset.manifest.code.grid
    assert len(dataset.manifest.shards) == -(-len(codes) // 16)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_grids_of_any_rank(name: str, tmp_path: Path) -> None:
    shape = FIXED[name][0]
    dataset = check(made(*FIXED[name]), tmp_path, source={"grid": shape[1:]}, unit={"samples": 16})
    assert dataset.manifest.code.grid == shape[1:]
    assert not {"height", "width", "frames"} & set(dataset.schema.names)


@pytest.mark.parametrize("codec", ["auto", "pack", "zstd", "context"])
def test_levels_with_alphabets_of_their_own(codec: str, tmp_path: Path) -> None:
    alphabets = (300, 2, 70_000)
    codes = made(*[(3, 12, 12)] * 50, alphabets=alphabets)
    dataset = check(codes, tmp_path, source={"alphabet": alphabets}, codec=codec)
    assert tuple(level.alphabet for level in dataset.manifest.code.levels) == alphabets
    if codec != "auto":
        assert {spec.codec for spec in dataset.manifest.code.columns} == {codec}


def test_input_sizes_are_kept_where_they_are_known(tmp_path: Path) -> None:
    sizes = np.array([[1 + n % 13, 8 + n % 9] for n in range(40)])
    codes = made(*[(1, -(-height // 4), -(-width // 4)) for height, width in sizes.tolist()])
    dataset = check(codes, tmp_path, sizes=sizes)
    assert dataset.manifest.kind == "image"
    assert [[dataset[n]["height"], dataset[n]["width"]] for n in range(40)] == sizes.tolist()


def test_bad_codes_are_rejects_of_the_stage_encode(tmp_path: Path) -> None:
    codes = made(*[(1, 20)] * 50)
    codes[7][0, 3] = 256
    codes[8] = codes[8].astype(np.float32)
    with pytest.raises(TooManyRejects, match="2 of 50 inputs were rejected"):
        import_arrays(tmp_path, codes)
    assert import_arrays(tmp_path, codes, max_rejects=0.1).reasons == {"encode: InputError": 2}
    dataset = tokenshard.open(tmp_path / "tokens")
    rows = read_rejects(Store(tmp_path / "tokens"), dataset.manifest).to_pylist()
    assert [(row["key"], row["stage"]) for row in rows] == [("s00007", "encode"), ("s00008", "encode")]
    assert rows[0]["message"] == "codes0.npz (s00007): id 256 is outside the alphabet of 256"
    assert verify(Store(tmp_path / "tokens"), deep=True).ok


def test_ids_without_their_tokenizer_say_so_and_keep_their_codebook(tmp_path: Path) -> None:
    codebook = np.arange(512, dtype=np.float32).reshape(256, 2)
    dataset = check(made(*[(1, 6, 6)] * 20), tmp_path, codebook=codebook)
    tokenizer = dataset.tokenizer  # type: ignore[attr-defined]
    assert (tokenizer.spec.kind, tokenizer.spec.levels) == ("external", (256,))
    assert np.array_equal(tokenizer.tensors()["codebook"], codebook)
    line = refused("show", str(tmp_path / "tokens"), "--out", str(tmp_path / "x.png"), code=2)
    assert "does not hold the tokenizer that made them" in line
    assert not (tmp_path / "x.png").exists()


def test_the_tokenizer_that_made_the_ids_is_copied_into_the_dataset(tmp_path: Path) -> None:
    from shards.conftest import TOKENIZER, WEIGHTS

    saved = Store(tmp_path / "saved")
    saved.put("tokenizer.json", TOKENIZER.model_dump_json().encode())
    saved.put("model.safetensors", WEIGHTS)
    dataset = check(made(*[(1, 6, 6)] * 20), tmp_path, source={"tokenizer": saved.root})
    assert dataset.manifest.tokenizer.fingerprint == TOKENIZER.fingerprint
    assert dataset.tokenizer_files() == (TOKENIZER, WEIGHTS)
    with pytest.raises(JobError, match=r"ids below \[256\], the ids of .* are below \[300\]"):
        import_arrays(tmp_path, made((1, 6)), Mode(overwrite=True), source={"tokenizer": saved.root, "alphabet": 300})


def test_codes_are_appended_where_they_are_alike(tmp_path: Path) -> None:
    shapes = [(2, 5, 5)] * 30
    import_arrays(tmp_path, made(*shapes), source={"grid": (5, 5)})
    more: dict[str, Any] = {"mode": Mode(append=True), "first": 30}
    others: list[tuple[list[Codes], dict[str, Any], str]] = [
        (made(*shapes), {"alphabet": 300, "grid": (5, 5)}, "holds ids of tokenizer"),
        (made(*[(2, 5)] * 3), {}, "holds ids of tokenizer"),
        (made(*[(2, 5, 6)] * 3), {"grid": (5, 6)}, r"has grid \(5, 5\), the job grid \(5, 6\)"),
        (made(*[(2, 5, 6)] * 3), {}, r"has size columns \(\), the job size columns \('height', 'width'\)"),
    ]
    for codes, source, message in others:
        with pytest.raises(SpecError, match=message):
            import_arrays(tmp_path, codes, source=source, **more)
    assert import_arrays(tmp_path, made(*shapes), source={"grid": (5, 5)}, **more).num_samples == 60
    dataset = tokenshard.open(tmp_path / "tokens")
    assert (dataset.manifest.version, dataset.manifest.code.grid) == (2, (5, 5))
    assert np.array_equal(dataset[59]["codes"], made(*shapes)[29])
    assert verify(Store(tmp_path / "tokens"), deep=True).ok


def test_an_unknown_format_is_named_with_those_there_are(tmp_path: Path) -> None:
    line = refused("import", "nppy", "codes.npy", str(tmp_path / "out"), code=2)
    assert "unknown format 'nppy'; known: " in line


def test_the_import_does_not_depend_on_how_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = made(*[(2, 1 + n % 6, 5) for n in range(60)])
    limits: list[dict[str, int]] = [{}, {"batch_size": 1}, {"decode_threads": 3}, {"batch_bytes": 100}]
    prints = set()
    for number, limit in enumerate(limits):
        (tmp_path / str(number)).mkdir()
        engine = {"kind": "local", "workers": 0, **limit}
        prints.add(import_arrays(tmp_path / str(number), codes, engine=engine, unit={"samples": 25}).fingerprint)
        monkeypatch.setattr("tokenshard.engine.unit.APPEND_BYTES", 100 * number)  # large samples go one by one
    assert len(prints) == 1
