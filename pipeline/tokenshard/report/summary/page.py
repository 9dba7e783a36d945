"""A report as one HTML file that needs nothing else: no script, no request, light or dark as its reader has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from tokenshard.errors import SpecError
from tokenshard.readable import readable_bytes, readable_seconds
from tokenshard.report.code_use import CodeUse
from tokenshard.report.summary.figures import Summary
from tokenshard.report.summary.markup import Markup, bars, curve, facts, joined, table, tag
from tokenshard.report.summary.pictures import Card, grid_maps, sample_cards, use_picture

LEVELS_DRAWN = 8
CURVE_POINTS = 300
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Whatever a key of the dataset says, nothing is loaded and nothing is run."""


def report_page(summary: Summary) -> str:
    """The page as text. Raises FormatError where a sample that is drawn is damaged."""
    figures = summary.figures
    name = str(figures["dataset"]["location"])
    notes = list(figures["notes"])
    sections = [
        _head(figures),
        _sizes(figures),
        _codes(figures, summary.codes.levels),
        _samples(summary),
        _grids(summary, notes),
        _documents(figures),
        _rejects(figures["rejects"]),
        _throughput(figures["throughput"]),
        _provenance(figures),
        _section("How this was measured", tag("ul", *(tag("li", note) for note in notes))) if notes else Markup(""),
    ]
    style = Markup(files("tokenshard.report.summary").joinpath("page.css").read_text("utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{name}: tokenshard report"),
        tag("style", style),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", tag("main", *sections)), lang="en") + "\n"


def _section(title: str, *content: object) -> Markup:
    return tag("section", tag("h2", title), *content)


def _head(figures: dict[str, Any]) -> Markup:
    dataset, sizes, codes = figures["dataset"], figures["sizes"], figures["codes"]
    grid = " × ".join("varies" if side is None else str(side) for side in dataset["grid"])
    boxes = [
        (f"{dataset['num_samples']:,}", f"samples of kind {dataset['kind']}"),
        (f"{dataset['num_tokens']:,}", f"tokens, grid {grid}"),
        (readable_bytes(sizes["token_bytes"]), f"in {counted(dataset['num_shards'], 'shard')}"),
        (times(sizes["raw_bytes"], sizes["token_bytes"]), "smaller than the input files"),
        (f"{codes['bits_per_token']:.2f}", "bits a token"),
        (f"{dataset['num_rejects']:,}", "rejected inputs"),
    ]
    return joined(
        (
            tag("h1", str(dataset["location"]).rstrip("/").rpartition("/")[2] or dataset["location"]),
            tag("p", f"{dataset['location']}, version {dataset['version']}", class_="muted"),
            tag("div", *(tag("div", tag("b", figure), tag("span", text)) for figure, text in boxes), class_="head"),
        )
    )


def times(large: float, small: float) -> str:
    """How often the one goes into the other; `–` where a size is not known."""
    return f"{large / small:.1f}×" if large and small else "–"


def size_rows(sizes: dict[str, Any]) -> list[tuple[str, int]]:
    """Ways of keeping the samples, with bytes; those that were not measured are left out."""
    rows = [
        ("pixels", sizes["pixel_bytes"]),
        ("input files", sizes["raw_bytes"]),
        (f"JPEG, quality {sizes['jpeg_quality']}", sizes["jpeg_bytes"]),
        ("token shards", sizes["token_bytes"]),
    ]
    return [(name, size) for name, size in rows if size]


def _sizes(figures: dict[str, Any]) -> Markup:
    sizes = figures["sizes"]
    rows = size_rows(sizes)
    tokens = sizes["token_bytes"]
    compared = bars(
        [
            (name, size, readable_bytes(size) + ("" if size == tokens else f", {times(size, tokens)} the tokens"))
            for name, size in rows
        ],
        "token shards",
    )
    parts = sorted(sizes["parts"].items(), key=lambda part: -part[1])
    inside = bars([(name, size, f"{readable_bytes(size)}, {size / max(1, tokens):.1%}") for name, size in parts])
    each = f"{sizes['bytes_per_sample']:,.1f} bytes a sample. Token shards are whole files, with keys and labels."
    if sizes["measured_samples"]:
        each += f" Pixels and JPEG are estimates from {counted(sizes['measured_samples'], 'original')}."
    return _section("Size", compared, tag("p", each, class_="muted"), tag("h3", "Inside the shards"), inside)


def _codes(figures: dict[str, Any], levels: Sequence[CodeUse]) -> Markup:
    codes = figures["codes"]
    alphabet_bits = sum(level["log2_alphabet"] for level in codes["levels"]) / max(1, len(codes["levels"]))
    rows = [
        ("log₂ of the codebook", alphabet_bits, f"{alphabet_bits:.3f} bits"),
        ("order-0 entropy", codes["order0_entropy"], f"{codes['order0_entropy']:.3f} bits"),
        ("streams", codes["bits_per_token"], f"{codes['bits_per_token']:.3f} bits"),
    ]
    if "packed beside codes" not in figures["sizes"]["parts"]:  # else files hold more than tokens
        rows.append(("whole files", codes["file_bits_per_token"], f"{codes['file_bits_per_token']:.3f} bits"))
    heads = ["level", "codec", "codes", "used", "perplexity", "log₂", "order 0", "bits/id", "bytes", "model"]
    lines = [
        (
            level["column"], level["codec"], f"{level['alphabet']:,}", f"{level['codes_used']:,}",
            f"{level['perplexity']:,.1f}", f"{level['log2_alphabet']:.2f}", f"{level['order0_entropy']:.3f}",
            f"{level['bits_per_token']:.3f}", readable_bytes(level["stream_bytes"]),
            readable_bytes(level["model_bytes"]),
        )
        for level in codes["levels"]
    ]  # fmt: skip
    drawn = [_use(level["column"], use) for level, use in zip(codes["levels"], levels, strict=True)]
    more = len(drawn) - LEVELS_DRAWN
    rest = tag("p", f"and {counted(more, 'level')} more", class_="muted") if more > 0 else ""
    key = tag(
        "p",
        "Left: every code as a cell, row by row, the lighter the more it occurs (log scale). Right: how often each "
        "occurs, the most frequent first.",
        class_="muted",
    )
    return joined(
        (
            _section("Bits a token", bars(rows, "streams"), table(heads, lines, texts=2)),
            _section("Use of the codebook", tag("div", *drawn[:LEVELS_DRAWN], class_="levels"), rest, key),
        )
    )


def _use(column: str, use: CodeUse) -> Markup:
    falling = sorted(use.counts.tolist(), reverse=True)
    step = max(1, len(falling) // CURVE_POINTS)
    label = f"{column}: {use.usage:.1%} of {len(use.counts):,} codes occur, perplexity {use.perplexity:,.1f}"
    picture = tag("img", src=use_picture(use), alt=f"use of each code of {column}", class_="exact")
    drawing = tag("div", picture, curve(falling[::step], label), class_="use")
    return tag("figure", drawing, tag("figcaption", label), style="margin:0")


def _samples(summary: Summary) -> Markup:
    cards = [_card(card) for card in sample_cards(summary)]
    if not cards:
        return Markup("")
    return _section("Samples", tag("div", *cards, class_="samples"))


def _card(card: Card) -> Markup:
    lines = []
    several = len(card.lines) > 1
    for line in card.lines:
        tiles = [
            tag(
                "figure",
                tag("img", src=tile.uri, alt=tile.heading or card.text, class_="exact" if tile.exact else None),
                tag("figcaption", tile.heading) if tile.heading and (not several or place == 0) else "",
            )
            for place, tile in enumerate(line)
        ]
        lines.append(tag("div", *tiles, class_="tiles"))
    return tag("figure", *lines, tag("figcaption", card.text))


def _grids(summary: Summary, notes: list[str]) -> Markup:
    found = summary.figures["grids"]
    if found is None:
        return Markup("")
    error = "not measured: tokens alone" if found["max_error"] is None else f"{found['max_error']:g}"
    pairs = [
        ("bound", found["bound"]),
        ("largest error", f"{error} in {found['tiles_read']:,} of {found['tiles']:,} tiles, as measured when written"),
        ("bits a valid cell", f"{found['bits_per_valid_cell']:.3f}, whole files"),
    ]
    heads = ["grid", "rows", "columns", "unit", "levels"]
    lines = [
        (
            grid["uri"], f"{grid['height']:,}", f"{grid['width']:,}", grid["units"] or "–",
            ", ".join(map(str, grid["levels"])),
        )
        for grid in found["grids"]
    ]  # fmt: skip
    try:
        maps = [tag("div", _card(card), class_="map") for card in grid_maps(summary)]
    except (ImportError, SpecError) as error_:
        maps = []
        notes.append(f"No map: {error_}; maps need matplotlib: pip install 'tokenshard[demo]'")
    return _section("Grids", facts(pairs), table(heads, lines), *maps)


def _documents(figures: dict[str, Any]) -> Markup:
    found = figures["documents"]
    if found is None:
        return Markup("")
    pairs = [
        ("pages", f"{found['pages']:,}"),
        ("vectors", f"{found['vectors']:,}, {found['vectors_per_page']:,.1f} a page"),
        ("bytes a vector", f"{found['bytes_per_vector']:,.2f}, whole files"),
        ("bytes a page", readable_bytes(found["bytes_per_page"])),
    ]
    return _section("Pages", facts(pairs))


def _rejects(rejects: dict[str, Any]) -> Markup:
    if not rejects["total"]:
        return _section("Rejected inputs", tag("p", "None."))
    heads = ["stage", "error", "example", "message", "inputs"]
    rows = [(r["stage"], r["error"], r["example"], r["message"], f"{r['count']:,}") for r in rejects["reasons"]]
    part = "" if rejects["read"] >= rejects["total"] else f" Counted in the first {rejects['read']:,}."
    return _section(
        "Rejected inputs",
        tag("p", f"{counted(rejects['total'], 'input')} became no samples.{part}"),
        table(heads, rows, texts=4),
    )


def _throughput(jobs: Sequence[dict[str, Any]]) -> Markup:
    if not jobs:
        return _section("Throughput", tag("p", "Not known: the job folder _job/ is gone, or no job wrote there."))
    heads = ["version", "started (UTC)", "took", "inputs", "inputs/s", "raw in", "tokens out"]
    rows = [
        (
            job["version"], job["started"].replace("T", " ").removesuffix("+00:00"), readable_seconds(job["seconds"]),
            f"{job['inputs']:,}", f"{job['inputs_per_second']:,.0f}", readable_bytes(job["raw_bytes"]),
            readable_bytes(job["token_bytes"]),
        )
        for job in jobs
    ]  # fmt: skip
    note = "Of the last driver of each job; planning and fitting are in the time, not in the rate."
    return _section("Throughput", table(heads, rows, texts=2), tag("p", note, class_="muted"))


def _provenance(figures: dict[str, Any]) -> Markup:
    found = figures["provenance"]
    tokenizer = found["tokenizer"]
    models = [f"{c['column']}: {c['codec']}" + (f", model {c['model']}" if c["model"] else "") for c in found["codecs"]]
    identity = joined((f"{tokenizer['kind']} ", tag("code", tokenizer["fingerprint"]), f", {tokenizer['numerics']}"))
    pairs: list[tuple[str, object]] = [
        ("dataset", tag("code", figures["dataset"]["fingerprint"])),
        ("source", found["source"].get("path", "–")),
        ("tokenizer", identity),
        ("its weights (SHA-256)", tag("code", tokenizer["weights_sha256"])),
        ("codecs", joined(tag("div", tag("code", line)) for line in models)),
        ("format", f"version {found['format_version']}; readers of version {found['min_reader']} on"),
        ("this report", f"tokenshard {version('tokenshard')}"),
    ]
    jobs = table(
        ["job", "spec (SHA-256)", "plan (SHA-256)", "units", "inputs"],
        [
            (j["id"], j["spec_sha256"][:16], j["plan_sha256"][:16], f"{j['units']:,}", f"{j['inputs']:,}")
            for j in found["jobs"]
        ],
        texts=3,
    )
    more = [
        ("Job spec", found["job_spec"]),
        ("What was done to inputs", json.dumps(found["preprocess"], indent=1, ensure_ascii=False)),
        ("Tokenizer", tokenizer["description"]),
    ]
    details = [tag("details", tag("summary", title), tag("pre", text)) for title, text in more if text]
    commands = tag("pre", "\n".join(found["commands"]))
    return _section("Provenance", facts(pairs), jobs, *details, tag("h3", "To check it"), commands)


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
