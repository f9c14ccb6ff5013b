"""Approximate k-nearest neighbours with faiss, refused unless nearly all are the true ones.

    centres -> lists -> recall on sampled rows -> candidates of row blocks -> exact distances

An inverted file (IVF): each sample is in the list of its nearest centre, and a search looks into
the lists of the centres nearest to its sample. How many is measured: their number doubles until
99 % of the true nearest of sampled rows are found. faiss finds centres and neighbours. All rows of
a block that ask for a list meet it at once, in one product of matrices: faiss's own IndexIVFFlat
goes row by row, which takes four times as long, and it holds a copy of the features.

Distances and their order are the exact search's. Which samples are found depends on rounded
products, and so on the machine and the row blocks, not on the number of threads.
"""

from typing import Any, NamedTuple

import numpy as np

from cluster.arrays import Floats, Longs
from cluster.neighbours import join
from cluster.refine import NUM_FARTHEST, SLACK, Candidates, Neighbours, Search, refine
from cluster.run import Handle, Runner, row_blocks, run_one
from daal.errors import ConfigError

MIN_RECALL = 0.99
SAMPLED_ROWS = 1000
LISTS_PER_ROOT = 4  # lists per square root of N, as faiss's authors advise
MIN_PER_LIST = 39  # samples on average, as they do: few make poor centres
# More samples or rounds take longer and hardly move the recall.
TRAINING = {"niter": 5, "max_points_per_centroid": 16}
FIRST_NPROBE = 8  # lists that a search looks into, doubled until the recall is reached
MAX_PROBED = 0.25  # of the lists; beyond, exact search is faster anyway
ROUNDING = 1e-6  # of products of features of length 1


class Lists(NamedTuple):
    """Samples nearest to `centres_LD[l]` (float32, length 1) are
    `members_N[edges[l]:edges[l + 1]]` (int64, ascending)."""

    centres_LD: Floats
    members_N: Longs
    edges: Longs


def approximate_neighbours(
    runner: Runner, features: Handle, search: Search, blocks: list[tuple[int, int]]
) -> tuple[Handle, str]:
    """Handle of the `Neighbours`, nearly the `min(search.k, N)` nearest, and a note on the recall.

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
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(num_samples, min(SAMPLED_ROWS, num_samples), replace=False))
    k = max(2, search.k)
    some = [(rows[slice(*block)], k) for block in row_blocks(len(rows), len(blocks))]
    kth = runner.run("neighbours: recall", kth_products, some, features)
    measured = run_one(runner, "neighbours: recall", measure_recall, features, lists, k, rows, *kth)
    recall, nprobe = runner.values([measured])[0]
    parts = runner.run("neighbours: search", search_lists, blocks, features, lists, search, nprobe)
    note = f"Neighbours are approximate: recall {described(recall, len(rows), nprobe)}."
    return run_one(runner, "neighbours: join", join, *parts), note


def described(recall: float, num_rows: int, nprobe: int) -> str:
    """Rounded down: 0.9896 isn't 0.990."""
    return f"{int(1000 * recall) / 1000:.3f} on {num_rows:,} sampled images, nprobe {nprobe}"


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


# ---- Stages -----------------------------------------------------------------------------


def find_centres(features_ND: Floats) -> Floats:
    """Centres of the lists, (L, D) of length 1, by k-means on some samples."""
    num_samples, dims = features_ND.shape
    num_lists = min(int(LISTS_PER_ROOT * np.sqrt(num_samples)), num_samples // MIN_PER_LIST)
    kmeans = load_faiss().Kmeans(
        dims,
        max(1, num_lists),
        spherical=True,
        seed=0,
        min_points_per_centroid=1,  # else it warns on stderr
        **TRAINING,
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


def kth_products(features_ND: Floats, rows: Longs, k: int) -> Floats:
    """Product of each row with the last of its k true nearest, itself counted, (rows,)."""
    products_RK, _ = nearest(features_ND[rows], features_ND, k)
    return products_RK[:, -1]


def measure_recall(
    features_ND: Floats, lists: Lists, k: int, rows: Longs, *kth: Floats
) -> tuple[float, int]:
    """Look into more and more lists until 99 % of the rows' nearest are found: (recall, nprobe).

    Found are samples that are no farther than the last of the true ones: of samples at equal
    distance each will do. Raises ConfigError if more than a quarter of the lists would be needed.
    """
    num_lists, kth_R = len(lists.centres_LD), np.concatenate(kth)
    nprobe = FIRST_NPROBE
    while True:
        products_RK, _ = look_up(features_ND, lists, features_ND[rows], nprobe, k)
        num_found = (products_RK >= kth_R[:, None] - ROUNDING).sum() - len(rows)  # without itself
        recall = float(num_found / (len(rows) * (k - 1)))
        if recall >= MIN_RECALL:
            return recall, nprobe
        nprobe *= 2
        if nprobe > MAX_PROBED * num_lists:
            raise ConfigError(
                "cluster.search=approximate misses too many neighbours of these features (recall "
                f"{described(recall, len(rows), nprobe // 2)} of {num_lists} lists; it must be "
                f"{MIN_RECALL}); use cluster.search=exact."
            )


def search_lists(
    features_ND: Floats, lists: Lists, search: Search, nprobe: int, row_start: int, row_stop: int
) -> Neighbours:
    """Neighbours of rows row_start..row_stop, measured and ordered as the exact search's."""
    rows_RD = features_ND[row_start:row_stop]
    near_products_RC, near_RC = look_up(features_ND, lists, rows_RD, nprobe, search.k + SLACK)
    # On the sphere, the farthest from x is the nearest to -x.
    far_products_RF, far_RF = look_up(features_ND, lists, -rows_RD, FIRST_NPROBE, NUM_FARTHEST)
    candidates = Candidates(
        row_start,
        2 - 2 * near_products_RC,
        near_RC.astype(np.int32),
        2 + 2 * far_products_RF,
        far_RF.astype(np.int32),
    )
    return refine(features_ND, search, candidates)


# ---- Parts of the stages ----------------------------------------------------------------


def look_up(
    features_ND: Floats, lists: Lists, queries_RD: Floats, nprobe: int, num: int
) -> tuple[Floats, Longs]:
    """Products (descending) and indices of each query's nearest in `nprobe` lists, (R, num); -inf
    and -1 where there are no more."""
    num_lists = len(lists.centres_LD)
    nprobe = min(nprobe, num_lists)
    _, probed_RP = nearest(queries_RD, lists.centres_LD, nprobe)
    probes, edges = grouped(probed_RP.ravel(), num_lists)
    best = load_faiss().ResultHeap(len(queries_RD), num, keep_max=True)
    for number in range(num_lists):
        members = lists.members_N[lists.edges[number] : lists.edges[number + 1]]
        asking = probes[edges[number] : edges[number + 1]] // nprobe
        if len(members) and len(asking):
            products, places = nearest(queries_RD[asking], features_ND[members], num)
            best.add_result_subset(asking, products, members[places])
    best.finalize()
    best.D[best.I < 0] = -np.inf
    return best.D, best.I


def grouped(list_of_entry: Longs, num_lists: int) -> tuple[Longs, Longs]:
    """Entries ordered by their list, and where each list begins (and the last one ends)."""
    order = np.argsort(list_of_entry, kind="stable")
    return order, np.searchsorted(list_of_entry[order], np.arange(num_lists + 1))
