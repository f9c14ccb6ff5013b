"""Images of a gallery that are most like one image: exact, in this process, without Ray.

For one query an index (faiss) would cost more than it saves: comparing with a million features
takes about as long as reading them.

Shapes: N images of the gallery, C channels of a feature, K matches, B rows of a block.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.search.gallery import Features, Gallery, cosine

BLOCK = 1024  # rows of the gallery that are looked at together: some 16 MB in float64


class Match(NamedTuple):
    """A gallery image. For features of unit length, distance^2 = 2 - 2 similarity."""

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

    Ordered by (distance, row). Distances are sums of squared differences in float64, so that
    copies tie to the last bit.
    """
    query = query_C.astype(np.float64)
    sq_distances_N = np.empty(len(gallery_NC))
    for start in range(0, len(gallery_NC), BLOCK):
        differences_BC = gallery_NC[start : start + BLOCK] - query
        sq_distances_N[start : start + BLOCK] = np.square(differences_BC).sum(1)
    order = np.argsort(sq_distances_N, kind="stable")[:k]
    return order, sq_distances_N[order]


def _known(pid: int) -> int | None:
    """Distractors (0), junk (-1) and images of unknown people (-2) are nobody."""
    return pid if pid > 0 else None


def _same_file(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return False
