"""`distill` and `querymap`: what ranks pages learns from exact MaxSim, without judgements.

For a pseudo-query the student scores the pages that exact search ranks first and some others, and the cross entropy of
the two softmaxes is lowered (ListNet, Cao et al., 2007, as in Distill-VQ, arXiv:2204.00185). `distill` moves the
codewords, and assigns vectors to them anew after each pass; `querymap` leaves codes alone and learns a linear map of
queries (after the query side of JPQ, Zhan et al., arXiv:2108.00644).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import numpy as np
import torch
from torch import Tensor

from tokenshard.retrieval.compression.base import Compressor
from tokenshard.retrieval.compression.codewords import Codewords
from tokenshard.retrieval.compression.held_out import Lessons, PseudoQueries
from tokenshard.retrieval.compression.query_map import QueryMap
from tokenshard.retrieval.exact import Multivectors, Vectors

PASSES = 6
BATCH = 8
"""Queries of a step."""
BEST, OTHERS = 24, 24
"""Pages that a query is trained on: those exact search ranks first, and random ones."""


class Student(ABC):
    """What is trained: similarities of query vectors and vectors of pages, by way of parameters."""

    rate: float
    parameter: Tensor

    @abstractmethod
    def similarities(self, query: Vectors, rows: Tensor) -> Tensor:
        """Of a query [m, d] and the vectors of pages at ``rows`` [n]: [m, n]."""

    @abstractmethod
    def result(self) -> Compressor:
        """The method as it stands."""

    @abstractmethod
    def after_pass(self) -> None: ...


class Words(Student):
    """Codewords move."""

    rate = 1e-3

    def __init__(self, plain: Compressor, pages: Multivectors) -> None:
        self._plain, self._pages = plain, pages
        codebooks = cast(Codewords, plain).codebooks
        self.parameter = torch.tensor(codebooks, requires_grad=True)
        self.after_pass()

    def similarities(self, query: Vectors, rows: Tensor) -> Tensor:
        parts = torch.from_numpy(cast(Codewords, self._plain).parts(query))  # [parts, m, w]
        tables = parts @ self.parameter.transpose(1, 2)  # [parts, m, K]
        chosen = self._ids[:, rows]
        return torch.stack([table[:, own] for table, own in zip(tables, chosen, strict=True)]).sum(0)

    def result(self) -> Compressor:
        books = self.parameter.detach().numpy().copy()
        return cast(Compressor, cast(Codewords, self._plain).with_codebooks(books))

    def after_pass(self) -> None:
        ids = self.result().encode(self._pages).ids
        assert ids is not None
        self._ids = torch.from_numpy(ids.astype(np.int64))


class Map(Student):
    """A matrix is put between queries and codes."""

    rate = 1e-3

    def __init__(self, plain: Compressor, pages: Multivectors) -> None:
        self._plain = plain
        encoded = plain.encode(pages)
        order = slice(None) if encoded.order is None else np.argsort(encoded.order)
        self._vectors = torch.from_numpy(plain.decode(encoded).vectors[order])
        self.parameter = torch.eye(pages.vectors.shape[1], requires_grad=True)

    def similarities(self, query: Vectors, rows: Tensor) -> Tensor:
        return (torch.from_numpy(query) @ self.parameter) @ self._vectors[rows].T

    def result(self) -> Compressor:
        return QueryMap(self._plain, self.parameter.detach().numpy().astype(np.float16))

    def after_pass(self) -> None:
        pass


def distill(plain: Compressor, sample: Multivectors, lessons: Lessons, seed: int) -> Compressor:
    """The method with codewords that rank like exact MaxSim."""
    return _trained(Words(plain, lessons.pages), lessons, seed)


def query_map(plain: Compressor, sample: Multivectors, lessons: Lessons, seed: int) -> Compressor:
    """The method behind a linear map of queries that makes it rank like exact MaxSim."""
    return _trained(Map(plain, lessons.pages), lessons, seed)


def _trained(student: Student, lessons: Lessons, seed: int) -> Compressor:
    """The best state after a pass, by the queries to choose with. In one thread: sums come in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _best_state(student, lessons, seed)
    finally:
        torch.set_num_threads(threads)


def _best_state(student: Student, lessons: Lessons, seed: int) -> Compressor:
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam([student.parameter], student.rate)
    best, most = student.result(), -1.0
    for _ in range(PASSES):
        order = rng.permutation(len(lessons.train))
        for first in range(0, len(order), BATCH):
            loss = torch.stack(
                [
                    _loss(student, lessons.train, int(query), lessons.pages, rng)
                    for query in order[first : first + BATCH]
                ]
            ).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        student.after_pass()
        state = student.result()
        found = float(lessons.choose.overlaps(state, lessons.pages).mean())
        if found > most:
            best, most = state, found
    return best


def _loss(student: Student, asked: PseudoQueries, query: int, pages: Multivectors, rng: np.random.Generator) -> Tensor:
    """ListNet of one query."""
    exact = asked.exact[query]
    order = np.argsort(-exact)
    order = order[np.isfinite(exact[order])]
    others = rng.choice(order[BEST:], min(OTHERS, max(0, len(order) - BEST)), replace=False)
    chosen = np.concatenate([order[:BEST], others])
    lengths = pages.lengths[chosen]
    rows = np.repeat(pages.offsets[chosen] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    similar = student.similarities(np.ascontiguousarray(asked.queries[query]), torch.from_numpy(rows))
    of_page = torch.from_numpy(np.repeat(np.arange(len(chosen)), lengths)).expand(len(similar), -1)
    empty = similar.new_full((len(similar), len(chosen)), -torch.inf)
    scores = empty.scatter_reduce(1, of_page, similar, "amax").sum(0)
    teacher = torch.from_numpy(exact[chosen])
    scale = teacher.std().clamp_min(1e-6) / 2
    return -((teacher / scale).softmax(0) * (scores / scale).log_softmax(0)).sum()
