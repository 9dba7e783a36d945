"""Order-free entropy coding: what `ofec` stores of a page, and how it is scored.

MaxSim does not see the order of a page's vectors, so they are sorted by centroid id and the ids are coded as a multiset
(codec `multiset`), for about log2(n!)/n bits less a vector. What is left of a vector after its centroid is taken off is
rotated to its principal axes, rounded with one step for all components, with a dead zone, and coded by rANS: most
components are zero and cost next to nothing. One step means one distortion, whatever the vectors: those unlike the
sample cost more bytes, not more error.

Scoring never makes vectors: a similarity is that of the centroid plus one term for each component that is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import zstandard
from numpy.typing import NDArray

from tokenshard.errors import FormatError, SpecError
from tokenshard.retrieval.compression import kernels, residual_kernels
from tokenshard.retrieval.compression.accounting import code_bytes, state_bytes
from tokenshard.retrieval.compression.base import Arrays, Compressor, Config, Encoded, Scorer
from tokenshard.retrieval.compression.checks import as_ids, checked_ids, checked_sample, checked_vectors, stored
from tokenshard.retrieval.compression.kmeans import trained_centroids, tree_order
from tokenshard.retrieval.compression.residual_tables import ResidualTables
from tokenshard.retrieval.exact import Multivectors, Vectors

DEAD_ZONE = 0.55
"""Components below so many steps become zero."""
CODEBOOK_STEP = 1 / 8
"""Step of the stored centroids, in steps of the residual: finer than what the residual corrects anyway."""
CLASSES = 8
"""Classes of centroids, by the energy of the residuals around them."""
_MIN_POINTS = 32
_MAX_CENTROIDS = 1 << 18


class Ofec(Compressor):
    """``ofec:STEP[,CENTROIDS]``: multiset of centroid ids, and the stream ``residual``.

    CENTROIDS is a number, or `auto` for the power of two with the fewest bytes of codes and codebook together. By
    default it is 2^floor(log2(16 sqrt N)) for N vectors (Santhanam et al., PLAID, arXiv:2205.09707).
    """

    name: ClassVar[str] = "ofec"
    streams: ClassVar[tuple[str, ...]] = ("residual",)
    order_free: ClassVar[bool] = True
    variable_rate: ClassVar[bool] = True

    def __init__(
        self,
        step: float,
        codebook: NDArray[np.int8],
        codebook_step: float,
        rotation: NDArray[np.float16],
        classes: NDArray[np.uint8],
        tables: ResidualTables,
    ) -> None:
        self.step, self.codebook, self.codebook_step = step, codebook, codebook_step
        self.rotation, self.classes, self.tables = rotation, classes, tables
        self.dimensions = codebook.shape[1]
        self.alphabets = (len(codebook),)
        self.centroids: Vectors = codebook.astype(np.float32) * np.float32(codebook_step)
        self._axes: Vectors = rotation.astype(np.float32)

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        if not 1 <= len(arguments) <= 2:
            raise SpecError("codec ofec takes a step and perhaps a number of centroids, as ofec:0.16,4096")
        try:
            options: Config = {"step": float(arguments[0])}
            if len(arguments) > 1:
                options["centroids"] = arguments[1] if arguments[1] == "auto" else int(arguments[1])
        except ValueError:
            raise SpecError(f"codec ofec:{','.join(arguments)} has an argument that is no number") from None
        if not 1e-4 <= options["step"] <= 1e4:
            raise SpecError("the step of codec ofec must lie between 0.0001 and 10000")
        return options

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        vectors = checked_sample(sample)
        expected = options.get("expected") or len(vectors)
        most = min(_MAX_CENTROIDS, max(1, len(vectors) // _MIN_POINTS))
        count = options.get("centroids") or 1 << int(np.log2(16 * np.sqrt(expected)))
        if count == "auto":
            return cls._smallest(sample, vectors, seed, options["step"], most, expected)
        return cls._fit(vectors, seed, options["step"], max(1, min(count, most)))

    @classmethod
    def _fit(cls, vectors: Vectors, seed: int, step: float, count: int) -> Self:
        codebook_step = step * CODEBOOK_STEP
        centroids = trained_centroids(vectors, count, seed)
        codebook_step = max(codebook_step, float(np.abs(centroids).max()) / 127)
        codebook = np.rint(centroids[tree_order(centroids)] / np.float32(codebook_step)).astype(np.int8)
        centroids = codebook.astype(np.float32) * np.float32(codebook_step)
        ids = kernels.nearest(vectors, centroids)
        residuals = vectors - centroids[ids]
        rotation = np.linalg.eigh(residuals.T.astype(np.float64) @ residuals)[1][:, ::-1].astype(np.float16)
        sums = np.bincount(ids, np.einsum("nd,nd->n", residuals, residuals, dtype=np.float64), count)
        energy = sums / np.maximum(np.bincount(ids, minlength=count), 1)
        limits = np.quantile(energy[ids], np.arange(1, CLASSES) / CLASSES)
        classes = np.searchsorted(limits, energy).astype(np.uint8)
        components = kernels.project(residuals, rotation.astype(np.float32))
        values = _quantized(components, step)
        tables = ResidualTables.fit(values, classes[ids], CLASSES)
        return cls(step, codebook, codebook_step, rotation, classes, tables)

    @classmethod
    def _smallest(
        cls, sample: Multivectors, vectors: Vectors, seed: int, step: float, most: int, expected: int
    ) -> Self:
        """The power of two with the fewest bytes: codes of the sample, spread over the corpus, and the codebook."""
        best, least = None, np.inf
        count = min(64, most)
        while count <= most:
            fitted = cls._fit(vectors, seed, step, count)
            codes = code_bytes(fitted, fitted.encode(sample))
            total = codes * expected / len(vectors) + state_bytes(fitted)
            if total > least:
                break
            best, least = fitted, total
            count *= 2
        assert best is not None
        return best

    def encode(self, pages: Multivectors) -> Encoded:
        vectors = checked_vectors(pages, self.dimensions)
        found = kernels.nearest(vectors, self.centroids)
        of_page = np.repeat(np.arange(len(pages)), pages.lengths)
        order = np.lexsort((found, of_page))
        ids, vectors = found[order], vectors[order]
        values = _quantized(kernels.project(vectors - self.centroids[ids], self._axes), self.step)
        stream = self.tables.encode(values, self.classes[ids], pages.offsets)
        return Encoded(pages.offsets, as_ids(ids, self.alphabets[0])[None], {"residual": stream}, order)

    def decode(self, encoded: Encoded) -> Multivectors:
        scorer = self.open(encoded)
        components = np.zeros((len(scorer.ids), self.dimensions), np.float32)
        rows = np.repeat(np.arange(len(scorer.ids)), np.diff(scorer.starts))
        components[rows, scorer.dims] = scorer.values.astype(np.float32) * np.float32(self.step)
        vectors = self.centroids[scorer.ids] + kernels.project(components, np.ascontiguousarray(self._axes.T))
        return Multivectors(vectors, encoded.offsets)

    def open(self, encoded: Encoded) -> SparseScorer:
        ids = checked_ids(encoded, self.alphabets)[0]
        stream = encoded.streams["residual"]
        starts, dims, values = self.tables.decode(stream, self.classes[ids], encoded.offsets)
        return SparseScorer(ids, encoded.offsets, starts, dims, values, self.centroids, self._axes.T * self.step)

    def config(self) -> Config:
        return {"step": self.step, "codebook_step": self.codebook_step, "centroids": len(self.codebook)}

    def arrays(self) -> Arrays:
        # Small integers around zero: a compressed frame is half of them, and counts as what the codebook weighs.
        packed = zstandard.compress(self.codebook.tobytes(), 19)
        return {
            "codebook": np.frombuffer(packed, np.uint8),
            "rotation": self.rotation,
            "classes": self.classes,
            **self.tables.arrays(),
        }

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        rotation = stored(arrays, "rotation", np.float16, (None, None))
        classes = stored(arrays, "classes", np.uint8, (config["centroids"],))
        packed = stored(arrays, "codebook", np.uint8, (None,)).tobytes()
        size = len(classes) * len(rotation)
        if rotation.shape[0] != rotation.shape[1] or zstandard.get_frame_parameters(packed).content_size != size:
            raise FormatError("codebook: centroids, rotation and classes differ in size; restore the file")
        codebook = np.frombuffer(zstandard.ZstdDecompressor().decompress(packed), np.int8).reshape(len(classes), -1)
        tables = ResidualTables.from_arrays(arrays, len(rotation))
        if classes.max(initial=0) >= len(tables.of):
            raise FormatError("codebook: a class without tables; restore the file")
        return cls(float(config["step"]), codebook, float(config["codebook_step"]), rotation, classes, tables)


def _quantized(components: Vectors, step: float) -> NDArray[np.int16]:
    values = np.empty(components.shape, np.int16)
    residual_kernels.quantize(components, np.float32(step), np.float32(1 - DEAD_ZONE), values)
    return values


@dataclass(frozen=True)
class SparseScorer(Scorer):
    """Centroid ids [N], and what is not zero of each vector's residual: ``starts`` [N + 1], ``dims`` and ``values``."""

    ids: NDArray[Any]
    offsets: NDArray[np.int64]
    starts: NDArray[np.int64]
    dims: NDArray[Any]
    values: NDArray[Any]
    centroids: Vectors
    axes: Vectors
    """[d, d]: what one step along each principal axis adds to a vector"""

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.starts.nbytes + self.dims.nbytes + self.values.nbytes

    def prepare(self, query: Vectors) -> kernels.Tables:
        return [
            (np.concatenate([self.centroids @ columns, self.axes @ columns]), count, lanes)
            for columns, count, lanes in kernels.query_tables(query)
        ]

    def score(self, prepared: kernels.Tables, pages: NDArray[np.int64], out: Vectors) -> None:
        codes = self.ids, self.starts, self.dims, self.values, len(self.centroids)
        kernels.add_parts(kernels.sparse_maxsim, prepared, codes, self.offsets, pages, out)
