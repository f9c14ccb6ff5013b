"""Everything that can be wrong before a worker is started; writes nothing."""

import math
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.camera_norm import MIN_IMAGES
from daal.config import Config, DatasetConfig
from daal.data.images import read
from daal.data.layout_checks import (
    check_counts,
    check_identities,
    check_names,
    passed_over,
    unread_folders,
)
from daal.data.layouts import URI, checked_root, load_records, records_to_read
from daal.data.records import SPLITS, Domain, ImageRecord
from daal.errors import CheckpointError, ConfigError, DataError
from daal.method_config import IMAGENET_WEIGHTS
from pipelines.run.stages import PRETRAIN, SUPERVISED, ingest_stage

SAMPLED_IMAGES = 512  # of a domain; all of them are read in a run
SAMPLING_SECONDS = 10.0
NUM_THREADS = 8  # most of them wait for the disk

Bad = dict[str, str]  # path -> why the image can't be used


@dataclass(frozen=True)
class Findings:
    """What a run would read: by domain and split, the numbers of images, of people whose pid is
    known, and of cameras; by domain, how many images were decoded; and warnings as sentences."""

    counts: dict[str, dict[str, int]]
    people: dict[str, dict[str, int]]
    cameras: dict[str, dict[str, int]]
    num_sampled: dict[str, int]
    warnings: list[str]


def validate(config: Config, finished: Collection[str] = ()) -> Findings:
    """Look at both data sets, the weights file and the run folder.

    Of the images, a seeded sample is decoded, and every empty file found. What only stages need
    that are `finished` is passed over: the images that they have read, and the weights file.

    Raises:
        DaalError: the run could not work; one sentence says why.
    """
    check_out(config.out)
    counts: dict[str, dict[str, int]] = {}
    people: dict[str, dict[str, int]] = {}
    cameras: dict[str, dict[str, int]] = {}
    num_sampled: dict[str, int] = {}
    read_files: list[set[Path]] = []
    warnings: list[str] = []
    if config.target_only and config.cluster.source_weight:
        raise DataError("cluster.source_weight above 0 needs a source: give source.root=DIR.")
    for domain, settings in config.domains():
        if str(ingest_stage(domain)) in finished:
            continue
        root = root_of(domain, settings)
        records = load_records(settings.layout, root)
        by_split = {split: [r for r in records if r.split == split] for split in SPLITS}
        counts[domain] = {split: len(some) for split, some in by_split.items()}
        people[domain] = {
            split: len({r.pid for r in some if r.pid > 0}) for split, some in by_split.items()
        }
        cameras[domain] = {split: len({r.camid for r in some}) for split, some in by_split.items()}
        found = check_counts(settings.layout, records) if settings.published_counts else []
        if unread := passed_over(root, records):
            found.append(
                f"{len(unread):,} files or folders in {root} are passed over, e.g. "
                f"{unread[0]!a}; make JPEG or PNG files beside the others of what should be "
                "read."
            )
        if unread := unread_folders(settings.layout, root, records):
            found += _unread_warnings(settings.layout, root, unread)
        found += check_names(records)
        if domain == "target":
            found += check_identities(settings.layout, root, records)
        found += _check_training(config, domain, records)
        read_here = records_to_read(records, domain, settings.max_train_images, config.seed)
        found += _check_cameras(config, domain, read_here)
        real_root = root.resolve()
        read_files.append({real_root / record.path for record in read_here})
        num_sampled[domain], odd = _look_at_images(domain, settings, read_here, config.seed)
        warnings += [f"{domain}: {text}" for text in found + odd]
    roots = [Path(settings.root).resolve() for _, settings in config.domains()]
    if len(set(roots)) < len(roots):
        warnings.append(
            f"source.root and target.root are the same folder, {roots[0]}: nothing has to be "
            "adapted to; give the unlabelled cameras' images as target.root."
        )
    elif shared := set.intersection(*read_files) if len(read_files) > 1 else set():
        warnings.append(
            f"{len(shared):,} images are read as source and as target, e.g. {min(shared)}; give "
            "the unlabelled cameras' images alone as target.root."
        )
    trainings = [PRETRAIN.at("train")] + [SUPERVISED.at("train")] * config.supervised_bound
    starts = any(str(stage) not in finished for stage in trainings)  # from the backbone's weights
    if starts and config.network.weights not in (*IMAGENET_WEIGHTS, "none"):
        _check_weights(config)
    return Findings(counts, people, cameras, num_sampled, warnings)


def _unread_warnings(layout: str, root: Path, unread: list[str]) -> list[str]:
    """Sentences about folders of images that the layout doesn't read; "." is the root itself."""
    warnings = []
    if "." in unread:
        warnings.append(
            f"images right in {root} are not read, as layout={layout} reads its folders only; "
            "move them into one of these if they should be."
        )
    if folders := [name for name in unread if name != "."]:
        names = ", ".join(map(ascii, folders[:3])) + (", ..." if len(folders) > 3 else "")
        warnings.append(
            f"images in {names} of {root} are not read, as layout={layout} has no such folder; "
            "rename it if they should be."
        )
    return warnings


def root_of(domain: Domain, settings: DatasetConfig) -> Path:
    """A domain's folder. Raises DataError if none is set, or it is none."""
    if settings.root:
        return checked_root(settings.root)
    other = " (or adapt.batch_source=0, to train without a source)" if domain == "source" else ""
    raise DataError(
        f"{domain}.root is not set: give the data set's folder, {domain}.root=DIR{other}."
    )


def check_out(out: str) -> None:
    """Raise ConfigError if a run folder on this machine's disks couldn't be made or written."""
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


def _check_training(config: Config, domain: Domain, records: list[ImageRecord]) -> list[str]:
    """Whether there is enough to train on. Raises DataError if a stage would stop the run."""
    settings = config.source if domain == "source" else config.target
    train = [record for record in records if record.split == "train"]
    known = {record.pid for record in train if record.pid >= 0}
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
    warnings = []
    if domain == "source" and len(known) == 1:
        warnings.append(
            f"all training images in {settings.root} are of one person, from which no difference "
            "can be learned; give a set of more people."
        )
    if domain == "target" and config.iterations:
        num_train = min(len(train), settings.max_train_images or len(train))
        least = config.cluster.min_samples * config.cluster.min_clusters
        if num_train < 2:
            raise DataError(
                f"There is {num_train} training image in {settings.root}, and pseudo-labels need "
                "at least 2; give more images."
            )
        if num_train < least:
            warnings.append(
                f"{num_train} training images hardly make cluster.min_clusters="
                f"{config.cluster.min_clusters} clusters with cluster.min_samples="
                f"{config.cluster.min_samples}; give more images, or lower these."
            )
    return warnings


def _check_cameras(config: Config, domain: Domain, records: list[ImageRecord]) -> list[str]:
    """A warning where cluster.camera_norm finds no camera that it could standardise."""
    if domain == "source" or not config.cluster.camera_norm:
        return []
    cameras = Counter(record.camid for record in records if record.split == "train")
    if max(cameras.values(), default=0) >= MIN_IMAGES:
        return []
    return [
        f"cluster.camera_norm=true takes no camera's mean out, as none of {len(cameras):,} cameras "
        f"has {MIN_IMAGES} training images; check the cameras in the names, or set it to false."
    ]


def _look_at_images(
    domain: Domain, settings: DatasetConfig, records: list[ImageRecord], seed: int
) -> tuple[int, list[str]]:
    """How many images were decoded, and a warning for each kind of what is wrong.

    Raises DataError where ingest would find more than `max_bad_share` unusable: surely, or, by
    the sample, with a margin of three standard deviations.
    """
    root = Path(settings.root)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        chunks = [records[at : at + 1000] for at in range(0, len(records), 1000)]
        empty: Bad = {}
        for some in pool.map(lambda chunk: _empty_files(root, chunk), chunks):
            empty |= some
        full = [record for record in records if record.path not in empty]
        order = np.random.default_rng([seed, 2]).permutation(len(full))[:SAMPLED_IMAGES]
        sample = [full[at] for at in order]
        reasons = list(_in_time(pool, root, sample))
    bad = {record.path: why for record, why in zip(sample, reasons, strict=False) if why}
    num_sampled = len(reasons)

    limit = settings.max_bad_share * len(records)
    unseen_share = 1 - num_sampled / len(full) if full else 0.0
    each = len(full) / num_sampled if num_sampled else 0.0  # images that one of the sample is for
    estimate = len(empty) + each * len(bad)
    margin = 3 * each * math.sqrt(len(bad)) * unseen_share
    kinds = _kinds(empty | bad)
    seen = f"of {num_sampled + len(empty):,} images looked at ({len(records):,} in all)"
    num_bad = len(empty) + len(bad)
    too_many = (
        f"{num_bad:,} {seen} in {root} can't be used, and no more than {domain}.max_bad_share="
        f"{settings.max_bad_share:g} may be: {'; '.join(kinds)}; repair or remove them, or raise "
        f"{domain}.max_bad_share."
    )
    if num_bad > limit or estimate - margin > limit:
        raise DataError(too_many)
    if estimate > limit:
        return num_sampled, [f"{too_many} If the others are like these, the run will stop."]
    return num_sampled, [
        f"{kind} {seen}; left out of the run unless they are repaired." for kind in kinds
    ]


def _empty_files(root: Path, records: list[ImageRecord]) -> Bad:
    return {r.path: "the file is empty" for r in records if _is_empty(root / r.path)}


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False  # reading it will say why


def _in_time(
    pool: ThreadPoolExecutor, root: Path, records: list[ImageRecord]
) -> Iterator[str | None]:
    """Why each image can't be used, or None; fewer than asked for when the time is over."""
    last = time.monotonic() + SAMPLING_SECONDS
    futures = [pool.submit(read, root / record.path) for record in records]
    for future in futures:
        if time.monotonic() > last:
            pool.shutdown(wait=False, cancel_futures=True)
            return
        yield future.result()[1]


def _kinds(bad: Bad) -> list[str]:
    """A phrase for each kind of reason, with a count and an example."""
    kinds: dict[str, list[str]] = {}
    for path, reason in bad.items():
        kinds.setdefault(re.sub(r"\d[\d,]*", "#", reason), []).append(path)
    return [f"{bad[min(paths)]}: {len(paths):,} (e.g. {min(paths)!a})" for paths in kinds.values()]


def _check_weights(config: Config) -> None:
    from daal.nn.network import DaalNetwork

    network = DaalNetwork(config.network)  # raises if the file doesn't fit
    for name, tensor in network.backbone.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"weights file {config.network.weights} has values in {name} that aren't finite; "
                "get it again from where it came."
            )
