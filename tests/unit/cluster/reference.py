"""The same definitions the slow way: dense, float64, plain sets and loops.

Run as a script it writes the small golden files of `tests/golden`.
"""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[2] / "golden"


def ranking(features):
    """(squared distances, for every sample all samples: itself, then by (distance, index)).

    Distances are rounded to float32, within which samples count as equally near.
    """
    x = np.asarray(features, np.float64)
    sq = ((x[:, None] - x) ** 2).sum(2).astype(np.float32)
    index = np.arange(len(x))
    order = [np.lexsort((index, sq[i], index != i)).tolist() for i in index]
    return sq.astype(np.float64), order


def camera_ranking(features, camids):
    """(squared distances, own camera: itself, then by (distance, index), other cameras: by
    (distance, place in the order of (camera, index)))."""
    sq, _ = ranking(features)
    samples = range(len(camids))
    own = [
        sorted((j for j in samples if camids[j] == camids[i]), key=lambda j: (j != i, sq[i, j], j))
        for i in samples
    ]
    others = [
        sorted(
            (j for j in samples if camids[j] != camids[i]), key=lambda j: (sq[i, j], camids[j], j)
        )
        for i in samples
    ]
    return sq, own, others


def padded(lists, k):
    """The first k of each list, -1 where there are no more."""
    return np.array([[*row, *[-1] * k][:k] for row in lists])


def reciprocal(lists, k):
    """Of every sample's first k those that have it among their first k."""
    return [{j for j in row[:k] if i in lists[j][:k]} for i, row in enumerate(lists)]


def encodings(features, k1, k2, dialect="zhong"):
    """zhong: k1 neighbours besides the sample, exp(-d2 / max d2); faiss: with it, exp(-d2)."""
    sq, order = ranking(features)
    num_full = k1 + 1 if dialect == "zhong" else k1
    full = reciprocal(order, num_full)
    half = reciprocal(order, min(round(k1 / 2) + 1, num_full))
    v = np.zeros(sq.shape)
    for i, core in enumerate(full):
        expanded = set(core)
        for q in core:
            if len(half[q] & core) * 3 > len(half[q]) * 2:
                expanded |= half[q]
        largest = (sq[i].max() or 1.0) if dialect == "zhong" else 1.0
        for j in expanded:
            v[i, j] = np.exp(-sq[i, j] / largest)
        v[i] /= v[i].sum()
    return means(v, [row[:k2] for row in order])


def camera_encodings(features, camids, k1_intra, k1_inter, k2_intra, k2_inter):
    sq, own, others = camera_ranking(features, camids)
    in_own, in_others = reciprocal(own, k1_intra + 1), reciprocal(others, k1_inter + 1)
    v = np.zeros(sq.shape)
    for i in range(len(sq)):
        for j in in_own[i] | in_others[i]:
            v[i, j] = np.exp(-sq[i, j])
        v[i] /= v[i].sum()
    return means(v, [a[:k2_intra] + b[:k2_inter] for a, b in zip(own, others, strict=True)])


def means(v, averaged):
    return np.array([np.mean([v[q] for q in row], axis=0) for row in averaged])


def overlap_distance(v):
    shared = np.array([np.minimum(row, v).sum(1) for row in v])
    return np.clip(1 - shared / (2 - shared), 0, 1)


def jaccard(*arguments, **options):
    return overlap_distance(encodings(*arguments, **options))


def camera_jaccard(*arguments):
    return overlap_distance(camera_encodings(*arguments))


def eps(distance, p):
    pairs = sorted(
        distance[i, j]
        for i in range(len(distance))
        for j in range(i + 1, len(distance))
        if distance[i, j] > 1e-6
    )
    return float(np.mean(pairs[: int(np.round(p * len(pairs)))]))


def dbscan(distance, eps, min_samples):
    n = len(distance)
    near = [{j for j in range(n) if distance[i, j] <= eps + 1e-6 or j == i} for i in range(n)]
    core = [len(near[i]) >= min_samples for i in range(n)]
    labels, num_clusters = [-1] * n, 0
    for i in range(n):
        if not core[i] or labels[i] >= 0:
            continue
        todo = [i]
        while todo:
            j = todo.pop()
            if labels[j] < 0:
                labels[j] = num_clusters
                todo += [m for m in near[j] if core[m]]
        num_clusters += 1
    for i in range(n):
        if not core[i]:
            labels[i] = min((labels[j] for j in near[i] if core[j]), default=-1)
    return np.array(labels)


def drawn(num_samples, dims, num_ids, seed, noise=0.5, num_copies=0):
    """Unit-length float32 features around `num_ids` directions; the last rows copy the first."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, num_ids, num_samples)
    features = rng.standard_normal((num_ids, dims))[ids]
    features = features + noise * rng.standard_normal((num_samples, dims))
    if num_copies:
        features[-num_copies:] = features[0]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32)


def write_golden():
    for name, num_copies, k1, k2, p in (
        ("cluster_plain", 0, 8, 3, 0.08),
        ("cluster_copies", 14, 6, 3, 0.05),
        ("cluster_all_neighbours", 0, 80, 1, 0.05),
    ):
        features = drawn(70, 6, 8, seed=len(name), num_copies=num_copies)
        distance = jaccard(features, k1, k2)
        found = eps(distance, p)
        rows, cols = np.triu_indices(len(features), 1)
        np.savez_compressed(
            GOLDEN / f"{name}.npz",
            features=features, k1=k1, k2=k2, p=p, eps=found, min_samples=4,
            upper_triangle=distance[rows, cols].astype(np.float32),
            labels=dbscan(distance, found, 4).astype(np.int16),
        )  # fmt: skip


if __name__ == "__main__":
    write_golden()
