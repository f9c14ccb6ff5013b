"""Installed packages against the ranges in this project's metadata."""

from importlib import metadata

from packaging.requirements import Requirement

from daal import DISTRIBUTION


def version_of(name: str) -> str | None:
    """The installed version of a distribution; None if it isn't installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements(extra: str = "") -> list[Requirement]:
    """What every run needs, or what the extra adds to that. Empty if daal isn't a package."""
    if version_of(DISTRIBUTION) is None:
        return []
    found = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    if extra:
        return [r for r in found if r.marker and r.marker.evaluate({"extra": extra})]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def out_of_range(wanted: list[Requirement]) -> dict[str, str]:
    """By requirement: the installed version that it excludes, or "not installed"."""
    versions = {each: version_of(each.name) for each in wanted}
    return {
        f"{each.name}{each.specifier}": version or "not installed"
        for each, version in versions.items()
        if version is None or not each.specifier.contains(version, prereleases=True)
    }
