"""HTML of which every text and attribute is escaped: what comes out of a dataset is data, whatever it says."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from tokenshard.readable import printable


class Markup(str):
    """Text that is HTML already; :func:`tag` and :func:`joined` alone make it."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. ``children`` that are no :class:`Markup` are escaped; ``class_`` is `class`, `_` in names `-`."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(printable(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in {"img", "meta", "br"}:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(children)}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    return Markup("".join(part if isinstance(part, Markup) else html.escape(printable(part)) for part in parts))


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], texts: int = 1) -> Markup:
    """A table of which all columns but the first ``texts`` hold figures."""
    sides = ["" if place < texts else "figure" for place in range(len(heads))]
    head = tag("tr", *(tag("th", text, class_=side, scope="col") for text, side in zip(heads, sides, strict=True)))
    body = [tag("tr", *(tag("td", cell, class_=side) for cell, side in zip(row, sides, strict=True))) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="wide")


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Names beside their values."""
    return tag("dl", *(joined((tag("dt", name), tag("dd", value))) for name, value in pairs))


def bars(rows: Sequence[tuple[str, float, str]], strong: str = "") -> Markup:
    """Horizontal bars: name, length, text beside it. The one named ``strong`` stands out."""
    longest = max((value for _, value, _ in rows), default=0) or 1.0
    lines = []
    for name, value, text in rows:
        width = f"width:{max(0.3, 100 * value / longest):.2f}%"
        bar = tag("span", tag("i", style=width), class_="bar strong" if name == strong else "bar")
        lines.append(tag("div", tag("span", name, class_="name"), bar, tag("span", text, class_="text"), class_="line"))
    return tag("div", *lines, class_="bars")


def curve(values: Sequence[float], label: str) -> Markup:
    """Falling values as an area, 0 to the first; ``label`` is read aloud."""
    width, height = 600, 120
    top = max(values, default=0) or 1.0
    step = width / max(1, len(values) - 1)
    points = " ".join(f"{place * step:.1f},{height - height * value / top:.1f}" for place, value in enumerate(values))
    area = tag("polygon", points=f"0,{height} {points} {width},{height}")
    return tag("svg", area, viewBox=f"0 0 {width} {height}", preserveAspectRatio="none", role="img", aria_label=label)
