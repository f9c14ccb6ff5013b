"""A sample of a data set's images, decoded before a run starts."""

import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from daal.config import Config, DatasetConfig
from daal.data.sources import read_image, roots_of, wheres
from daal.errors import DataError

SAMPLED_IMAGES = 512  # of a domain; a run reads them all
NUM_THREADS = 8  # most of them wait for the disk


def check_sample(
    config: Config, settings: DatasetConfig, records: pa.Table
) -> tuple[int, list[str]]:
    """Decode a seeded sample of the images.

    Returns how many that were, and a warning for each kind of problem. Raises DataError if more
    than `max_bad_share` of all images can't be used, by the sample with a margin of three standard
    deviations.
    """
    order = np.random.default_rng([config.seed, 2]).permutation(len(records))[:SAMPLED_IMAGES]
    sample = records.take(pa.array(order))
    paths, roots = sample["path"].to_pylist(), roots_of(settings)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        reasons = pool.map(lambda where: read_image(roots, where)[1], wheres(sample))
        bad = {path: why for path, why in zip(paths, reasons, strict=True) if why}
    if not bad:
        return len(paths), []
    share = len(bad) / len(paths)
    margin = 3 * math.sqrt(len(bad)) / len(paths) * (1 - len(paths) / len(records))
    kinds = _kinds(bad)
    seen = f"of {len(paths):,} images looked at ({len(records):,} in all)"
    if share <= config.max_bad_share:
        return len(paths), [
            f"{kind} {seen}; left out of the run unless they are repaired." for kind in kinds
        ]
    too_many = (
        f"{len(bad):,} {seen} in {settings.root} can't be used, and no more than max_bad_share="
        f"{config.max_bad_share:g} may be: {'; '.join(kinds)}; repair or remove them, or raise "
        "max_bad_share."
    )
    if share - margin > config.max_bad_share:
        raise DataError(too_many)
    return len(paths), [f"{too_many} If the others are like these, the run will stop."]


def _kinds(bad: dict[str, str]) -> list[str]:
    """A phrase for each kind of reason, with a count and an example."""
    kinds: dict[str, list[str]] = {}
    for path, reason in bad.items():
        kinds.setdefault(re.sub(r"\d[\d,]*", "#", reason), []).append(path)
    return [f"{bad[min(paths)]}: {len(paths):,} (e.g. {min(paths)!a})" for paths in kinds.values()]
