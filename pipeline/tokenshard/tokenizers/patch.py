"""The `patch` tokenizer: a PCA and k-means codebook of image patches, fitted on the input itself in seconds.

Each non-overlapping patch becomes one id, that of the nearest codeword. All of encoding is integer arithmetic (numerics
mode ``integer``): pixels minus 128, PCA rows scaled by 256, projections rounded to integers, integer centroids. Ids are
therefore the same on every machine, for every batch size and number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.spec.base import StoredDocument
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.kmeans import integer_kmeans, sums_by_id
from tokenshard.tokenizers.nearest import (
    LANES,
    CodewordTree,
    build_tree,
    exact_dtype,
    kernel,
    leaf_order,
    nearest,
    padded,
    search,
)
from tokenshard.tokenizers.weights import check_tensors, weights_sha256, weights_to_bytes

SCALE = 256
"""PCA rows are stored times this; projections are divided by it and rounded half up."""
MAX_CODES = 1 << 16
MAX_SIDE = 16
MAX_COMPONENTS = 64
DEFAULT_COMPONENTS = 16
"""Keeps 99.8 % of the energy of 4x4 photo patches and 97.3 % of 8x8 ones; more components gain less than 0.02 dB."""
ITERATIONS = 12
PATCHES_PER_CODE = 256
ENOUGH_PATCHES = 1 << 18
"""Larger codebooks are fitted on this many patches, or 16 a code: it bounds the time a fit takes."""
_LEAST_VARIANCE = 0.01
"""In squared grey levels; projections are rounded to whole ones."""

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class PatchConfig(StoredDocument):
    """`config` of a patch tokenizer in `tokenizer.json`."""

    patch: tuple[Side, Side] = Field(description="patch height and width in pixels")
    components: int = Field(ge=1, le=MAX_COMPONENTS, description="PCA components the search runs in")
    scale: Literal[256] = Field(default=256, description="stored PCA rows are unit vectors times this")


class PatchTokenizer:
    """Vector quantization of image patches (Gersho and Gray 1992) in a PCA subspace.

    components: int16 [r, d], PCA rows times 256, d = patch height * width * 3
    centroids: int16 [K, r], in units of projected grey levels
    codewords: uint8 [K, patch height, patch width, 3], the mean training patch of each code
    """

    def __init__(
        self, components: NDArray[np.int16], centroids: NDArray[np.int16], codewords: NDArray[np.uint8]
    ) -> None:
        self.components, self.centroids, self.codewords = components, centroids, codewords
        self.patch = (codewords.shape[1], codewords.shape[2])
        rank, pixels = components.shape
        largest = float(np.abs(components.astype(np.int64)).sum(axis=1).max()) * 128 + SCALE / 2
        self._projection = np.zeros((padded(pixels), padded(rank)), exact_dtype(largest))
        # Dividing by a power of two is exact, so the kernel needs no division of its own.
        self._projection[:pixels, :rank] = components.T / SCALE
        # |y| <= |P| |x| / 256 + rounding; the margin covers the inexact spectral norm.
        reach = 1.001 * float(np.linalg.norm(components.astype(np.float64), 2)) * 128 * pixels**0.5 / SCALE
        self._tree = build_tree(centroids, reach + rank**0.5)

    @classmethod
    def fit(
        cls,
        images: Sequence[NDArray[np.uint8]],
        seed: int,
        *,
        patch: Sequence[int] = (4, 4),
        k: int = 1024,
        components: int = DEFAULT_COMPONENTS,
    ) -> PatchTokenizer:
        """Fit to a sample of patches of uint8 [height, width, 3] images of any sizes.

        At most 256 patches a code (fewer for large codebooks) are drawn, from each image in proportion to its area.
        ``components`` is lowered to the axes along which patches vary at all, and ``k`` to the number of patches.
        Equal images, seed and options give equal weights. Raises :class:`SpecError` on options out of range,
        and when there are no images.
        """
        height, width = patch
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and 1 <= k <= MAX_CODES):
            raise SpecError(f"patch sides must be 1 to {MAX_SIDE} and k 1 to {MAX_CODES}, not {height}x{width}, k={k}")
        if not 1 <= components <= MAX_COMPONENTS:
            raise SpecError(f"components must be 1 to {MAX_COMPONENTS}, not {components}")
        sample = _sample_patches(images, (height, width), min(k * PATCHES_PER_CODE, max(k * 16, ENOUGH_PATCHES)), seed)
        k = min(k, len(sample))
        axes = _principal_axes(sample, min(components, sample.shape[1]))
        points = _project(sample, axes)
        centroids = integer_kmeans(points, k, seed, ITERATIONS)
        # Neighbouring codewords get neighbouring ids: coders and plots can then treat id >> 5 as a coarser code.
        centroids = centroids[np.concatenate(leaf_order(centroids))]
        reach = float(np.sqrt((points.astype(np.int64) ** 2).sum(axis=1).max()))
        ids, _ = nearest(points, build_tree(centroids, reach))
        counts = np.bincount(ids, minlength=k)[:, None]
        means = sums_by_id(sample, ids, k) / np.maximum(counts, 1)
        # A centroid no patch fell to is drawn as the patch it stands for in the subspace.
        drawn = np.clip(centroids.astype(np.float64) @ axes / SCALE + 128, 0, 255)
        codewords = np.floor(np.where(counts > 0, means, drawn) + 0.5).astype(np.uint8)
        return cls(axes, centroids, codewords.reshape(k, height, width, 3))

    @classmethod
    def from_tensors(cls, spec: TokenizerSpec, tensors: dict[str, NDArray[Any]]) -> PatchTokenizer:
        """The tokenizer of a stored description. Raises :class:`FormatError` where the two do not fit."""
        try:
            config = PatchConfig.model_validate(spec.config)
        except ValidationError as error:
            first = error.errors()[0]
            raise FormatError(f"config.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        height, width = config.patch
        codes, rank = spec.levels[0], config.components
        if len(spec.levels) != 1 or codes > MAX_CODES or spec.downsample != config.patch:
            raise FormatError(
                f"levels {list(spec.levels)} and downsample {list(spec.downsample)} do not fit a patch tokenizer: "
                f"one level of at most {MAX_CODES} codes, and the patch"
            )
        check_tensors(
            tensors,
            {
                "components": (np.int16, (rank, height * width * 3)),
                "centroids": (np.int16, (codes, rank)),
                "codewords": (np.uint8, (codes, height, width, 3)),
            },
        )
        return cls(tensors["components"], tensors["centroids"], tensors["codewords"])

    @cached_property
    def spec(self) -> TokenizerSpec:
        """Description of this tokenizer, with the hash of its weights."""
        config = PatchConfig(patch=self.patch, components=len(self.components))
        return TokenizerSpec(
            kind="patch",
            levels=(len(self.centroids),),
            downsample=self.patch,
            config=config.model_dump(mode="json"),
            numerics="integer",
            weights_sha256=weights_sha256(weights_to_bytes(self.tensors())),
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image of that size."""
        return -(-height // self.patch[0]), -(-width // self.patch[1])

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """uint8 [B, height, width, 3] -> uint16 [B, 1, rows, columns].

        Edge pixels are repeated below and to the right up to whole patches. Raises :class:`InputError` on other arrays.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or 0 in images.shape[1:]:
            raise InputError(
                f"expected images uint8 [batch, height, width, 3], not {images.dtype} {list(images.shape)}"
            )
        images = _pad_to_patches(images, self.patch)
        ids = np.empty((len(images), *self.grid(images.shape[1], images.shape[2])), np.uint16)
        _encode(np.ascontiguousarray(images), self._projection, self._tree, *self.patch, ids)
        return ids[:, None]

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Ids [B, 1, rows, columns] -> uint8 [B, height, width, 3], cropped to ``size`` (height, width) where given.

        Raises :class:`FormatError` on ids outside the codebook or a size the grid cannot have come from.
        """
        batch, _, rows, columns = codes.shape
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < len(self.codewords):
            raise FormatError(f"ids {codes.min()} to {codes.max()} do not fit a codebook of {len(self.codewords)}")
        height, width = size or (rows * self.patch[0], columns * self.patch[1])
        if self.grid(height, width) != (rows, columns):
            raise FormatError(
                f"a {rows}x{columns} grid of {self.spec.downsample} patches is not {height}x{width} pixels"
            )
        images = np.empty((batch, rows, self.patch[0], columns, self.patch[1], 3), np.uint8)
        for image, ids in zip(images, codes[:, 0], strict=True):
            image[:] = self.codewords[ids].transpose(0, 2, 1, 3, 4)
        return images.reshape(batch, rows * self.patch[0], columns * self.patch[1], 3)[:, :height, :width]

    def codebooks(self) -> tuple[NDArray[np.float32]]:
        """The codewords as vectors of pixels [K, height * width * 3]."""
        return (self.codewords.reshape(len(self.codewords), -1).astype(np.float32),)

    def with_codebooks(self, codebooks: Sequence[NDArray[np.float32]]) -> PatchTokenizer:
        """The same axes with other codewords, rounded to whole grey levels."""
        (vectors,) = codebooks
        codewords = np.floor(np.clip(vectors, 0, 255) + 0.5).astype(np.uint8)
        centroids = _project(codewords, self.components)
        return PatchTokenizer(self.components, centroids, codewords.reshape(-1, *self.patch, 3))

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights: `components` and `centroids` (int16), `codewords` (uint8)."""
        return {"components": self.components, "centroids": self.centroids, "codewords": self.codewords}


def _pad_to_patches(images: NDArray[np.uint8], patch: tuple[int, int]) -> NDArray[np.uint8]:
    """Images [B, height, width, 3] with edge pixels repeated below and to the right, up to whole patches."""
    below, right = -images.shape[1] % patch[0], -images.shape[2] % patch[1]
    if below == right == 0:
        return images
    return np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")


def _sample_patches(
    images: Sequence[NDArray[np.uint8]], patch: tuple[int, int], limit: int, seed: int
) -> NDArray[np.uint8]:
    """At most ``limit`` patches [N, d], from each image in proportion to its number of patches."""
    counts = [-(-image.shape[0] // patch[0]) * -(-image.shape[1] // patch[1]) for image in images]
    if not sum(counts):
        raise SpecError("fitting a patch tokenizer needs at least one image; the sample of the input is empty")
    last = np.cumsum(counts)
    shares = np.diff(last * min(limit, int(last[-1])) // last[-1], prepend=0)
    rng = np.random.default_rng(seed)
    drawn = []
    for image, count, share in zip(images, counts, shares, strict=True):
        whole = _pad_to_patches(image[None], patch)[0]
        columns = whole.shape[1] // patch[1]
        row, column = np.divmod(np.sort(rng.choice(count, share, replace=False)), columns)
        grid = whole.reshape(-1, patch[0], columns, patch[1], 3).swapaxes(1, 2)
        drawn.append(grid[row, column].reshape(len(row), -1))
    return np.concatenate(drawn)


def _principal_axes(sample: NDArray[np.uint8], rank: int) -> NDArray[np.int16]:
    """The leading eigenvectors of the covariance of patches [N, d], times 256 and rounded: int16 [at most rank, d].

    Axes that rounding the projection would flatten are left out: greyscale patches have no colour axes. The sums
    behind the covariance are exact, so it does not depend on the order a BLAS adds them up in.
    """
    gram = np.zeros((sample.shape[1], sample.shape[1]))
    for start in range(0, len(sample), 1 << 16):
        chunk = sample[start : start + (1 << 16)].astype(np.float64) - 128
        gram += chunk.T @ chunk
    mean = (sample.sum(axis=0, dtype=np.int64) - 128 * len(sample)) / len(sample)
    variances, vectors = np.linalg.eigh(gram / len(sample) - np.outer(mean, mean))
    rank = max(1, min(rank, int((variances > _LEAST_VARIANCE).sum())))
    axes = vectors[:, ::-1][:, :rank].T
    # Eigenvectors have no sign of their own: let them point the way they are mostly positive.
    axes = axes * np.where(axes.sum(axis=1, keepdims=True) < 0, -1, 1)
    rounded: NDArray[np.int16] = np.rint(axes * SCALE).astype(np.int16)
    return rounded


def _project(sample: NDArray[np.uint8], axes: NDArray[np.int16]) -> NDArray[np.int16]:
    """Projections int16 [N, r] of patches [N, d]: the integers the encoder computes."""
    points = np.empty((len(sample), len(axes)), np.int16)
    for start in range(0, len(sample), 1 << 16):
        chunk = sample[start : start + (1 << 16)].astype(np.float64) - 128
        points[start : start + (1 << 16)] = np.floor(chunk @ (axes.T / SCALE) + 0.5)
    return points


@kernel
def _encode(
    images: NDArray[np.uint8],
    projection: NDArray[Any],
    tree: CodewordTree,
    patch_height: int,
    patch_width: int,
    ids: NDArray[np.uint16],
) -> None:
    """Fill ids [B, rows, columns]: gather a patch, project it, search its codeword."""
    x = np.zeros(projection.shape[0], projection.dtype)
    sums = np.empty(projection.shape[1], projection.dtype)
    y = np.empty(projection.shape[1], tree.lanes.dtype)
    boxes = np.empty(tree.lanes.shape[0], tree.lanes.dtype)
    scores = np.empty(LANES, tree.lanes.dtype)
    for b in range(ids.shape[0]):
        for row in range(ids.shape[1]):
            for column in range(ids.shape[2]):
                k = 0
                for i in range(patch_height):
                    line = images[b, row * patch_height + i]
                    for j in range(column * patch_width, (column + 1) * patch_width):
                        for channel in range(3):
                            x[k] = np.int32(line[j, channel]) - 128
                            k += 1
                _project_patch(x, projection, sums)
                for a in range(y.shape[0]):
                    y[a] = np.floor(sums[a])
                ids[b, row, column] = search(y, tree, boxes, scores)[0]


@kernel
def _project_patch(x: NDArray[Any], projection: NDArray[Any], sums: NDArray[Any]) -> None:
    """One half plus the projection of a padded patch x [d]: sums [r]."""
    sums[:] = 0.5
    for part in range(x.shape[0] // 8):
        k = part * 8
        for a in range(sums.shape[0]):
            total = sums[a]
            for step in range(8):
                total += x[k + step] * projection[k + step, a]
            sums[a] = total
