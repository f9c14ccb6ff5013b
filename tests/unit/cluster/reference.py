"""The same definitions the slow way: dense, float64, plain sets and loops.

Run as a script it writes the small golden files of `tests/golden`.
"""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[2] / "golden"


def ranking(features):
    """(squared distances, for every sample all samples: itself, then by (distance, index))."""
    x = np.asarray(features, np.float64)
    sq = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    order = [
        [i, *sorted((j for j in range(len(x)) if j != i), key=lambda j: (sq[i, j], j))]
        for i in range(len(x))
    ]
    return sq, order


def jaccard(features, k1, k2):
    sq, order = ranking(features)
    n = len(order)

    def reciprocal(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    v = np.zeros((n, n))
    for i in range(n):
        core = reciprocal(i, k1)
        expanded = set(core)
        for q in core:
            candidates = reciprocal(q, round(k1 / 2))
            if len(candidates & core) * 3 > len(candidates) * 2:
                expanded |= candidates
        for j in expanded:
            v[i, j] = np.exp(-sq[i, j] / (sq[i].max() or 1.0))
        v[i] /= v[i].sum()
    v = np.array([np.mean([v[q] for q in order[i][:k2]], axis=0) for i in range(n)])
    distance = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            shared = np.minimum(v[i], v[j]).sum()
            distance[i, j] = 1 - shared / (2 - shared)
    return np.clip(distance, 0, 1)


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
