"""Is an adaptation going well? Judged without any identity of the target.

The labelling of iteration n + 1 is made from the features of iteration n's model: its figures say
how good that model is.
"""

from collections.abc import Sequence
from typing import Any

# clusters.json: eps, num_clusters, outlier_share; silhouette, agreement (`cluster.quality`)
Clusters = dict[str, Any]

FEWER_CLUSTERS = 0.5
LITTLE_AGREEMENT = 0.1


def warnings(now: Clusters, before: Clusters | None) -> list[str]:
    """Signs of collapse, a sentence each, from two successive labellings."""
    if before is None:
        return []
    found = []
    if now["num_clusters"] < FEWER_CLUSTERS * before["num_clusters"]:
        found.append(
            f"{now['num_clusters']} clusters after {before['num_clusters']}: identities may be "
            "merging (collapse); use a smaller eps, a lower learning rate or fewer steps."
        )
    if "agreement" in now and now["agreement"] < LITTLE_AGREEMENT:
        found.append(
            f"the labels agree with the last ones by an adjusted Rand index of only "
            f"{now['agreement']:.2f}: training may be undoing itself; use a lower learning rate "
            "or fewer steps."
        )
    return found


def converged(now: Clusters, stop_agreement: float) -> bool:
    """Whether the newest labels are almost the last ones (a stopping criterion of ours)."""
    return now.get("agreement", 0.0) > stop_agreement


def best_model(models: Sequence[str], labellings: Sequence[Clusters]) -> str:
    """The model from whose features the labelling with the largest silhouette was made.

    `labellings[n]` is from `models[n]`. Of equal ones the later counts; a labelling without
    a silhouette (none was found, and the last one kept) never wins over one that has it.
    """
    pairs = list(zip(models, labellings, strict=True))
    return max(reversed(pairs), key=lambda pair: pair[1].get("silhouette", -2.0))[0]
