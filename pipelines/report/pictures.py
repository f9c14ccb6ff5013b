"""What the model looks at, what it takes for one person, and how its features lie.

Shapes: B images, C channels, h x w cells of the feature map, N target images, S source images.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from daal.config import InputConfig
from daal.data.augment import normalise
from daal.data.records import Domain
from daal.errors import DataError
from daal.nn.attention import IndependentAttention, NoAttention
from daal.nn.network import DaalNetwork
from daal.trained_model import TrainedModel
from pipelines.report import figures
from pipelines.report.facts import Facts
from pipelines.report.images import (
    Photo,
    columns,
    features,
    images,
    photo,
    spread,
    thumbs,
)
from pipelines.report.plots import Plot, inlined
from pipelines.run.artefacts import read_parts
from pipelines.run.folder import RunFolder
from pipelines.run.stages import Stage

NUM_ATTENDED = 4  # of each domain
NUM_SOURCE = 64  # whose features are made here; the target's are in the run folder
NUM_POINTS = 936  # of the target in the map, beside them
PER_CLUSTER = 12
MAX_CAMERAS = 16  # in a legend
FLAT = 0.02  # a range of A that means little
BATCH = 16


@dataclass(frozen=True)
class Triplet:
    """An image, and it as bright as the shared and as the specific attention (Fig. 1)."""

    photos: list[Photo]
    lowest: float  # of the shared attention over the image
    highest: float

    @property
    def is_flat(self) -> bool:
        return self.highest - self.lowest < FLAT


@dataclass(frozen=True)
class Cluster:
    """Some images of one pseudo-label. `purity`: the share of its commonest person, if known."""

    title: str
    size: int
    num_people: int | None
    purity: float | None
    photos: list[Photo]


@dataclass(frozen=True)
class FeatureMap:
    """One t-SNE, as often as there are ways to colour it."""

    plots: list[Plot]
    num_target: int
    num_source: int
    num_clusters: int


def triplets(run: RunFolder, model: TrainedModel, domain: Domain) -> list[Triplet]:
    """Attention on training images of a domain, taken evenly from its table.

    Raises:
        DataError: the network has no attention, or the images aren't there.
    """
    if isinstance(model.network.attention, NoAttention):
        raise DataError("This network has no attention (network.attention.mode=none).")
    rows = _training_rows(run, domain, NUM_ATTENDED)
    pixels_BCHW = _pixels(run, model, domain, rows)
    shared_Bhw, specific_Bhw = attention_maps(model.network, normalise(pixels_BCHW))
    paths = columns(run, f"images/{domain}.parquet", ["path"])["path"][rows]
    found = []
    for image, path, shared_hw, specific_hw in zip(
        thumbs(run, domain, rows, model.config.input), paths, shared_Bhw, specific_Bhw, strict=True
    ):
        views = {
            "image": image,
            "shared": figures.weighted(image, shared_hw),
            "specific": figures.weighted(image, specific_hw),
        }
        photos = [
            photo(view, f"{name}, {domain}", caption=name, title=str(path))
            for name, view in views.items()
        ]
        found.append(Triplet(photos, float(shared_hw.min()), float(shared_hw.max())))
    return found


@torch.inference_mode()
def attention_maps(
    network: DaalNetwork, images_BCHW: torch.Tensor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A of Eq. 1 and 1 - A of Eq. 2, their means over channels: (B, h, w) each, 0-1.

    With two modules ("IA" of Table 4) the second is the specific module's own map.
    """
    features_BCHW = network.backbone(images_BCHW)
    attention = network.attention
    if isinstance(attention, IndependentAttention):
        shared_BCHW = attention.shared(features_BCHW)
        specific_BCHW = attention.specific(features_BCHW)
    else:
        _, _, shared_BCHW = attention(features_BCHW)
        specific_BCHW = 1 - shared_BCHW
    return tuple(each.mean(1).float().cpu().numpy() for each in (shared_BCHW, specific_BCHW))  # type: ignore[return-value]


def source_features(run: RunFolder, model: TrainedModel) -> NDArray[np.float32]:
    """Features of some source images by the run's model: (S, D).

    Raises:
        DataError: the images aren't there.
    """
    rows = _training_rows(run, "source", NUM_SOURCE)
    parts = _pixels(run, model, "source", rows).tensor_split(-(-len(rows) // BATCH))
    with torch.inference_mode():
        return np.concatenate([model(part_BCHW).float().cpu().numpy() for part_BCHW in parts])


def feature_map(
    run: RunFolder, facts: Facts, model: Stage, source_SD: NDArray[np.float32] | None
) -> FeatureMap:
    """t-SNE of a seeded sample of the target's training images, and of the source's if given.

    Raises:
        DataError: the features aren't there, or are too few.
    """
    about = columns(run, model.file("features.parquet"), ("split", "camid"))
    train = np.flatnonzero(about["split"] == "train")
    if len(train) < 5:
        raise DataError("There are too few training images of the target for a map.")
    rng = np.random.default_rng(facts.config.seed)
    rows = np.sort(rng.permutation(train)[:NUM_POINTS])
    target_ND = features(run, model, rows)
    num_source = 0 if source_SD is None else len(source_SD)
    both = target_ND if source_SD is None else np.concatenate([target_ND, source_SD])
    points = figures.map_of(both, facts.config.seed)

    found: dict[str, bytes] = {}

    def colour(way: str, groups_N: NDArray[np.integer], names: list[str]) -> None:
        found[way] = figures.scatter(points, groups_N, names)

    others = np.full(num_source, -2)
    num_clusters = 0
    if facts.last_labelling:
        labels_N = _labels(run, facts.last_labelling[0])[rows]
        num_clusters = len(np.unique(labels_N[labels_N >= 0]))
        colour("by pseudo-label", np.append(labels_N, others), [])
    cameras, camera_N = np.unique(about["camid"][rows], return_inverse=True)
    names = [str(camera) for camera in cameras] if len(cameras) <= MAX_CAMERAS else []
    colour("by camera", np.append(camera_N, others), names)
    if num_source:
        colour("by domain", np.repeat([0, 1], [len(rows), num_source]), ["target", "source"])
    plots = [
        Plot(f"Coloured {way}", inlined(svg, f"Map of features, coloured {way}", f"map-{number}"))
        for number, (way, svg) in enumerate(found.items())
    ]
    return FeatureMap(plots, len(rows), num_source, num_clusters)


def clusters(run: RunFolder, facts: Facts) -> list[Cluster]:
    """A large, a middling and a small cluster of the last labelling, and the least pure.

    Raises:
        DataError: there is no labelling or no cluster, or the images aren't there.
    """
    if facts.last_labelling is None:
        raise DataError("There are no pseudo-labels yet.")
    labels_N = _labels(run, facts.last_labelling[0])
    about = columns(run, "images/target.parquet", ("pid", "camid", "path"))
    numbers, sizes_K = np.unique(labels_N[labels_N >= 0], return_counts=True)
    if len(numbers) == 0:
        raise DataError("There is no cluster: every image is an outlier.")
    by_size = numbers[np.argsort(-sizes_K, kind="stable")]
    titles = {
        int(by_size[0]): "The largest",
        int(by_size[len(by_size) // 2]): "One of middling size",
        int(by_size[-1]): "One of the smallest",
    }
    pids_known = bool((about["pid"][labels_N >= 0] > 0).any())
    if pids_known:
        purities = [_purity(about["pid"][labels_N == number]) for number in by_size]
        least = int(by_size[int(np.argmin(purities))])
        titles[least] = "The least pure" if least not in titles else f"{titles[least]}, least pure"
    return [
        _cluster(run, facts.config.input, title, np.flatnonzero(labels_N == number), about,
                 pids_known)
        for number, title in titles.items()
    ]  # fmt: skip


def _cluster(
    run: RunFolder,
    size: InputConfig,
    title: str,
    members: NDArray[np.intp],
    about: dict[str, NDArray[Any]],
    pids_known: bool,
) -> Cluster:
    pids, camids = about["pid"][members], about["camid"][members]
    people, person_M, counts = np.unique(pids, return_inverse=True, return_counts=True)
    # Evenly over people, the commonest first, and cameras: each has its share of what is shown.
    order = np.lexsort((camids, pids, -counts[person_M])) if pids_known else np.argsort(camids)
    rows = spread(members[order], PER_CLUSTER)
    commonest = int(people[counts.argmax()])
    shown = []
    for row, pixels in zip(rows, thumbs(run, "target", rows.tolist(), size), strict=True):
        camera, kind, words, mark = about["camid"][row], "", "", ""
        if pids_known:
            is_right = about["pid"][row] == commonest
            kind, words, mark = (
                ("right", "the commonest person, ", " ✓")
                if is_right
                else ("wrong", "another person, ", " ✗")
            )
        alt, caption = f"{words}camera {camera}", f"c{camera}{mark}"
        shown.append(photo(pixels, alt, caption=caption, kind=kind, title=str(about["path"][row])))
    return Cluster(
        title,
        len(members),
        len(people) if pids_known else None,
        _purity(pids) if pids_known else None,
        shown,
    )


def _purity(pids: NDArray[np.integer]) -> float:
    return float(np.unique(pids, return_counts=True)[1].max() / len(pids))


def _labels(run: RunFolder, stage: Stage) -> NDArray[np.int64]:
    name = stage.file("pseudo_labels.parquet")
    if not run.exists(name):
        raise DataError(f"{name} is not in the run folder; it was deleted.")
    return read_parts(run.read(name))[:, 0]


def _training_rows(run: RunFolder, domain: Domain, most: int) -> list[int]:
    split = columns(run, f"images/{domain}.parquet", ["split"])["split"]
    return [int(row) for row in spread(np.flatnonzero(split == "train"), most)]


def _pixels(run: RunFolder, model: TrainedModel, domain: Domain, rows: list[int]) -> torch.Tensor:
    """Images of a domain as the model takes them, where it is."""
    size = model.config.input
    pixels_BHWC = np.stack(images(run, domain, rows, size.height, size.width))
    return torch.tensor(pixels_BHWC).permute(0, 3, 1, 2).to(next(model.parameters()).device)
