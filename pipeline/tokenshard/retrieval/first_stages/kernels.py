"""Compiled loops of first stages."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenshard.retrieval.compression.kernels import kernel


@kernel
def entries(ids: Any, offsets: Any, pages: Any, seen: Any, out_ids: Any, out_pages: Any) -> Any:
    """Each (centroid, page) once, in the order of pages; returns how many. ``seen`` [K]: the last page of each."""
    used = 0
    for place in range(pages.shape[0]):
        page = pages[place]
        for vector in range(offsets[place], offsets[place + 1]):
            own = ids[vector]
            if seen[own] != page:
                seen[own] = page
                out_ids[used], out_pages[used] = own, page
                used += 1
    return used


@kernel
def accumulate(starts: Any, pages: Any, probes: Any, gains: Any, stamps: Any, out: Any) -> None:
    """Add, for each query vector, the gain of the first of its lists that a page is in.

    List k is ``pages[starts[k]:starts[k + 1]]``. ``probes`` [m, n]: lists of each query vector by descending ``gains``
    [m, n]. ``stamps`` int32 [P], zeros: the last query vector, from 1, that came across a page.
    """
    for row in range(probes.shape[0]):
        stamp = np.int32(row + 1)
        for probe in range(probes.shape[1]):
            gain = gains[row, probe]
            own = probes[row, probe]
            for place in range(starts[own], starts[own + 1]):
                page = pages[place]
                if stamps[page] != stamp:
                    stamps[page] = stamp
                    out[page] += gain


@kernel
def merge(starts: Any, pages: Any, numbers: Any, ends: Any, out: Any) -> None:
    """Copy lists behind those that end at ``ends`` [K], with the pages' ``numbers``; those below 0 are left out."""
    for own in range(ends.shape[0]):
        at = ends[own]
        for place in range(starts[own], starts[own + 1]):
            number = numbers[pages[place]]
            if number >= 0:
                out[at] = number
                at += 1
        ends[own] = at
