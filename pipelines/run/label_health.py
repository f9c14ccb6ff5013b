"""Is an adaptation going well? Judged without any identity of the target.

The labelling of iteration n + 1 is made from the features of iteration n's model: its figures say
how good that model is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.eps import eps_setting
from daal.config import ClusterConfig
from pipelines.run.results import Clusters
from pipelines.run.stages import Stage

FEWER_CLUSTERS = 0.5
LITTLE_AGREEMENT = 0.1
MANY_OF_ONE_CAMERA = 0.5  # of the clusters, if it is
TIMES_CHANCE = 2  # or more
FEW_CROSS_CAMERA_PAIRS = 0.25  # of those that chance would give


def kept_eps(labellings: Sequence[Clusters], config: ClusterConfig) -> list[float] | None:
    """eps of each part of the body to begin the next labelling with; None: by the rule.

    It is the first iteration's, as it was before steps back from a giant cluster (release 0.1
    noted only the one after them).
    """
    if not labellings or config.refit_eps or config.eps_rule == "fixed":
        return None
    return labellings[0].first_eps or labellings[0].eps


def warnings(now: Clusters, before: Clusters | None, config: ClusterConfig) -> list[str]:
    """Signs of collapse, from two successive labellings, and of clusters that follow cameras; a
    sentence each."""
    found = camera_warnings(now.as_dict(), config)
    if now.kept:
        found.append(
            "clustering found no new labels: the model may be collapsing; use a lower learning "
            "rate or fewer steps, or select=silhouette, which takes no model without labels."
        )
    if before is None:
        return found
    if now.num_clusters < FEWER_CLUSTERS * before.num_clusters:
        found.append(
            f"{now.num_clusters} clusters after {before.num_clusters}: identities may be "
            f"merging (collapse); use a smaller {eps_setting(config)}, a lower learning rate or "
            "fewer steps."
        )
    if now.agreement is not None and now.agreement < LITTLE_AGREEMENT:
        found.append(
            f"the labels agree with the last ones by an adjusted Rand index of only "
            f"{now.agreement:.2f}: training may be undoing itself; use a lower learning rate "
            "or fewer steps."
        )
    return found


def camera_warnings(clusters: Mapping[str, Any], config: ClusterConfig) -> list[str]:
    """A sentence if clusters, or the pairs of images in them, are of one camera far more often than
    chance would have it; none where cameras are unknown or one only."""
    figures = ("one_camera_share", "one_camera_chance", "cross_camera_share", "cross_camera_chance")
    alone, alone_chance, cross, cross_chance = (clusters.get(name) for name in figures)
    if alone is None or alone_chance is None or cross is None or cross_chance is None:
        return []
    of_one_camera = alone > max(MANY_OF_ONE_CAMERA, TIMES_CHANCE * alone_chance)
    if not of_one_camera and cross >= FEW_CROSS_CAMERA_PAIRS * cross_chance:
        return []
    return [
        f"clusters follow cameras: {alone:.0%} of them are of one camera (by chance "
        f"{alone_chance:.0%}), and {cross:.0%} of the pairs in them are of two cameras (by chance "
        f"{cross_chance:.0%}); use {_camera_remedy(config)}."
    ]


def _camera_remedy(config: ClusterConfig) -> str:
    remedies = []
    if not config.camera_norm:
        remedies.append("cluster.camera_norm=true")
    if not config.camera_aware:
        exact = " with cluster.search=exact" if config.search != "exact" else ""
        remedies.append(f"cluster.camera_aware=true{exact}")
    return " or ".join(remedies) or "a better source model, or a source with more cameras"


def converged(now: Clusters, stop_agreement: float) -> bool:
    """Whether new labels were found, and almost the last ones: a stopping criterion of ours."""
    return not now.kept and now.agreement is not None and now.agreement > stop_agreement


def best_model(models: Sequence[Stage], labellings: Sequence[Clusters]) -> Stage:
    """The model from whose features the labelling with the largest silhouette was made.

    It is the silhouette across cameras (`cluster.quality.graph_silhouette`) where every labelling
    has it, as the plain one is large where clusters follow cameras. `labellings[n]` is from
    `models[n]`; if two are equal, the later wins. A labelling that was kept has no silhouette and
    never wins over one that has it.
    """
    found = [clusters for clusters in labellings if clusters.silhouette is not None]
    across = all(clusters.cross_camera_silhouette is not None for clusters in found)

    def figure(clusters: Clusters) -> float:
        value = clusters.cross_camera_silhouette if across else clusters.silhouette
        return -2.0 if value is None else value

    pairs = list(zip(models, labellings, strict=True))
    return max(reversed(pairs), key=lambda pair: figure(pair[1]))[0]
