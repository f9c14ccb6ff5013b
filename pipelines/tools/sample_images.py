"""A sample of a data set's images, decoded before a run starts."""

import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from daal.config import Config
from daal.data.images import read
from daal.data.records import ImageRecord
from daal.errors import DataError

SAMPLED_IMAGES = 512  # of a domain; a run reads them all
SAMPLING_SECONDS = 10.0
NUM_THREADS = 8  # most of them wait for the disk


def check_sample(config: Config, root: Path, records: list[ImageRecord]) -> tuple[int, list[str]]:
    """Find all empty files and decode a seeded sample of the others.

    Returns how many images were decoded, and a warning for each kind of problem. Raises DataError
    if more than `max_bad_share` of all images can't be used: for sure, or by the sample with a
    margin of three standard deviations.
    """
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        chunks = [records[at : at + 1000] for at in range(0, len(records), 1000)]
        empty = set().union(*pool.map(lambda some: _empty_files(root, some), chunks))
        full = [record for record in records if record.path not in empty]
        order = np.random.default_rng([config.seed, 2]).permutation(len(full))[:SAMPLED_IMAGES]
        sample = [full[at].path for at in order]
        reasons = _read_in_time(pool, [root / path for path in sample])
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


def _empty_files(root: Path, records: list[ImageRecord]) -> set[str]:
    return {r.path for r in records if _size(root / r.path) == 0}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # reading it gives the reason


def _read_in_time(pool: ThreadPoolExecutor, paths: list[Path]) -> list[str | None]:
    """Why each image can't be used, or None; fewer than asked for when the time is over."""
    last = time.monotonic() + SAMPLING_SECONDS
    reasons: list[str | None] = []
    for future in [pool.submit(read, path) for path in paths]:
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
