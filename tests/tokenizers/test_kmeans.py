"""Integer k-means: Lloyd's algorithm with exact sums, and what it does with centroids that lose their points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenshard.tokenizers.kmeans import integer_kmeans, updated_centroids
from tokenshard.tokenizers.nearest import build_tree, nearest


def mean_error(points: NDArray[np.int16], centroids: NDArray[np.int16]) -> float:
    return float(nearest(points, build_tree(centroids, 1e4))[1].mean())


def test_it_converges_to_the_rounded_means_of_the_points_nearest_to_each_centroid() -> None:
    points = np.random.default_rng(0).normal(0, 100, (600, 2)).astype(np.int16)
    centroids = integer_kmeans(points, 8, seed=0, iterations=200)
    ids, _ = nearest(points, build_tree(centroids, 1e4))
    for code in range(8):
        assert (np.floor(points[ids == code].mean(axis=0) + 0.5) == centroids[code]).all()


def test_more_iterations_do_not_make_it_worse() -> None:
    points = np.random.default_rng(0).normal(0, 300, (4000, 8)).astype(np.int16)
    errors = [mean_error(points, integer_kmeans(points, 64, 0, iterations)) for iterations in (0, 1, 4, 12)]
    assert errors == sorted(errors, reverse=True)


def test_it_is_as_good_as_faiss_on_the_same_points() -> None:
    import faiss

    points = np.random.default_rng(0).normal(0, 300, (8000, 8)).astype(np.int16)
    reference = faiss.Kmeans(8, 64, niter=12, seed=1, max_points_per_centroid=1000)
    reference.train(points.astype(np.float32))
    ours = mean_error(points, integer_kmeans(points, 64, 0, 12))
    assert ours <= 1.01 * mean_error(points, np.rint(reference.centroids).astype(np.int16))


def test_with_fewer_distinct_points_than_centroids_each_point_is_kept_exactly() -> None:
    distinct = np.array([(0, 0), (1, 0), (0, 7)], np.int16)
    points = np.repeat(distinct, (500, 3, 1), axis=0)
    centroids = integer_kmeans(points, 8, seed=3, iterations=5)
    assert centroids.shape == (8, 2)
    assert mean_error(points, centroids) == 0


def test_a_centroid_without_points_moves_to_the_point_farthest_from_its_own() -> None:
    points = np.array([[0], [2], [10], [500]], np.int16)
    ids, distances = np.array([0, 0, 2, 2], np.int32), np.array([1, 1, 60_025, 60_026])
    assert updated_centroids(points, ids, distances, 4).tolist() == [[1], [500], [255], [10]]


def test_means_are_rounded_half_up() -> None:
    points, ids = np.array([[0, -1], [1, -2]], np.int16), np.zeros(2, np.int32)
    assert updated_centroids(points, ids, np.zeros(2, np.int64), 1).tolist() == [[1, -1]]
