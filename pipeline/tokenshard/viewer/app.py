"""The web application: which address is answered by what. Nothing in a request is ever the name of a file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from importlib import resources
from threading import Thread
from typing import Any

import numpy as np
from anyio.to_thread import current_default_thread_limiter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tokenshard.errors import TokenshardError
from tokenshard.shards.once import OnceCache
from tokenshard.shards.where import Where
from tokenshard.viewer.answers import Asked, File, endpoint, failed
from tokenshard.viewer.codebook import MOST, code_details, codes_page, codes_strip, strip_of
from tokenshard.viewer.counting import counted
from tokenshard.viewer.guard import Guard
from tokenshard.viewer.listing import Filter, listed
from tokenshard.viewer.opened import Missing, Opened
from tokenshard.viewer.pictures import Thumbnails, enlarged, ids_picture, laid_out, picture, png
from tokenshard.viewer.rate import Rate, Reduced, rates
from tokenshard.viewer.storage import rejects, storage

THREADS = 8
"""Requests that are worked on at a time: each may hold a few decoded pictures."""
FIRST_PAGE = 48
"""Samples whose pictures are made before anybody asks: what decodes them is loaded by then."""
IDS_SENT = 1 << 14
MOVIES_KEPT = 8
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def application(opened: Callable[[], Opened], host: str = "127.0.0.1", allowed: Iterable[str] = ()) -> ASGIApp:
    """The viewer of what ``opened`` gives, which is asked until it does not raise. ``host``: where it listens.

    ``allowed``: further names under which it may be reached.
    """

    def open_once(name: str) -> Opened:
        return opened()

    kept = OnceCache(open_once, 1)
    answers: dict[str, Callable[[Opened, Asked], dict[str, Any] | File]] = {
        "dataset": lambda found, asked: found.summary(),
        "samples": _samples,
        "keys": _key,
        "samples/{number}": lambda found, asked: found.details(asked.place("number")),
        "samples/{number}/thumbnail.png": lambda found, asked: _png(found.part(Thumbnails)(asked.place("number"))),
        "samples/{number}/picture.png": _picture,
        "samples/{number}/original.png": _original,
        "samples/{number}/codes.png": _codes_picture,
        "samples/{number}/codes": _codes,
        "samples/{number}/clip.mp4": lambda found, asked: found.part(_movies)(asked.place("number")),
        "samples/{number}/matches.png": _matches,
        "samples/{number}/rate": lambda found, asked: _rate(found, asked).facts,
        "samples/{number}/rate.png": lambda found, asked: _png(png(_rate(found, asked).pixels)),
        "rates": lambda found, asked: rates(found).choices(),
        "codebook/{level}": lambda found, asked: codes_page(found, *_codes_asked(asked)),
        "codebook/{level}/strip.png": lambda found, asked: _png(png(codes_strip(found, *_codes_asked(asked)), 1 << 15)),
        "codebook/{level}/some.png": _some_codes,
        "codebook/{level}/{code}": lambda found, asked: code_details(found, asked.place("level"), asked.place("code")),
        "storage": lambda found, asked: storage(found),
        "rejects": lambda found, asked: rejects(found),
        "maps": _maps,
        "map": lambda found, asked: _map(found, asked).facts,
        "map.png": lambda found, asked: _png(_map(found, asked).png),
        "search": _search,
    }

    def begin() -> None:
        with suppress(TokenshardError):  # whoever asks is told
            kept("dataset").part(Thumbnails).expect(range(min(FIRST_PAGE, len(kept("dataset").dataset))))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = THREADS
        Thread(target=begin, daemon=True).start()
        yield

    routes = [Route(f"/api/{path}", endpoint(lambda: kept("dataset"), answer)) for path, answer in answers.items()]
    app = Starlette(
        routes=[Route("/", _page("index.html")), Route("/static/{name}", _static), *routes],
        exception_handlers={404: _nothing, 405: _nothing},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return Guard(app, host, allowed)


# -- the page itself --------------------------------------------------------------------------------------------------


@cache
def pages() -> dict[str, tuple[bytes, str, str]]:
    """Content, type and ETag of the files of the page, by name. They are read once; no request names a path."""
    found = {}
    for file in resources.files("tokenshard.viewer").joinpath("static").iterdir():
        suffix = file.name.rpartition(".")[2]
        if suffix in TYPES:
            content = file.read_bytes()
            found[file.name] = content, TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:24]}"'
    return found


def _page(name: str) -> Callable[[Request], Response]:
    def handle(request: Request) -> Response:
        content, media_type, etag = pages()[name]
        headers = {"etag": etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, 200, headers, media_type)

    return handle


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in pages():
        return failed(Missing("there is no such file"))
    return _page(name)(request)


def _nothing(request: Request, error: Exception) -> Response:
    return failed(error)


# -- samples ----------------------------------------------------------------------------------------------------------


def _png(content: bytes, name: str | None = None) -> File:
    return File(content, "image/png", name)


def _samples(opened: Opened, asked: Asked) -> dict[str, Any]:
    text = asked.text("where")
    where = Where.parse(text, opened.dataset.schema) if text.strip() else None
    wanted = Filter(asked.text("key"), asked.flag("contains"), where)
    found = listed(opened, asked.number("from", 0), asked.number("count", FIRST_PAGE, 1), wanted)
    opened.part(Thumbnails).expect([sample["number"] for sample in found["samples"]])
    return found


def _key(opened: Opened, asked: Asked) -> dict[str, Any]:
    key = asked.text("key")
    try:
        return {"key": key, "number": opened.dataset.index(key)}
    except KeyError:
        raise Missing(f"{opened.dataset.store.root}: no sample with key {key!r}") from None


def _picture(opened: Opened, asked: Asked) -> File:
    number = asked.place("number")
    pixels = picture(opened, number, asked.number("frame", 0))
    name = f"{_file_name(opened.sample(number)['key'])}.png" if asked.flag("download") else None
    return _png(png(pixels), name)


def _original(opened: Opened, asked: Asked) -> File:
    key = opened.sample(asked.place("number"))["key"]
    original, frame = opened.original(key), asked.number("frame", 0)
    if original is None or not original.size:
        hint = "its source is out of reach" if opened.options.originals else "start the viewer with --originals"
        raise Missing(f"the original of {key!r} is not shown: {hint}")
    if original.ndim == 4 and frame >= len(original):
        raise Missing(f"no frame {frame} of the original of {key!r}")
    return _png(png(original[frame] if original.ndim == 4 else original))


def _codes_picture(opened: Opened, asked: Asked) -> File:
    sample, level = opened.sample(asked.place("number")), asked.number("level", 0)
    order = None
    if asked.text("by") == "rank":
        counted(opened).level(level)
        order = np.log1p(counted(opened).ranks[level].astype(np.float64))
    pixels = ids_picture(laid_out(opened, sample, level, asked.number("frame", 0)), order)
    if asked.flag("download"):
        name = f"{_file_name(sample['key'])}-codes-{level}.png"
        return _png(png(enlarged(pixels, max(1, 512 // max(pixels.shape[:2])))), name)
    return _png(png(pixels))


def _codes(opened: Opened, asked: Asked) -> dict[str, Any]:
    """Ids of a level of a sample as a picture has them (-1: none there), with their use in what was counted."""
    number, level, frame = asked.place("number"), asked.number("level", 0), asked.number("frame", 0)
    ids = laid_out(opened, opened.sample(number), level, frame)
    use = counted(opened).level(level)
    distinct, times = np.unique(ids[ids >= 0], return_counts=True)
    ranks = counted(opened).ranks[level]
    order = np.lexsort((ranks[distinct], -times))
    return {
        "level": level,
        "shape": list(ids.shape),
        "ids": ids.ravel().tolist() if ids.size <= IDS_SENT else None,
        "alphabet": len(use.counts),
        "distinct": len(distinct),
        "codes": [
            {
                "code": int(distinct[place]),
                "times": int(times[place]),
                "rank": int(ranks[distinct[place]]),
                "count": int(use.counts[distinct[place]]),
            }
            for place in order.tolist()
        ],
        "counted": counted(opened).of_whom(),
    }


def _movies(opened: Opened) -> Callable[[int], File]:
    return OnceCache(partial(_movie, opened), MOVIES_KEPT)


def _movie(opened: Opened, number: int) -> File:
    from tokenshard.report.movies import sample_movie

    sample = opened.sample(number)
    if sample["codes"].ndim != 4:
        raise Missing(f"sample {number} is no clip")
    return File(sample_movie(opened.tokenizer, sample)[1], "video/mp4")


def _rate(opened: Opened, asked: Asked) -> Reduced:
    rate = Rate(asked.number("levels", 0), asked.number("codes", 0))
    return rates(opened).at(asked.place("number"), rate, asked.number("frame", 0))


def _file_name(key: str) -> str:
    """A key as the name of a file that every system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", key).strip("-.")[-100:] or "sample"


# -- codes, maps, pages -----------------------------------------------------------------------------------------------


def _codes_asked(asked: Asked) -> tuple[int, str, int, int]:
    order = asked.text("order", "most")
    return asked.place("level"), order, asked.number("from", 0), asked.number("count", 96, 1, MOST)


def _some_codes(opened: Opened, asked: Asked) -> File:
    given = asked.text("codes").split(",")
    codes = [int(code) if code.isascii() and code.isdigit() and len(code) < 10 else -1 for code in given]
    return _png(png(strip_of(opened, asked.place("level"), codes), 1 << 15))


def _maps(opened: Opened, asked: Asked) -> dict[str, Any]:
    from tokenshard.viewer.maps import maps

    return {"grids": maps(opened).listed()}


def _map(opened: Opened, asked: Asked) -> Any:
    from tokenshard.viewer.maps import Asked as AskedMap
    from tokenshard.viewer.maps import maps, parse_box

    level = asked.number("level", 0) or None
    wanted = AskedMap(asked.text("grid"), asked.text("band", "elevation"), level, parse_box(asked.text("box")))
    return maps(opened).draw(wanted)


def _search(opened: Opened, asked: Asked) -> dict[str, Any]:
    from tokenshard.viewer.documents import pages

    return pages(opened).find(asked.text("q"), asked.number("top", 12, 1))


def _matches(opened: Opened, asked: Asked) -> File:
    from tokenshard.viewer.documents import Query, pages, rgba_png

    number = opened.checked(asked.place("number"))
    vector = None if asked.text("vector") == "" else asked.number("vector", 0)
    return _png(rgba_png(pages(opened).matches(number, Query(asked.text("q"), vector))))
