"""A viewer that runs, and requests to it as they go over the wire."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import tokenshard
from grids.converting import convert_grids
from pdf_files import Word, pdf
from tokenshard.report.movies import movie
from tokenshard.shards.dataset import open_dataset
from tokenshard.spec.job import JOB_KINDS, build_job
from tokenshard.viewer.opened import Opened, Options
from tokenshard.viewer.server import Viewer

LOCAL: dict[str, Any] = {"engine": {"kind": "local", "workers": 0}}
CLASSES = ("bird", "cat", "ship")
FRAMES, SIDE = 8, 24
TEXTS = {"wings": "a thin wing produces lift at low speed", "bread": "knead the dough and let it rest over night"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The message of an error, which is always JSON."""
        assert self.status >= 400, self
        assert self.headers["content-type"] == "application/json"
        return str(self.json["error"]["message"])


@dataclass(frozen=True)
class Browser:
    """Requests to one viewer. Paths are sent as they are."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, path: str, method: str = "GET", **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host="host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        reply = Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        connection.close()
        return reply

    def get(self, path: str) -> Any:
        """The JSON of an answer that must be one."""
        reply = self.ask(f"/api/{path}")
        assert reply.status == 200, reply.body
        return reply.json


@contextmanager
def viewing(out: Path | str, options: Options | None = None, **listening: Any) -> Iterator[Browser]:
    """A viewer of a dataset on a port of its own, until the block ends."""
    viewer = Viewer(lambda: Opened(open_dataset(out), options or Options()), port=0, **listening)
    thread = threading.Thread(target=viewer.run)
    thread.start()
    try:
        yield Browser(viewer.port)
    finally:
        viewer.stop()
        thread.join()


def make_images(folder: Path, count: int, side: int = 32) -> None:
    """Pictures of three classes, of soft blobs in the colours of the class, and one file that is none."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:side, :side] / side
    for number in range(count):
        label = number % len(CLASSES)
        path = folder / CLASSES[label] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        y, x = rng.random(2)
        blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) * 12)[..., None]
        pixels = 40 + 180 * blob * np.roll([1.0, 0.5, 0.2], label) + rng.integers(0, 20, (side, side, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    (folder / CLASSES[0] / "broken.png").write_bytes(b"no picture")


def make_clips(root: Path) -> Path:
    """A dataset of one clip of eight frames, a quarter of a second each: a light square moves over a dark ground."""
    frames = np.full((FRAMES, 48, 48, 3), 40, np.uint8)
    for number, frame in enumerate(frames):
        frame[8:24, 4 * number : 4 * number + 12] = (220, 200, 120)
    (root / "videos").mkdir()
    (root / "videos" / "square.mp4").write_bytes(movie(frames, fps=4.0))
    source = {"path": str(root / "videos"), "fps": 4, "size": SIDE, "fit": "resize"}
    return _converted("convert-video", root, source, tokenizer="patch:4x4,k=32")


def make_depths(root: Path) -> Path:
    """A dataset of one grid at two levels: a basin of 96 x 128 cells with an island, and a corner without values."""
    import rasterio

    rows, columns = np.mgrid[:96, :128].astype(np.float32)
    height = -80 + 100 * np.exp(-((rows - 60) ** 2 + (columns - 30) ** 2) / 300)
    height[:16, 100:] = np.nan
    transform = rasterio.Affine(0.01, 0, 10, 0, -0.01, 50)
    shape = {"height": 96, "width": 128, "count": 1, "dtype": "float32"}
    with rasterio.open(root / "a.tif", "w", **shape, crs="EPSG:4326", transform=transform, nodata=np.nan) as file:
        file.write(height.astype(np.float32), 1)
    convert_grids(root / "a.tif", root / "tokens", "abs:0.05", levels=[1, 2])
    return root / "tokens"


def make_papers(root: Path) -> Path:
    """A dataset of two PDF files of one page, whose words are in its upper half."""
    (root / "papers").mkdir()
    for name, text in TEXTS.items():
        words = [Word(word, 60 + 70 * (n % 3), 740 - 40 * (n // 3)) for n, word in enumerate(text.split())]
        (root / "papers" / f"{name}.pdf").write_bytes(pdf([words]))
    return _converted("convert-documents", root, {"path": str(root / "papers")})


def _converted(kind: str, root: Path, source: dict[str, Any], **fields: Any) -> Path:
    out = root / "tokens"
    tokenshard.run(build_job(JOB_KINDS[kind], {"source": source, "output": str(out), **fields, **LOCAL}))
    return out
