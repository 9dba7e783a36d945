"""What README and docs tell people to type works: every shell and Python block is run on a folder of real images."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from integration.command import command_here
from tokenshard.api import load_job

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
RUN = ("bash", "python")
LABELLED = {"docs/index.md"}
"""Pages on which the photographs are in sub-folders, one a class."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder as the documentation has it: `photos/` with some photographs, and the job specs."""
    skimage_data = pytest.importorskip("skimage.data")
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(skimage_data, name)()[:160, :160]).save(tmp_path / "photos" / f"{name}.png")
    write_clips(tmp_path / "clips", tmp_path / "photos")
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    return tmp_path


def write_clips(folder: Path, photos: Path) -> None:
    """A video of each photograph: the camera moves over it."""
    av = pytest.importorskip("av")
    from PIL import Image

    folder.mkdir()
    for photo in sorted(photos.iterdir()):
        pixels = np.asarray(Image.open(photo).convert("RGB"))
        with av.open(str(folder / f"{photo.stem}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.height = stream.width = 128
            stream.pix_fmt = "yuv420p"
            for step in range(30):
                view = np.ascontiguousarray(pixels[step : step + 128, step : step + 128])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
            container.mux(stream.encode(None))


def run(*words: str) -> str:
    """What a command prints."""
    done = command_here(*words)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_documentation_runs(page: str, place: Path) -> None:
    blocks = [block for block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")) if block[0] in RUN]
    if page in LABELLED:
        for photo in sorted((place / "photos").iterdir()):
            (place / "photos" / photo.stem).mkdir()
            photo.rename(place / "photos" / photo.stem / photo.name)
    words, text = [sys.executable, str(ROOT / "tests" / "type_along.py")], json.dumps(blocks)
    done = subprocess.run(words, input=text, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_the_documentation_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_the_job_specs_of_jobs_run_on_small_data(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    run("convert", "images", "photos/", "tokens/", "--quiet")
    np.save(place / "codes.npy", np.arange(2048, dtype=np.int16).reshape(8, 16, 16) % 1024)
    for photo in ("astronaut", "chelsea"):
        (place / "classes" / photo).mkdir(parents=True)
        shutil.copy(place / "photos" / f"{photo}.png", place / "classes" / photo)
    run("convert", "images", "classes/", "labelled/", "--quiet")
    sources = {"convert-images": "photos/", "transcode": "tokens/", "import": "codes.npy", "train-tokenizer": "photos/"}
    grid = place / "grid.asc"
    rows = "\n".join(" ".join(str(-row * column) for column in range(40)) for row in range(40))
    grid.write_text(f"ncols 40\nnrows 40\nxllcorner 0\nyllcorner 0\ncellsize 1\n{rows}\n")
    sources["convert-grids"] = str(grid)
    lines = [
        {"_id": str(n), "text": f"the {n}th page says what wings and {word} do"} for n, word in enumerate("abcdefgh")
    ]
    (place / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    sources |= {"convert-documents": "corpus.jsonl"}
    pages = np.random.default_rng(0).standard_normal((8, 30, 32)).astype(np.float16)
    np.save(place / "vectors.npy", pages)
    sources |= {"convert-video": "clips/", "compress-documents": "vectors.npy"}
    words = ["--size", "96", "--fit", "center-crop", "--labels", "name", "--quiet"]
    run("convert", "video", "clips/", "video-tokens/", *words)
    sources |= {"train-clips": "video-tokens/"}
    sources |= {"train-classifier": "labelled/", "train-mtm": "labelled/", "train-adapt": "labelled/"}
    run("convert", "grids", str(grid), "depths/", "--levels", "1,2", "--quiet")
    (place / "two").mkdir()
    for name in ("a", "b"):
        (place / "two" / f"{name}.asc").write_bytes(grid.read_bytes())
    sources |= {"train-grid-sr": "depths/", "train-grid-tokenizer": "two/"}
    for spec in sorted((ROOT / "jobs").glob("*.yaml")):
        job = load_job(spec)
        if job.kind.startswith("train-"):
            fields = yaml.safe_load(spec.read_text(encoding="utf-8"))
            small = {"steps": 3, "batch": 2}
            if "recipe" in fields:
                fields["recipe"] |= {**small, "crop": 32}
            else:
                fields |= small
            if "size" in fields.get("model", {}):
                fields["model"] |= {"size": "micro"}
            spec = place / spec.name
            spec.write_text(yaml.safe_dump(fields), encoding="utf-8")
        source = sources.get(spec.stem, sources[job.kind])
        words = ["run", str(spec), "--source", source, "--output", str(place / "out" / spec.stem), "--quiet"]
        assert "fingerprint" in run(*words)
