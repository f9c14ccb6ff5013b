"""The checks of `daal doctor`, in the order in which a run needs the things."""

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from packaging.requirements import Requirement

from daal import DISTRIBUTION
from daal.config import Config, family_and_name
from daal.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DaalError,
    StorageError,
)
from pipelines.doctor.probes import Facts, ask_all
from pipelines.run.folder import RunFolder
from pipelines.workers.cluster_address import is_own_ray

LITTLE_DISK, NO_DISK = 5e9, 1e8
EXTRAS = ("export", "mlflow", "wandb")  # those without a check of their own


@dataclass(frozen=True)
class Check:
    """One line. exit_code: what a run would end with because of this; 0: a run can start."""

    name: str
    status: Literal["ok", "warning", "missing"]
    found: str
    remedy: str = ""
    exit_code: int = 0


def _ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def _warning(name: str, found: str, remedy: str) -> Check:
    return Check(name, "warning", found, remedy)


def _missing(name: str, found: str, remedy: str, error: type[DaalError] | None = None) -> Check:
    return Check(name, "missing", found, remedy, error.exit_code if error else 0)


def examine(config: Config, write_out: bool, tell: Callable[[str], None]) -> list[Check]:
    """All checks, in seconds; in up to 90 with large packages on a cold disk, or a cluster.

    write_out: try the run folder with a small file. `tell` is told what takes long.
    """
    questions: dict[str, tuple[str, ...]] = {
        "torch": ("torch", config.network.backbone, config.network.weights),
        "Ray": ("import", "ray"),
        "cuML": ("import", "cuml", "cupy"),
        "faiss": ("import", "faiss"),
        "timm": ("import", "timm"),
    }
    answers: dict[str, Facts] = {}
    if not is_own_ray():
        questions["Ray cluster"] = ("cluster", config.ray.model_dump_json())
    try:
        RunFolder(config.out, create=False)
        questions["run folder"] = ("storage", config.out, "write" if write_out else "look")
    except ConfigError as error:  # such as a login in it, which no other process may see
        answers["run folder"] = {"refused": str(error), "exit_code": error.exit_code}
    answers |= ask_all(questions, tell)
    needs_cuml = config.cluster.backend == "cuml"
    needs_faiss = config.cluster.search == "approximate"
    needs_timm = family_and_name(config.network.backbone)[0] == "timm"
    return [
        *check_packages(),
        check_import("torch", answers["torch"], "install torch again", needed=True),
        *check_gpus(answers["torch"], nvidia_smi(), config),
        check_import("cuML", answers["cuML"], _if_needed("gpu"), needs_cuml),
        check_import("faiss", answers["faiss"], _if_needed("faiss"), needs_faiss),
        check_import("timm", answers["timm"], _if_needed("timm"), needs_timm),
        check_import("Ray", answers["Ray"], "install ray again", needed=True),
        check_cluster(answers.get("Ray cluster")),
        *check_storage(config.out, answers["run folder"]),
        *check_weights(config.network.weights_file, answers["torch"].get("weights")),
    ]


def _if_needed(extra: str) -> str:
    return f"pip install '{DISTRIBUTION}[{extra}]' if you need it"


def check_packages() -> Iterator[Check]:
    """Python, what every run needs, and what only extras add."""
    yield _ok("Python", platform.python_version())
    name, needed = f"packages of {DISTRIBUTION}", requirements()
    if wrong := out_of_range(needed):
        found = ", ".join(f"{each} ({version})" for each, version in wrong.items())
        remedy = "pip install " + " ".join(f"'{each}'" for each in wrong)
        yield _missing(name, found, remedy, ConfigError)
    elif needed:
        yield _ok(name, f"{len(needed)}, each in its range")
    else:
        remedy = f"pip install {DISTRIBUTION} to have versions compared"
        yield _warning(name, "not installed as a package", remedy)
    for extra in EXTRAS:
        if wrong := out_of_range(requirements(extra)):
            yield _missing(f"packages for {extra}", ", ".join(wrong), _if_needed(extra))


def requirements(extra: str = "") -> list[Requirement]:
    """What every run needs, or what the extra adds to that. Empty if daal isn't a package."""
    try:
        found = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        return []
    if extra:
        return [r for r in found if r.marker and r.marker.evaluate({"extra": extra})]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def out_of_range(wanted: list[Requirement]) -> dict[str, str]:
    """By requirement: the installed version that it excludes, or "not installed"."""
    found = {}
    for each in wanted:
        try:
            version = metadata.version(each.name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        if version == "not installed" or not each.specifier.contains(version, prereleases=True):
            found[f"{each.name}{each.specifier}"] = version
    return found


def check_import(name: str, facts: Facts, remedy: str, needed: bool) -> Check:
    """A library: what came of importing it."""
    if "late" in facts:
        again = "ask again when the machine is idle; a package loads faster the second time"
        return _warning(name, f"not imported yet: {facts['late']}", again)
    if "failed" in facts:
        return _missing(name, facts["failed"], remedy, ConfigError if needed else None)
    return _ok(name, facts["version"])


def check_gpus(torch: Facts, driver: list[tuple[str, str]], config: Config) -> Iterator[Check]:
    """GPUs that torch can use, beside those that the driver knows."""
    if "version" not in torch:
        return
    # On a cluster, other machines do the work.
    is_wanted = config.ray.use_gpu is True and is_own_ray()
    error = ClusterError if is_wanted else None
    version = f"driver {driver[0][1]}" if driver else "unknown driver"
    build = f"torch is built for {torch['cuda'] or 'CPUs only'}"
    if number := len(torch["gpus"]):
        found = ", ".join(f"{name} ({size / 2**30:.0f} GiB)" for name, size in torch["gpus"])
        found, least = f"{found}, {version}, {build}", config.ray.least_workers
        if is_wanted and number < least:
            remedy = f"set ray.num_workers={number}"
            yield _missing("GPUs", f"{found}: too few for {least} workers", remedy, error)
        else:
            unused = config.ray.use_gpu is False
            yield _ok("GPUs", f"{found}{': not used (ray.use_gpu=false)' * unused}")
    elif driver:
        remedy = "install a torch built for CUDA"
        if torch["cuda"]:
            remedy = f"update the driver for CUDA {torch['cuda']}, or install another torch"
        found = f"{driver[0][0]} with {version}, which torch can't use; {build}"
        yield _missing("GPUs", found, remedy, error)
    else:
        remedy = "small sets need none; the recipe paper needs one"
        yield _missing("GPUs", "none: everything runs on CPUs", remedy, error)


def nvidia_smi() -> list[tuple[str, str]]:
    """Name and driver version of each GPU that the driver knows; empty if there is no driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(", ") for line in done.stdout.strip().splitlines()]
    return [(name, version) for name, _, version in rows]


def check_cluster(cluster: Facts | None) -> Check:
    """The cluster of RAY_ADDRESS; None: it isn't set."""
    name = "Ray cluster"
    if cluster is None:
        return _ok(name, "RAY_ADDRESS is not set: a run starts a Ray of its own")
    if "resources" in cluster:
        return _ok(name, f"it answers; a run would take {cluster['resources']}")
    if "refused" in cluster:
        return Check(name, "missing", cluster["refused"], "", cluster["exit_code"])
    found = f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: {_why(cluster)}"
    remedy = "check that it runs and can be reached from here, or unset RAY_ADDRESS"
    return _missing(name, found, remedy, ClusterError)


def _why(facts: Facts) -> str:
    return str(facts.get("late") or facts["failed"])


def check_storage(out: str, storage: Facts) -> Iterator[Check]:
    """The run folder and its disk."""
    if "free" in storage:
        found = f"{storage['free'] / 1e9:.1f} GB free in {storage['place']}"
        remedy = "make room, or choose another out="
        if storage["free"] < NO_DISK:
            yield _missing("disk", found, remedy, StorageError)
        elif storage["free"] < LITTLE_DISK:
            yield _warning("disk", found, remedy)
        else:
            yield _ok("disk", found)
    if "refused" in storage:
        yield Check("run folder", "missing", storage["refused"], "", storage["exit_code"])
    elif "written" in storage:
        yield _ok("run folder", f"out={out}: a file was written, read and deleted")
    elif "late" in storage or "failed" in storage:
        remedy = "check the storage, or choose another out="
        yield _missing("run folder", f"out={out}: {_why(storage)}", remedy, StorageError)


def check_weights(given: str | None, kept: str | None) -> Iterator[Check]:
    """given: a file of the user's. kept: where torch keeps the ImageNet weights that are named, if
    it could be asked."""
    path = given or kept
    if path and os.path.isfile(path):
        yield _ok("weights", path)
    elif kept:
        found = f"{path} doesn't exist: the first run downloads it"
        yield _warning("weights", found, "without a network, set network.weights=FILE")
    elif given:
        remedy = "correct network.weights"
        yield _missing("weights", f"{path} doesn't exist", remedy, CheckpointError)


def exit_code(checks: list[Check]) -> int:
    return next((check.exit_code for check in checks if check.exit_code), 0)


def as_dict(checks: list[Check]) -> dict[str, Any]:
    """What `daal doctor --json` prints."""
    code = exit_code(checks)
    return {"can_start": code == 0, "exit_code": code, "checks": [vars(check) for check in checks]}
