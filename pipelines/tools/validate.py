"""Checks before a run starts: data sets, weights file and run folder. Writes nothing."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pyarrow as pa

from cluster.camera_norm import MIN_IMAGES
from daal.config import Config, DatasetConfig, Layout
from daal.data.layout_checks import (
    check_counts,
    check_identities,
    check_names,
    passed_over,
    unread_folders,
)
from daal.data.layouts import FolderLayout, records_to_read
from daal.data.places import URI
from daal.data.records import SPLITS, UNKNOWN_CAMID, Domain, counted, distinct, of_split
from daal.data.sources import load_set
from daal.errors import CheckpointError, ConfigError, DataError
from pipelines.run.stages import PRETRAIN, SUPERVISED, ingest_stage
from pipelines.tools.sample_images import check_sample


@dataclass(frozen=True)
class Findings:
    """What a run would read.

    counts, people and cameras: by domain and split, the numbers of images, of people whose pid is
    known, and of cameras. num_sampled: by domain, how many images were decoded.
    """

    counts: dict[str, dict[str, int]]
    people: dict[str, dict[str, int]]
    cameras: dict[str, dict[str, int]]
    num_sampled: dict[str, int]
    warnings: list[str]


def validate(config: Config, finished: Collection[str] = ()) -> Findings:
    """Check the network, both data sets, the weights file and the run folder.

    Images and the weights file aren't checked if the stages that read them are `finished`.

    Raises:
        DaalError: the run could not work; one sentence says why.
    """
    check_out(config.out)
    check_network(config)
    if config.target_only and config.cluster.source_weight:
        raise DataError("cluster.source_weight above 0 needs a source: give source.root=DIR.")
    found = Findings({}, {}, {}, {}, [])
    for domain, settings in config.domains():
        if str(ingest_stage(domain)) in finished:
            continue
        check_root(domain, settings)
        records = load_set(settings)
        by_split = {split: of_split(records, split) for split in SPLITS}
        found.counts[domain] = {split: len(some) for split, some in by_split.items()}
        found.people[domain] = {
            split: sum(pid > 0 for pid in distinct(some["pid"])) for split, some in by_split.items()
        }
        found.cameras[domain] = {
            split: len(distinct(some["camid"]) - {UNKNOWN_CAMID})
            for split, some in by_split.items()
        }
        warnings = _check_folder(domain, settings, records)
        _check_training(config, domain, records)
        read_here = records_to_read(records, domain, config.max_train_images, config.seed)
        warnings += _check_cameras(config, domain, read_here)
        found.num_sampled[domain], bad = check_sample(config, settings, read_here)
        found.warnings.extend(f"{domain}: {text}" for text in warnings + bad)
    roots = [os.path.realpath(settings.root) for _, settings in config.domains()]
    if len(set(roots)) < len(roots):
        found.warnings.append(
            f"source.root and target.root are the same folder, {roots[0]}: nothing has to be "
            "adapted to; give the unlabelled cameras' images as target.root."
        )
    trainings = [PRETRAIN.at("train")] + [SUPERVISED.at("train")] * config.supervised_bound
    starts = any(str(stage) not in finished for stage in trainings)  # from the backbone's weights
    if starts and config.network.weights_file:
        _check_weights(config)
    return found


def _check_folder(domain: Domain, settings: DatasetConfig, records: pa.Table) -> list[str]:
    """Warnings about files that aren't read, names and published numbers."""
    layout, root = settings.layout, settings.root
    warnings = check_counts(layout, records)
    # Of a bucket, a table and tar files, what isn't listed isn't looked for.
    if layout in get_args(FolderLayout) and os.path.isdir(root):
        warnings += _check_unread(layout, root, records)
    warnings += check_names(records)
    return warnings + (check_identities(layout, root, records) if domain == "target" else [])


def _check_unread(layout: Layout, root: str, records: pa.Table) -> list[str]:
    warnings = []
    if files := passed_over(root, records):
        warnings.append(
            f"{len(files):,} files or folders in {root} are passed over, e.g. {files[0]!a}; make "
            "JPEG or PNG files beside the others of what should be read."
        )
    folders = unread_folders(layout, root, records)
    if "." in folders:
        warnings.append(
            f"images right in {root} are not read, as layout={layout} reads its folders only; "
            "move them into one of these if they should be."
        )
    if names := [name for name in folders if name != "."]:
        shown = ", ".join(map(ascii, names[:3])) + (", ..." if len(names) > 3 else "")
        warnings.append(
            f"images in {shown} of {root} are not read, as layout={layout} has no such folder; "
            "rename it if they should be."
        )
    return warnings


def check_root(domain: Domain, settings: DatasetConfig) -> None:
    """Raise DataError if no root is set."""
    if not settings.root:
        other = " (or adapt.batch_source=0, to train without a source)" * (domain == "source")
        raise DataError(
            f"{domain}.root is not set: give the data set's folder, {domain}.root=DIR{other}."
        )


def check_out(out: str) -> None:
    """Raise ConfigError if a local run folder can't be made or written."""
    if "://" in out:
        return
    if URI.match(out):
        given = out.replace(":/", "://", 1)
        raise ConfigError(f"out={out} has one slash after its scheme; write out={given}.")
    place = Path(out).absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"out={out} can't be a run folder: {place} is no folder; choose another.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(
            f"out={out} can't be a run folder: {place} may not be written to; choose another."
        )


def _check_training(config: Config, domain: Domain, records: pa.Table) -> None:
    """Raise DataError if a stage would stop the run for its training images."""
    settings = config.source if domain == "source" else config.target
    train = of_split(records, "train")
    known = any(pid >= 0 for pid in distinct(train["pid"]))
    if not known and domain == "source":
        raise DataError(
            f"No training image in {settings.root} has a known pid, and the source is learned by "
            "pids; give a labelled set as source.root, or set adapt.batch_source=0 without any."
        )
    if not known and config.supervised_bound:
        raise DataError(
            "supervised_bound=true needs the target's identities, and its training images have "
            "none; set supervised_bound=false."
        )
    num_train = min(len(train), config.max_train_images or len(train))
    if domain == "target" and config.iterations and num_train < 2:
        raise DataError(
            f"There is {num_train} training image in {settings.root}, and pseudo-labels need at "
            "least 2; give more images."
        )


def _check_cameras(config: Config, domain: Domain, records: pa.Table) -> list[str]:
    """A warning if cluster.camera_norm would find no camera with enough images.

    Raises DataError if cluster.camera_aware would find no camera.
    """
    if domain == "source":
        return []
    train = of_split(records, "train")
    cameras = counted(train["camid"])
    del cameras[UNKNOWN_CAMID]
    if config.cluster.camera_aware and not cameras:
        raise DataError(
            f"cluster.camera_aware=true needs cameras, and none of {len(train):,} training images "
            "has a known one; give camids, or set it to false."
        )
    if not config.cluster.camera_norm:
        return []
    if max(cameras.values(), default=0) >= MIN_IMAGES:
        return []
    return [
        f"cluster.camera_norm=true takes no camera's mean out, as none of {len(cameras):,} cameras "
        f"has {MIN_IMAGES} training images; check the cameras in the names, or set it to false."
    ]


def check_network(config: Config) -> None:
    """Raise ConfigError if there is no such network, or a setting has no effect on it."""
    import torch

    from daal.nn.network import DaalNetwork

    num_source_ids = 0 if config.target_only else 2
    with torch.device("meta"):  # without memory
        DaalNetwork(
            config.network.model_copy(update={"weights": "none"}),
            num_source_ids,
            num_clusters=2,
            domain_head=config.network.specific_branch and num_source_ids > 0,
            input=config.input,
        )


def _check_weights(config: Config) -> None:
    from daal.nn.network import DaalNetwork

    network = DaalNetwork(config.network, input=config.input)  # raises if the file doesn't fit
    for name, tensor in network.backbone.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"weights file {config.network.weights} has values in {name} that aren't finite; "
                "get it again from where it came."
            )
