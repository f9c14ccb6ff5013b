"""Everything that can be wrong before a worker is started; writes nothing."""

from dataclasses import dataclass
from pathlib import Path

from daal.config import Config
from daal.datasets import check_counts, load_records
from daal.errors import DataError
from daal.images import check
from daal.records import ImageRecord


@dataclass(frozen=True)
class Findings:
    """What a run would read: image counts by split, and warnings as sentences."""

    counts: dict[str, dict[str, int]]
    warnings: list[str]


def validate(config: Config) -> Findings:
    """Look at both data sets and the weights file.

    Raises:
        DaalError: the run could not work; one sentence says why.
    """
    counts: dict[str, dict[str, int]] = {}
    warnings: list[str] = []
    for domain, settings in (("source", config.source), ("target", config.target)):
        if domain == "source" and config.target_only:
            if config.cluster.source_weight:
                raise DataError(
                    "cluster.source_weight above 0 needs a source: give source.root=DIR."
                )
            continue
        if not settings.root:
            raise DataError(
                f"{domain}.root is not set: give the data set's folder, {domain}.root=DIR"
                + (
                    " (or adapt.batch_source=0, to train without a source)."
                    if domain == "source"
                    else "."
                )
            )
        records = load_records(settings.layout, Path(settings.root))
        counts[domain] = {
            split: sum(record.split == split for record in records)
            for split in ("train", "query", "gallery")
        }
        if settings.published_counts:
            odd = check_counts(settings.layout, records)
            warnings += [f"{domain}: {text}" for text in odd]
        warnings += _first_image(domain, Path(settings.root), records)
        if domain == "target" and config.supervised_bound and not _known_pids(records):
            raise DataError(
                "supervised_bound=true needs the target's identities, and its training images have "
                "none; set supervised_bound=false."
            )
    if config.network.weights not in ("imagenet", "none"):
        from daal.network import DaalNetwork

        DaalNetwork(config.network)  # raises if the file doesn't fit
    return Findings(counts, warnings)


def _first_image(domain: str, root: Path, records: list[ImageRecord]) -> list[str]:
    try:
        reason = check((root / records[0].path).read_bytes())
    except OSError as error:
        reason = f"can't be read: {error.strerror}"
    return [f"{domain}: {records[0].path}: {reason}"] if reason else []


def _known_pids(records: list[ImageRecord]) -> bool:
    return any(record.split == "train" and record.pid >= 0 for record in records)
