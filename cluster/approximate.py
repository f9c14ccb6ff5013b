"""Approximate k-nearest neighbours with faiss, refused unless nearly all are the true ones.

    centres -> lists -> recall on sampled rows -> candidates of row blocks -> exact distances

The index is an inverted file (IVF-Flat): each sample is in the list of its nearest centre, and a
search looks into the lists of the centres nearest to its sample. How many it takes is measured:
sampled rows are also searched exactly, and the number of lists doubles until 99 % of their
nearest are found. faiss finds centres and neighbours; all rows that ask for a list meet it at
once, in one product of matrices (as in its contrib.big_batch_search). Its IndexIVFFlat goes row by
row: that reads memory so often that exact search is faster up to tens of thousands of samples, and
holds a copy of the features.

Distances and their order are the exact search's, so samples that both find are the same bits.
Which samples are found depends on rounded products, and so on the machine and the row blocks.
"""

from typing import Any, NamedTuple

import numpy as np

from cluster.arrays import Floats, Ints, Longs
from cluster.blocks import row_blocks
from cluster.compiled import kernel
from cluster.neighbours import join
from cluster.refine import (
    NUM_FARTHEST,
    SLACK,
    Candidates,
    Neighbours,
    Search,
    refine,
    squared_distance,
)
from cluster.run import Handle, Runner, run_one
from daal.errors import ConfigError

MIN_RECALL = 0.99
SAMPLED_ROWS = 1000
SEED = 0
LISTS_PER_ROOT = 4  # lists per square root of N, as faiss's authors advise
MIN_PER_LIST = 39  # samples on average, as they do: few make poor centres
TRAINED_PER_LIST = 16  # samples from which a centre is found; more, or more rounds than
TRAINING_ROUNDS = 5  # these, take longer and hardly move the recall
FIRST_NPROBE = 8  # lists that a search looks into, doubled until the recall is reached
MAX_PROBED = 0.25  # of the lists; beyond, exact search is faster anyway


class Lists(NamedTuple):
    """Samples nearest to `centres_LD[l]` (float32, length 1) are
    `members_N[edges[l]:edges[l + 1]]` (int64, ascending)."""

    centres_LD: Floats
    members_N: Longs
    edges: Longs


class Recall(NamedTuple):
    """The share of the nearest of `num_sampled` rows that a search of `nprobe` lists found."""

    share: float
    num_sampled: int
    nprobe: int

    def __str__(self) -> str:
        # Rounded down: 0.9896 isn't 0.990.
        return (
            f"recall {int(1000 * self.share) / 1000:.3f} on {self.num_sampled:,} sampled images, "
            f"nprobe {self.nprobe}"
        )


def approximate_neighbours(
    runner: Runner, features: Handle, search: Search, blocks: list[tuple[int, int]]
) -> tuple[Handle, Recall]:
    """Handle of the `Neighbours`: nearly the `min(search.k, N)` nearest, and the recall measured.

    `features` is a handle of float32 (N, D) of length 1. `max_sq_distance_N` is approximate too:
    to the farthest of the samples in the lists nearest to -x. Waits for the recall.

    Raises ConfigError if faiss isn't installed, or if the recall stays below 0.99.
    """
    load_faiss()  # says at once if it isn't there
    num_samples = blocks[-1][1]
    search = search._replace(k=min(search.k, num_samples), certify=False)
    centres = run_one(runner, "neighbours: index", find_centres, features)
    parts = runner.run("neighbours: index", nearest_centres, blocks, features, centres)
    lists = run_one(runner, "neighbours: index", collect_lists, centres, *parts)
    rng = np.random.default_rng(SEED)
    rows = np.sort(rng.choice(num_samples, min(SAMPLED_ROWS, num_samples), replace=False))
    some = [(rows[slice(*block)],) for block in row_blocks(len(rows), len(blocks))]
    reaches = runner.run("neighbours: recall", reach_of_nearest, some, features, search)
    measured = run_one(
        runner, "neighbours: recall", measure_recall, features, lists, search, rows, *reaches
    )
    recall: Recall = runner.values([measured])[0]
    parts = runner.run(
        "neighbours: search", search_lists, blocks, features, lists, search, recall.nprobe
    )
    return run_one(runner, "neighbours: join", join, *parts), recall


def load_faiss() -> Any:
    """The library, with one thread for the thread that calls: what runs side by side are blocks.

    Raises ConfigError if it isn't there.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "cluster.search=approximate needs faiss: pip install 'daal-reid[faiss]', or use "
            "cluster.search=exact."
        ) from error
    faiss.omp_set_num_threads(1)
    return faiss


def nearest(queries_RD: Floats, among_ND: Floats, num: int) -> tuple[Floats, Longs]:
    """Products (descending) and indices of each query's `num` nearest: among vectors of length 1
    these have the largest products."""
    faiss = load_faiss()
    found: tuple[Floats, Longs] = faiss.knn(
        queries_RD, among_ND, min(num, len(among_ND)), metric=faiss.METRIC_INNER_PRODUCT
    )
    return found


# ---- Tasks ------------------------------------------------------------------------------


def find_centres(features_ND: Floats) -> Floats:
    """Centres of the lists, (L, D) of length 1, by k-means on some samples."""
    num_samples, dims = features_ND.shape
    num_lists = min(int(LISTS_PER_ROOT * np.sqrt(num_samples)), num_samples // MIN_PER_LIST)
    kmeans = load_faiss().Kmeans(
        dims,
        max(1, num_lists),
        niter=TRAINING_ROUNDS,
        spherical=True,
        seed=SEED,
        max_points_per_centroid=TRAINED_PER_LIST,
        min_points_per_centroid=1,  # else it warns on stderr
    )
    kmeans.train(features_ND)
    centres_LD: Floats = kmeans.centroids
    return centres_LD


def nearest_centres(
    features_ND: Floats, centres_LD: Floats, row_start: int, row_stop: int
) -> Longs:
    """The list of each of the rows row_start..row_stop, (rows,)."""
    return nearest(features_ND[row_start:row_stop], centres_LD, 1)[1][:, 0]


def collect_lists(centres_LD: Floats, *list_of_rows: Longs) -> Lists:
    """The lists' members, from the list of every row."""
    return Lists(centres_LD, *grouped(np.concatenate(list_of_rows), len(centres_LD)))


def reach_of_nearest(features_ND: Floats, search: Search, rows: Longs) -> Floats:
    """Exact squared distance from each row to the last of its k nearest, itself counted, (rows,).

    fp32 products choose a few more than k, as rounding may change places.
    """
    num_others = max(1, search.k - 1)
    near_RC = nearest(features_ND[rows], features_ND, num_others + SLACK + 1)[1]
    near_RC[near_RC == rows[:, None]] = -1
    sq_RC = squared_distances_to(features_ND, rows, near_RC.astype(np.int32), search.scale)
    reach_R: Floats = np.partition(sq_RC, num_others - 1)[:, num_others - 1]
    return reach_R


def measure_recall(
    features_ND: Floats, lists: Lists, search: Search, rows: Longs, *reaches: Floats
) -> Recall:
    """Look into more and more lists until 99 % of the rows' nearest are found.

    Found are samples that are no farther than the last of the true ones: of samples at equal
    distance each will do. Raises ConfigError if more than a quarter of the lists would be needed.
    """
    num_lists, reach_R = len(lists.centres_LD), np.concatenate(reaches)
    num_others = max(1, search.k - 1)  # the sample itself is always found
    nprobe = FIRST_NPROBE
    while True:
        _, near_RC = nearest_others(features_ND, lists, rows, nprobe, search.k)
        sq_RC = squared_distances_to(features_ND, rows, near_RC, search.scale)
        num_found_R = np.minimum((sq_RC <= reach_R[:, None]).sum(1), num_others)
        share = int(num_found_R.sum()) / (len(rows) * num_others)
        recall = Recall(share, len(rows), nprobe)
        if share >= MIN_RECALL:
            return recall
        nprobe *= 2
        if nprobe > MAX_PROBED * num_lists:
            raise ConfigError(
                f"cluster.search=approximate misses too many neighbours of these features "
                f"({recall} of {num_lists} lists; it must be {MIN_RECALL}); use "
                "cluster.search=exact."
            )


def search_lists(
    features_ND: Floats, lists: Lists, search: Search, nprobe: int, row_start: int, row_stop: int
) -> Neighbours:
    """Neighbours of rows row_start..row_stop, measured and ordered as the exact search's."""
    rows = np.arange(row_start, row_stop)
    products_RC, near_RC = nearest_others(features_ND, lists, rows, nprobe, search.k)
    # On the sphere, the farthest from x is the nearest to -x.
    opposite_RD = -features_ND[row_start:row_stop]
    products_RF, far_RF = look_up(features_ND, lists, opposite_RD, FIRST_NPROBE, NUM_FARTHEST)
    candidates = Candidates(row_start, 2 - 2 * products_RC, near_RC, 2 + 2 * products_RF, far_RF)
    return refine(features_ND, search, candidates)


# ---- Parts of the tasks -----------------------------------------------------------------


def grouped(list_of_entry: Longs, num_lists: int) -> tuple[Longs, Longs]:
    """Entries ordered by their list, and where each list begins (and the last one ends)."""
    order = np.argsort(list_of_entry, kind="stable")
    return order, np.searchsorted(list_of_entry[order], np.arange(num_lists + 1))


def look_up(
    features_ND: Floats, lists: Lists, queries_RD: Floats, nprobe: int, num_near: int
) -> tuple[Floats, Ints]:
    """Products (descending) and indices of each query's nearest in `nprobe` lists, (R, num_near);
    -inf and -1 where there are no more."""
    num_lists = len(lists.centres_LD)
    nprobe = min(nprobe, num_lists)
    _, probed_RP = nearest(queries_RD, lists.centres_LD, nprobe)
    probes, edges = grouped(probed_RP.ravel(), num_lists)
    best = load_faiss().ResultHeap(len(queries_RD), num_near, keep_max=True)
    for number in range(num_lists):
        members = lists.members_N[lists.edges[number] : lists.edges[number + 1]]
        asking = probes[edges[number] : edges[number + 1]] // nprobe
        if len(members) and len(asking):
            products, places = nearest(queries_RD[asking], features_ND[members], num_near)
            best.add_result_subset(asking, products, members[places])
    best.finalize()
    products_RC, indices_RC = best.D, best.I.astype(np.int32)
    products_RC[indices_RC < 0] = -np.inf
    return products_RC, indices_RC


def nearest_others(
    features_ND: Floats, lists: Lists, rows: Longs, nprobe: int, k: int
) -> tuple[Floats, Ints]:
    """`look_up` of rows, a few more than k of each but not the row itself."""
    num_near = k + SLACK
    products_RC, near_RC = look_up(features_ND, lists, features_ND[rows], nprobe, num_near + 1)
    is_itself_RC = near_RC == rows[:, None]
    products_RC[is_itself_RC] = -np.inf
    near_RC[is_itself_RC] = -1
    order = np.argsort(-products_RC, axis=1, kind="stable")[:, :num_near]
    return np.take_along_axis(products_RC, order, 1), np.take_along_axis(near_RC, order, 1)


@kernel
def squared_distances_to(features_ND: Floats, rows: Longs, others_RC: Ints, scale: float) -> Floats:
    """Exact squared distances from rows to the samples listed for each; inf to -1."""
    sq_RC = np.full(others_RC.shape, np.inf, np.float32)
    for r in range(len(rows)):
        for c in range(others_RC.shape[1]):
            if others_RC[r, c] >= 0:
                sq_RC[r, c] = squared_distance(features_ND, rows[r], others_RC[r, c], scale)
    return sq_RC
