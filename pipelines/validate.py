"""Everything that can be wrong before a worker is started; writes nothing."""

from dataclasses import dataclass
from pathlib import Path

from daal.checkpoint import load_backbone_weights
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
        if not settings.root:
            raise DataError(
                f"{domain}.root is not set: give the data set's folder, {domain}.root=DIR."
            )
        records = load_records(settings.layout, Path(settings.root))
        counts[domain] = {
            split: sum(record.split == split for record in records)
            for split in ("train", "query", "gallery")
        }
        if settings.published_counts and (odd := check_counts(settings.layout, records)):
            more = f" ({len(odd)} counts differ)" if len(odd) > 1 else ""
            warnings.append(f"{domain}: {odd[0]}{more}")
        warnings += _first_image(domain, Path(settings.root), records)
    if config.network.weights not in ("imagenet", "none"):
        load_backbone_weights(Path(config.network.weights))
    return Findings(counts, warnings)


def _first_image(domain: str, root: Path, records: list[ImageRecord]) -> list[str]:
    reason = check((root / records[0].path).read_bytes())
    return [f"{domain}: {records[0].path}: {reason}"] if reason else []
