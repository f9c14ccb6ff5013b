"""Installed packages against the ranges in this project's metadata."""

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from daal import DISTRIBUTION
from daal.errors import ConfigError
from pipelines.doctor.check import Check, missing, ok, warning

RUN_EXTRAS = ("", "gpu", "faiss", "export", "mlflow", "wandb")  # "": needed by every run


def version_of(name: str) -> str | None:
    """The installed version of a distribution; None if it isn't installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_packages() -> Iterator[Check]:
    """Python, then the packages of each extra that has any installed."""
    if version_of(DISTRIBUTION) is None:
        yield ok("Python", platform.python_version())
        found = f"{DISTRIBUTION} is not installed as a package"
        yield warning("packages", found, "pip install it to have versions compared")
        return
    yield check_python(metadata.metadata(DISTRIBUTION)["Requires-Python"])
    wanted = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    for extra in RUN_EXTRAS:
        chosen = [each for each in wanted if _is_of(each, extra)]
        versions = {each: version_of(each.name) for each in chosen}
        if not extra or any(versions.values()):
            yield check_versions(extra, versions)


def check_python(wanted: str) -> Check:
    version = platform.python_version()
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return ok("Python", f"{version} ({wanted})")
    return missing("Python", version, f"install Python {wanted}", ConfigError)


def check_versions(extra: str, versions: dict[Requirement, str | None]) -> Check:
    """versions: what is installed of each requirement, None: nothing."""
    package = f"{DISTRIBUTION}[{extra}]" if extra else DISTRIBUTION
    wrong = {
        f"{each.name}{each.specifier}": version or "not installed"
        for each, version in versions.items()
        if version is None or not each.specifier.contains(version, prereleases=True)
    }
    name = f"packages of {package}"
    if not wrong:
        return ok(name, f"{len(versions)}, each in its range")
    found = ", ".join(f"{each} ({version})" for each, version in wrong.items())
    if extra:
        return missing(name, found, f"pip install '{package}' if you need it")
    return missing(name, found, "pip install " + " ".join(f"'{each}'" for each in wrong),
                   ConfigError)  # fmt: skip


def _is_of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    if not extra:
        return marker is None or marker.evaluate({"extra": ""})
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate()
