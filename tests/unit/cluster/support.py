"""What several tests of `cluster` need: small sets, and sparse matrices made comparable."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_array

from cluster.core_samples import join_by_components, join_by_sklearn
from cluster.pairs import Pairs, symmetric

CPU_BACKENDS = [join_by_components, join_by_sklearn]

# Quarters make distances exact in any arithmetic, so ties and copies are real ones.
lattice = st.tuples(st.integers(2, 30), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.integers(-3, 3).map(lambda v: v / 4))
)


def dense(distance):
    """Absent means 1."""
    full = np.ones(distance.shape)
    rows = np.repeat(np.arange(distance.shape[0]), np.diff(distance.indptr))
    full[rows, distance.indices] = distance.data
    return full


def sparse(pairs, num_samples):
    """Symmetric matrix from {(i, j): distance}, without a diagonal."""
    both = [*pairs, *((j, i) for i, j in pairs)]
    rows, cols = np.array(both, int).reshape(-1, 2).T
    values = np.array([*pairs.values()] * 2, np.float32)
    return csr_array((values, (rows, cols)), shape=(num_samples, num_samples))


def same_bits(a, b):
    """Of two sparse matrices, or of two tuples of arrays."""
    if isinstance(a, csr_array):
        a, b = (a.indptr, a.indices, a.data), (b.indptr, b.indices, b.data)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def first(found, k):
    """The k nearest alone: after them come others that were measured."""
    return found._replace(
        indices_NK=found.indices_NK[:, :k], sq_distances_NK=found.sq_distances_NK[:, :k]
    )


def same_partition(a, b):
    """Whether two labellings differ in the numbers of clusters only; outliers are outliers."""
    together = [(x[:, None] == x) & (x[:, None] >= 0) for x in (a, b)]
    return np.array_equal(*together)


def in_given_order(runner, handles):
    """A dense array of encodings, by what `encode` and `encode_by_camera` return."""
    encodings, order = runner.values(handles)
    number = np.argsort(order)
    return encodings.toarray()[np.ix_(number, number)]


def all_distances(runner, handles, blocks):
    """Dense distances of encodings, in the samples' own order."""
    encodings, order = handles
    upper = Pairs.of(runner, encodings, order, blocks).jaccard_below(1.0)
    number = np.argsort(order)
    return dense(symmetric(upper))[np.ix_(number, number)]
