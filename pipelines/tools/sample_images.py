"""A sample of a data set's images, decoded before a run starts."""

import math
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from daal.config import Config, DatasetConfig
from daal.data.records import ImageRecord
from daal.data.sources import listing, read_image, roots_of
from daal.errors import DataError

SAMPLED_IMAGES = 512  # of a domain; a run reads them all
SAMPLING_SECONDS = 10.0
NUM_THREADS = 8  # most of them wait for the disk


def check_sample(
    config: Config, settings: DatasetConfig, records: list[ImageRecord]
) -> tuple[int, list[str]]:
    """Find all empty files and decode a seeded sample of the others.

    Returns how many images were decoded, and a warning for each kind of problem. Raises DataError
    if more than `max_bad_share` of all images can't be used: for sure, or by the sample with a
    margin of three standard deviations.
    """
    roots, root = roots_of(settings), settings.root
    sizes = listing(roots, records)["size"].to_pylist()
    empty = {record.path for record, size in zip(records, sizes, strict=True) if size == 0}
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        full = [record for record in records if record.path not in empty]
        order = np.random.default_rng([config.seed, 2]).permutation(len(full))[:SAMPLED_IMAGES]
        sample = [full[at].path for at in order]
        reasons = _read_in_time(pool, roots, [full[at] for at in order])
    bad = dict.fromkeys(empty, "the file is empty")
    bad |= {path: why for path, why in zip(sample, reasons, strict=False) if why}

    limit = config.max_bad_share * len(records)
    each = len(full) / max(1, len(reasons))  # images that one of the sample stands for
    unseen_share = 1 - len(reasons) / max(1, len(full))
    bad_in_sample = len(bad) - len(empty)
    estimate = len(empty) + each * bad_in_sample
    margin = 3 * each * math.sqrt(bad_in_sample) * unseen_share
    kinds = _kinds(bad)
    seen = f"of {len(reasons) + len(empty):,} images looked at ({len(records):,} in all)"
    too_many = (
        f"{len(bad):,} {seen} in {root} can't be used, and no more than max_bad_share="
        f"{config.max_bad_share:g} may be: {'; '.join(kinds)}; repair or remove them, or raise "
        "max_bad_share."
    )
    if len(bad) > limit or estimate - margin > limit:
        raise DataError(too_many)
    if estimate > limit:
        return len(reasons), [f"{too_many} If the others are like these, the run will stop."]
    return len(reasons), [
        f"{kind} {seen}; left out of the run unless they are repaired." for kind in kinds
    ]


def _read_in_time(
    pool: ThreadPoolExecutor, roots: list[str], records: list[ImageRecord]
) -> list[str | None]:
    """Why each image can't be used, or None; fewer than asked for when the time is over."""
    last = time.monotonic() + SAMPLING_SECONDS
    reasons: list[str | None] = []
    for future in [pool.submit(read_image, roots, record) for record in records]:
        if time.monotonic() > last:
            pool.shutdown(wait=False, cancel_futures=True)
            break
        reasons.append(future.result()[1])
    return reasons


def _kinds(bad: dict[str, str]) -> list[str]:
    """A phrase for each kind of reason, with a count and an example."""
    kinds: dict[str, list[str]] = {}
    for path, reason in bad.items():
        kinds.setdefault(re.sub(r"\d[\d,]*", "#", reason), []).append(path)
    return [f"{bad[min(paths)]}: {len(paths):,} (e.g. {min(paths)!a})" for paths in kinds.values()]
