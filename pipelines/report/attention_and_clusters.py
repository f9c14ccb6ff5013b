"""What the model looks at, and what it takes for one person.

Shapes: B images, C channels, h x w cells of the feature map, N target images, M of a cluster.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from daal.config import InputConfig
from daal.data.augment import normalise
from daal.data.records import Domain
from daal.drawn.domains import figure_masks, is_drawn
from daal.errors import DataError
from daal.nn.attention import NoAttention
from daal.nn.network import DaalNetwork
from daal.trained_model import TrainedModel
from pipelines.report import figures
from pipelines.report.attention_figures import AttentionFigures, attention_figures, energy_share
from pipelines.report.facts import Facts
from pipelines.report.images import Photo, columns, images, photo, spread, thumbs
from pipelines.run.artefacts import read_parts
from pipelines.run.folder import RunFolder
from pipelines.run.stages import Stage

NUM_ATTENDED = 4  # of each domain
NUM_MEASURED = 200  # drawn images of each domain, against masks of their people
PER_CLUSTER = 12
FLAT = 0.02  # a range of A that means little


@dataclass(frozen=True)
class Triplet:
    """An image, and it as bright as the shared and as the specific attention (Fig. 1)."""

    photos: list[Photo]
    lowest: float  # of the shared map over the image
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
class Attention:
    """What the model looks at in one domain. `figures`: of drawn images, which have masks."""

    triplets: list[Triplet]
    figures: AttentionFigures | None


def attention_on(run: RunFolder, model: TrainedModel, domain: Domain, root: str) -> Attention:
    """Attention on training images of a domain, taken evenly from its table; `root` is its folder.

    Raises:
        DataError: the network has no attention, or the images aren't there.
    """
    if isinstance(model.network.attention, NoAttention):
        raise DataError("This network has no attention (network.attention.mode=none).")
    rows, images_BCHW = training_images(run, model, domain, NUM_ATTENDED)
    maps = attention_maps(model.network, normalise(images_BCHW, model.network.statistics))
    paths = columns(run, f"images/{domain}.parquet", ["path"])["path"][rows]
    found = []
    for image, path, shared_hw, specific_hw in zip(
        thumbs(run, domain, rows, model.config.input), paths, *maps, strict=True
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
    return Attention(found, drawn_figures(run, model, domain, root))


def training_images(
    run: RunFolder, model: TrainedModel, domain: Domain, most: int
) -> tuple[NDArray[np.integer], torch.Tensor]:
    """At most so many training images of a domain, evenly from its table: their row numbers, and
    uint8 pixels (B, 3, H, W) as the model takes them, on its device."""
    split = columns(run, f"images/{domain}.parquet", ["split"])["split"]
    rows = spread(np.flatnonzero(split == "train"), most)
    size = model.config.input
    pixels_BHWC = np.stack(images(run, domain, rows, size.height, size.width))
    device = next(model.parameters()).device
    return rows, torch.tensor(pixels_BHWC).permute(0, 3, 1, 2).to(device)


@torch.inference_mode()
def attention_maps(
    network: DaalNetwork, images_BCHW: torch.Tensor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How much of the features is shared, and how much specific: (B, h, w) each, 0-1.

    |A F| / |F| of Eq. 1 and |(1 - A) F| / |F| of Eq. 2, norms over channels: A counts in the
    channels that have something to weigh. With two modules ("IA" of Table 4) the second is of the
    specific module's own map.
    """
    features_BCHW = network.backbone(images_BCHW)
    shared_BCHW, specific_BCHW, _ = network.attention(features_BCHW)
    shared_Bhw, specific_Bhw = (
        energy_share(each, features_BCHW).cpu().numpy() for each in (shared_BCHW, specific_BCHW)
    )
    return shared_Bhw, specific_Bhw


def drawn_figures(
    run: RunFolder, model: TrainedModel, domain: Domain, root: str
) -> AttentionFigures | None:
    """How well the attention finds the people of drawn images; None for other images."""
    if not is_drawn(root):
        return None
    rows, images_BCHW = training_images(run, model, domain, NUM_MEASURED)
    paths = columns(run, f"images/{domain}.parquet", ["path"])["path"][rows]
    masks_BHW = figure_masks(Path(root), paths)
    with torch.inference_mode():
        features_BCHW = model.network.backbone(normalise(images_BCHW))
        shared_BCHW, specific_BCHW, _ = model.network.attention(features_BCHW)
    return attention_figures(features_BCHW, shared_BCHW, specific_BCHW, masks_BHW)


def clusters(run: RunFolder, facts: Facts) -> list[Cluster]:
    """A large, a middling and a small cluster of the last labelling, and the least pure.

    Raises:
        DataError: there is no labelling or no cluster, or the images aren't there.
    """
    if facts.last_labelling is None:
        raise DataError("There are no pseudo-labels yet.")
    labels_N = pseudo_labels(run, facts.last_labelling[0])
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
    size = facts.config.input
    return [
        _cluster(run, size, title, np.flatnonzero(labels_N == number), about, pids_known)
        for number, title in titles.items()
    ]


def _cluster(
    run: RunFolder,
    size: InputConfig,
    title: str,
    rows_M: NDArray[np.integer],
    about: dict[str, NDArray[Any]],
    pids_known: bool,
) -> Cluster:
    pids, camids = about["pid"][rows_M], about["camid"][rows_M]
    people, person_M, counts = np.unique(pids, return_inverse=True, return_counts=True)
    commonest = people[counts.argmax()]
    # Evenly over people, the commonest first, and cameras: each has its share of what is shown.
    order = np.lexsort((camids, pids, -counts[person_M])) if pids_known else np.argsort(camids)
    rows = spread(rows_M[order], PER_CLUSTER)
    photos = []
    for row, pixels in zip(rows, thumbs(run, "target", rows, size), strict=True):
        camera = about["camid"][row]
        alt, caption, kind = f"camera {camera}", f"c{camera}", ""
        if pids_known and about["pid"][row] == commonest:
            alt, caption, kind = f"the commonest person, {alt}", f"{caption} ✓", "right"
        elif pids_known:
            alt, caption, kind = f"another person, {alt}", f"{caption} ✗", "wrong"
        photos.append(photo(pixels, alt, caption=caption, kind=kind, title=str(about["path"][row])))
    if not pids_known:
        return Cluster(title, len(rows_M), None, None, photos)
    return Cluster(title, len(rows_M), len(people), _purity(pids), photos)


def _purity(pids: NDArray[np.integer]) -> float:
    return float(np.unique(pids, return_counts=True)[1].max() / len(pids))


def pseudo_labels(run: RunFolder, stage: Stage) -> NDArray[np.int64]:
    name = stage.file("pseudo_labels.parquet")
    if not run.exists(name):
        raise DataError(f"{name} is not in the run folder; it was deleted.")
    return read_parts(run.read(name))[:, 0]
