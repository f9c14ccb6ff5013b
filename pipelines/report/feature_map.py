"""A map of a run's features: t-SNE of a sample, coloured by pseudo-label, by camera, by domain.

Shapes: N target images, S source images, P = N + S points of the map, D channels of a feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from daal.errors import DataError
from daal.trained_model import TrainedModel
from pipelines.report.attention_and_clusters import pseudo_labels, training_images
from pipelines.report.facts import Facts
from pipelines.report.figures import INK, MARKERS, SERIES, STYLE, legend_columns, svg_of
from pipelines.report.images import columns, feature_files, features
from pipelines.report.plots import Plot, inlined
from pipelines.run.folder import RunFolder
from pipelines.run.stages import Stage

NUM_TARGET = 936
NUM_SOURCE = 64  # their features are made here; the target's are in the run folder
MOST_NAMES = len(SERIES) * len(MARKERS)  # beyond them colours and shapes repeat


@dataclass(frozen=True)
class FeatureMap:
    """One t-SNE, drawn once for each way to colour it."""

    plots: list[Plot]
    num_target: int
    num_source: int


def feature_map(
    run: RunFolder, facts: Facts, stage: Stage, model: TrainedModel | None
) -> FeatureMap:
    """t-SNE of a seeded sample of the target's training images, by the features of a stage.

    Training images of the source are added if they and the stage's `model` are there.

    Raises:
        DataError: the features aren't there, or are too few.
    """
    about = columns(run, feature_files(run, stage), ("split", "camid"))
    train = np.flatnonzero(about["split"] == "train")
    if len(train) < 5:
        raise DataError("A map needs five training images of the target.")
    rng = np.random.default_rng(facts.config.seed)
    rows_N = np.sort(rng.permutation(train)[:NUM_TARGET])
    features_PD = features(run, stage, rows_N)
    if model is not None and run.exists("images/source.parquet"):
        _, images_SCHW = training_images(run, model, "source", NUM_SOURCE)
        with torch.inference_mode():
            source_SD = model(images_SCHW).cpu().numpy()
        features_PD = np.concatenate([features_PD, source_SD])
    points_P2 = t_sne(features_PD, facts.config.seed)
    num_source = len(points_P2) - len(rows_N)

    cameras, camera_N = np.unique(about["camid"][rows_N], return_inverse=True)
    drawn = {"camera": scatter(points_P2, camera_N, [str(camera) for camera in cameras])}
    if facts.last_labelling:
        labels_N = pseudo_labels(run, facts.last_labelling[0])[rows_N]
        drawn = {"pseudo-label": scatter(points_P2, labels_N), **drawn}
    if num_source:
        domain_P = np.repeat([0, 1], [len(rows_N), num_source])
        drawn["domain"] = scatter(points_P2, domain_P, ("target", "source"))
    plots = [
        Plot(f"By {way}", inlined(svg, f"Map of features, coloured by {way}", f"map-{way}"))
        for way, svg in drawn.items()
    ]
    return FeatureMap(plots, len(rows_N), num_source)


def t_sne(features_PD: NDArray[np.floating], seed: int) -> NDArray[np.floating]:
    """Van der Maaten and Hinton 2008, on Euclidean distances: (P, 2), of at least 5 features.

    The same features and seed give the same map.
    """
    perplexity = min(30.0, (len(features_PD) - 1) / 4)
    mapping = TSNE(perplexity=perplexity, init="pca", max_iter=750, random_state=seed % 2**32)
    with threadpool_limits(1):  # its threads wait for each other: one is faster on a busy machine
        return np.asarray(mapping.fit_transform(features_PD))


def scatter(
    points_P2: NDArray[np.floating], groups_N: NDArray[np.integer], names: Sequence[str] = ()
) -> bytes:
    """The first N points, coloured and shaped by group, as SVG. Group -1 is none: grey crosses.

    Points after the first N are not drawn but have their room, so plots of the same points can be
    laid beside each other. A legend gives the name of each group, unless they are too many.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.5, 3.5), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.set_aspect("equal", adjustable="datalim")
        axes.update_datalim(points_P2)
        for group in np.unique(groups_N):  # -1 first, so that it lies below the others
            x, y = points_P2[: len(groups_N)][groups_N == group].T
            if group < 0:
                axes.plot(x, y, "x", color=INK, alpha=0.4, markersize=3, markeredgewidth=0.7)
                continue
            marker = MARKERS[(group + group // len(SERIES)) % len(MARKERS)]
            colour = SERIES[group % len(SERIES)]
            name = names[group] if names else ""
            axes.plot(x, y, marker, color=colour, markersize=3, markeredgewidth=0, label=name)
        if 0 < len(names) <= MOST_NAMES:
            figure.legend(
                loc="outside lower center", ncols=legend_columns(names, 3), frameon=False,
                markerscale=1.8, columnspacing=0.7, handletextpad=0.1,
            )  # fmt: skip
        return svg_of(figure)
