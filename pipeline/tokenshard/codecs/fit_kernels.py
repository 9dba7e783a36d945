"""Compiled loops of fitting context models: co-occurrence embedding and clustering of count vectors.

Every sum runs in a fixed order on one thread and logarithms are rounded to 2^-12 bits, so that equal pilots give equal
models. Count vectors are sparse: point ``p`` has ``values[starts[p]:starts[p + 1]]`` in the dims that ``index`` names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tokenshard.compiled import kernel as compiled

_Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]
_kernel: _Compiled = compiled(error_model="numpy")

_EMBED_ROUNDS = 12
_SPLIT_ROUNDS = 6


@_kernel
def neighbour_ids(ids: Any, sizes: Any, strides: Any, periods: Any, border: int, out: Any) -> None:
    """The neighbour of every id: the one ``stride`` places before, or ``border`` where there is none (int32 [ids])."""
    base = 0
    for sample in range(len(sizes)):
        stride, period = strides[sample], periods[sample]
        phase = 0
        for place in range(base, base + sizes[sample]):
            out[place] = ids[place - stride] if phase >= stride else border
            phase = phase + 1 if phase + 1 < period else 0
        base += sizes[sample]


@_kernel
def embed(rows: Any, columns: Any, counts: Any, row_scale: Any, column_scale: Any, vectors: Any, other: Any) -> None:
    """Turn random ``vectors`` [rows, d] into the leading singular vectors of a scaled sparse count matrix."""
    width = vectors.shape[1]
    _orthonormalize(vectors)
    for _ in range(_EMBED_ROUNDS):
        other[:] = 0
        for entry in range(len(rows)):
            weight = counts[entry] * row_scale[rows[entry]] * column_scale[columns[entry]]
            for k in range(width):
                other[columns[entry], k] += weight * vectors[rows[entry], k]
        vectors[:] = 0
        for entry in range(len(rows)):
            weight = counts[entry] * row_scale[rows[entry]] * column_scale[columns[entry]]
            for k in range(width):
                vectors[rows[entry], k] += weight * other[columns[entry], k]
        _orthonormalize(vectors)


@_kernel
def _orthonormalize(vectors: Any) -> None:
    """Make columns orthonormal, in order, through the Cholesky factor of their products; dependent ones become 0."""
    width = vectors.shape[1]
    factor = np.zeros((width, width))
    for row in range(vectors.shape[0]):
        for i in range(width):
            for j in range(i + 1):
                factor[i, j] += vectors[row, i] * vectors[row, j]
    for i in range(width):
        size = factor[i, i]
        for j in range(i + 1):
            for k in range(j):
                factor[i, j] -= factor[i, k] * factor[j, k]
            if j < i:
                factor[i, j] = factor[i, j] / factor[j, j] if factor[j, j] > 0 else 0.0
        factor[i, i] = math.sqrt(factor[i, i]) if factor[i, i] > 1e-12 * size else 0.0
    for row in range(vectors.shape[0]):
        for i in range(width):
            for j in range(i):
                vectors[row, i] -= factor[i, j] * vectors[row, j]
            vectors[row, i] = vectors[row, i] / factor[i, i] if factor[i, i] > 0 else 0.0


@_kernel
def principal_projection(points: Any, weights: Any, members: Any) -> Any:
    """Projection of the members on the direction in which the weighted points vary most (float64 [members])."""
    width = points.shape[1]
    mean = np.zeros(width)
    total = 0.0
    for member in members:
        total += weights[member]
        for k in range(width):
            mean[k] += weights[member] * points[member, k]
    mean /= total
    scatter = np.zeros((width, width))
    for member in members:
        for i in range(width):
            for j in range(width):
                scatter[i, j] += weights[member] * (points[member, i] - mean[i]) * (points[member, j] - mean[j])
    axis = np.ones(width)
    for i in range(width):
        axis[i] = 1 + scatter[i, i]
    for _ in range(40):
        moved = np.zeros(width)
        for i in range(width):
            for j in range(width):
                moved[i] += scatter[i, j] * axis[j]
        norm = 0.0
        for i in range(width):
            norm += moved[i] * moved[i]
        if norm <= 0:
            break
        axis = moved / math.sqrt(norm)
    projection = np.zeros(len(members))
    for i, member in enumerate(members):
        for k in range(width):
            projection[i] += axis[k] * (points[member, k] - mean[k])
    return projection


@_kernel
def _log2(x: float) -> float:
    return float(np.rint(math.log2(x) * 4096)) / 4096


@_kernel
def _cost(sums: Any) -> float:
    """Bits of a count vector coded with its own frequencies."""
    total = 0.0
    bits = 0.0
    for k in range(len(sums)):
        total += sums[k]
        if sums[k] > 0:
            bits -= sums[k] * _log2(sums[k])
    return bits + total * _log2(total) if total > 0 else 0.0


@_kernel
def divide(starts: Any, index: Any, values: Any, dims: int, limit: int, least_gain: float) -> Any:
    """Labels (int32 [points]) of at most ``limit`` clusters of points, by splitting where it saves most bits.

    Stops where no split saves ``least_gain`` bits. Points are vectors of counts; a cluster is coded by one table.
    """
    points = len(starts) - 1
    order = np.arange(points)
    begins, ends = np.zeros(limit + 1, np.int64), np.zeros(limit + 1, np.int64)
    cuts, gains = np.zeros(limit + 1, np.int64), np.zeros(limit + 1)
    ends[0] = points
    parted, clusters = 0, 0  # the clusters just made are `parted` and the last one
    while True:
        for side in (parted, clusters):
            cuts[side], gains[side] = _split(starts, index, values, dims, order, begins[side], ends[side])
        clusters += 1
        parted = 0
        for cluster in range(1, clusters):
            if gains[cluster] > gains[parted]:
                parted = cluster
        if clusters == limit or gains[parted] < least_gain:
            break
        begins[clusters], ends[clusters], ends[parted] = cuts[parted], ends[parted], cuts[parted]
    labels = np.zeros(points, np.int32)
    for cluster in range(clusters):
        for member in range(begins[cluster], ends[cluster]):
            labels[order[member]] = cluster
    return labels


@_kernel
def _split(starts: Any, index: Any, values: Any, dims: int, order: Any, begin: int, end: int) -> Any:
    """Reorder points ``order[begin:end]`` into two clusters; returns (first of the second, bits saved)."""
    whole = np.zeros(dims)
    total = 0.0
    for member in range(begin, end):
        for at in range(starts[order[member]], starts[order[member] + 1]):
            whole[index[at]] += values[at]
            total += values[at]
    if end - begin < 2 or total <= 0:
        return end, 0.0
    logs = np.zeros(dims)
    for k in range(dims):
        if whole[k] > 0:
            logs[k] = _log2(whole[k] / total)
    seed = begin
    farthest = -1.0
    for member in range(begin, end):
        weight = 0.0
        gain = 0.0
        for at in range(starts[order[member]], starts[order[member] + 1]):
            weight += values[at]
            if values[at] > 0:
                gain += values[at] * (_log2(values[at]) - logs[index[at]])
        if weight > 0 and gain - weight * _log2(weight) > farthest:
            seed, farthest = member, gain - weight * _log2(weight)
    one = np.zeros(dims)
    for at in range(starts[order[seed]], starts[order[seed] + 1]):
        one[index[at]] += values[at]
    side = np.zeros(end - begin, np.bool_)
    difference = np.zeros(dims)
    for _ in range(_SPLIT_ROUNDS):
        in_one = 0.0
        for k in range(dims):
            in_one += one[k]
        for k in range(dims):
            prior = whole[k] / total + 1e-9
            rest = max(whole[k] - one[k], 0.0)
            difference[k] = _log2((one[k] + prior) / (in_one + 1)) - _log2((rest + prior) / (total - in_one + 1))
            one[k] = 0
        for member in range(begin, end):
            gain = 0.0
            for at in range(starts[order[member]], starts[order[member] + 1]):
                gain += values[at] * difference[index[at]]
            side[member - begin] = gain > 0
            if gain > 0:
                for at in range(starts[order[member]], starts[order[member] + 1]):
                    one[index[at]] += values[at]
    cut = _partition(order, begin, end, side)
    if cut in (begin, end):
        return end, 0.0
    two = np.zeros(dims)
    for k in range(dims):
        two[k] = max(whole[k] - one[k], 0.0)
    return cut, _cost(whole) - _cost(one) - _cost(two)


@_kernel
def _partition(order: Any, begin: Any, end: Any, side: Any) -> Any:
    """Move the members that are on a side before the others, in their order; returns the first of the others."""
    others = np.empty(end - begin, np.int64)
    cut, waiting = begin, 0
    for member in range(begin, end):
        if side[member - begin]:
            order[cut] = order[member]
            cut += 1
        else:
            others[waiting] = order[member]
            waiting += 1
    for member in range(waiting):
        order[cut + member] = others[member]
    return cut


@_kernel
def table_logs(starts: Any, index: Any, values: Any, dims: int, labels: Any, clusters: int) -> Any:
    """log2 of the smoothed frequencies of each cluster (float32 [dims, clusters])."""
    sums, mass = np.zeros((clusters, dims)), np.zeros(clusters)
    whole = np.zeros(dims)
    total = 0.0
    for point in range(len(starts) - 1):
        for at in range(starts[point], starts[point + 1]):
            sums[labels[point], index[at]] += values[at]
            mass[labels[point]] += values[at]
            whole[index[at]] += values[at]
            total += values[at]
    logs = np.zeros((dims, clusters), np.float32)
    for k in range(dims):
        prior = (whole[k] + 1e-3) / (total + 1e-3 * dims)
        for cluster in range(clusters):
            logs[k, cluster] = _log2((sums[cluster, k] + prior) / (mass[cluster] + 1))
    return logs


@_kernel
def assign(starts: Any, index: Any, values: Any, logs: Any, groups: Any, group_logs: Any, labels: Any) -> None:
    """Give every point the cluster that codes it, and a little of its group's mean, in the fewest bits."""
    clusters = logs.shape[1]
    score = np.zeros(clusters, np.float32)
    for point in range(len(starts) - 1):
        for cluster in range(clusters):
            score[cluster] = group_logs[groups[point], cluster]
        for at in range(starts[point], starts[point + 1]):
            weight = np.float32(values[at])
            for cluster in range(clusters):
                score[cluster] += weight * logs[index[at], cluster]
        best = 0
        for cluster in range(1, clusters):
            if score[cluster] > score[best]:
                best = cluster
        labels[point] = best


@_kernel
def scores(means: Any, logs: Any) -> Any:
    """What the mean of each group costs in each cluster: float32 [groups, clusters] from [groups, dims] and logs."""
    out = np.zeros((means.shape[0], logs.shape[1]), np.float32)
    for group in range(means.shape[0]):
        for k in range(means.shape[1]):
            for cluster in range(logs.shape[1]):
                out[group, cluster] += means[group, k] * logs[k, cluster]
    return out
