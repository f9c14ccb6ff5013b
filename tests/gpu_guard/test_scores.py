"""An evaluation on tensors that say "cuda": the CPU's figures, by the branches of a GPU."""

import numpy as np
import pytest
from planted import planted

from benchmarks.pretended_cuda import pretended_cuda
from daal import evaluation, match_ranks
from daal.evaluation import evaluate


@pytest.fixture(scope="module")
def drawn():
    """Queries and a gallery: features, identities and cameras. Some features are equal."""
    rng = np.random.default_rng(0)
    features_ND = rng.standard_normal((700, 16)).astype(np.float32)
    features_ND[300:350] = features_ND[400:450]
    pids_N, camids_N = rng.integers(-1, 30, 700), rng.integers(0, 4, 700)
    queries, gallery = (
        (features_ND[rows], pids_N[rows], camids_N[rows]) for rows in (slice(100), slice(100, 700))
    )
    return queries, gallery


def assert_same(found, expected):
    np.testing.assert_array_equal(found.first_match_rank, expected.first_match_rank)
    np.testing.assert_array_equal(found.ap, expected.ap)
    np.testing.assert_array_equal(found.cmc, expected.cmc)


def test_same_figures(drawn):
    expected = evaluate(*drawn[0], *drawn[1])
    with pretended_cuda() as cuda:
        found = evaluate(*drawn[0], *drawn[1], device="cuda")
    assert_same(found, expected)
    # Features, identities and cameras go up once; ranks come back.
    assert cuda.bytes_up == sum(array.nbytes for side in drawn for array in side)
    assert cuda.bytes_down < 100 * 8 * 100
    # Waits are few for a block of queries, whatever the number of queries and images in it.
    assert cuda.waits.total() < 60


BUGS = [
    (evaluation, "_matches", "torch.arange(len(query_P), device=count_Q.device)",
     "torch.arange(len(query_P))"),
    (match_ranks, "match_ranks", ", device=block_B.device", ""),
    (match_ranks, "match_ranks", "-1).numpy(force=True)", "-1).numpy()"),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "function", "old", "new"), BUGS)
def test_planted_bug(drawn, owner, function, old, new):
    with pretended_cuda(), planted(owner, function, old, new):
        with pytest.raises((RuntimeError, TypeError), match=r"two different devices|cuda:0"):
            evaluate(*drawn[0], *drawn[1], device="cuda")
