"""Images of a gallery that are most like one image: exact, in this process, without Ray.

For one query, an index (faiss) would cost more than it saves: looking at a million features takes
about as long as reading them.

Shapes: N images of the gallery, C channels of a feature, K matches, B rows of a block.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.search.gallery import Features, Gallery, cosine

BLOCK = 4096  # rows of the gallery that are looked at together


class Match(NamedTuple):
    """A gallery image. Of features of unit length, distance^2 = 2 - 2 similarity."""

    path: str
    distance: float  # Euclidean, between features as the model gives them
    similarity: float  # cosine
    pid: int | None  # where it is known
    camid: int | None


def search(query: Path, query_C: Features, gallery: Gallery, top: int) -> list[Match]:
    """The `top` nearest images; the query itself, if the gallery has it, is none of them."""
    rows, sq_distances = nearest(query_C, gallery.features_NC, top + 1)
    matches = [
        Match(
            gallery.paths[row],
            sq_distance**0.5,
            cosine(query_C, gallery.features_NC[row]),
            _known(gallery.pids[row]) if gallery.pids else None,
            gallery.camids[row] if gallery.camids else None,
        )
        for row, sq_distance in zip(rows.tolist(), sq_distances.tolist(), strict=True)
        if not _same_file(query, gallery.root / gallery.paths[row])
    ]
    return matches[:top]


def nearest(
    query_C: Features, gallery_NC: Features, k: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Rows of the `min(k, N)` nearest gallery features, and squared distances: (K,), (K,).

    Ordered by (distance, row), the distances being sums of squared differences in float64, so that
    copies tie to the last bit. float32 products go ahead; who could be among the nearest, for all
    their rounding, is measured.
    """
    k = min(k, len(gallery_NC))
    rough_N, bound_N = _rough_distances(query_C, gallery_NC)
    farthest = np.partition(rough_N + bound_N, k - 1)[k - 1]  # k of them are no farther
    candidates = np.flatnonzero(rough_N - bound_N <= farthest)
    sq_distances = np.concatenate(
        [
            np.square(gallery_NC[some].astype(np.float64) - query_C).sum(1)
            for some in _blocks(candidates)
        ]
    )
    order = np.argsort(sq_distances, kind="stable")[:k]  # candidates are in the order of rows
    return candidates[order], sq_distances[order]


def _rough_distances(
    query_C: Features, gallery_NC: Features
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """|g|^2 - 2 g q, and how far rounding may have put it off: (N,), (N,)."""
    sq_norms, products = [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for block_BC in _blocks(gallery_NC):
            sq_norms.append(np.einsum("nc,nc->n", block_BC, block_BC))
            products.append(block_BC @ query_C)
        sq_norms_N = np.concatenate(sq_norms).astype(np.float64)
        rough_N = sq_norms_N - 2 * np.concatenate(products).astype(np.float64)
    # The worst case of both sums, in any order of additions (Higham 2002, sec. 3.1), and underflow.
    float32 = np.finfo(np.float32)
    length = np.linalg.norm(query_C.astype(np.float64))
    bound_N = len(query_C) * (
        float(float32.eps) * (sq_norms_N + 2 * length * np.sqrt(sq_norms_N)) + float(float32.tiny)
    )
    overflown_N = ~np.isfinite(rough_N)
    rough_N[overflown_N], bound_N[overflown_N] = 0, np.inf
    return rough_N, bound_N


def _blocks(array: NDArray[Any]) -> list[NDArray[Any]]:
    return [array[start : start + BLOCK] for start in range(0, len(array), BLOCK)]


def _known(pid: int) -> int | None:
    """Distractors (0), junk (-1) and images of unknown people (-2) are nobody."""
    return pid if pid > 0 else None


def _same_file(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return False
