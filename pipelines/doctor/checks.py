"""The checks of `daal doctor`, in the order in which a run needs the things."""

import os
import platform
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from daal import DISTRIBUTION
from daal.available_cpus import available_cpus
from daal.config import Config
from daal.data.places import is_bucket
from daal.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DaalError,
    DataError,
    StorageError,
)
from pipelines.doctor.packages import out_of_range, requirements
from pipelines.doctor.probes import Facts, ask_all
from pipelines.run.folder import RunFolder
from pipelines.workers.cluster_address import cluster_address, raise_if_silent
from pipelines.workers.ray_token import token_path

ADDRESS_SECONDS = 3.0
LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 4e9, 5e9, 1e8
RAY_DISK_SHARE = 0.95  # Ray spills no more objects to a disk that is fuller
EXTRAS = ("export", "mlflow", "wandb")  # those without a check of their own
ASK_AGAIN = "ask again when the machine is idle; a package loads faster the second time"


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


def _missing(name: str, found: str, remedy: str, error: type[DaalError] | None = None) -> Check:
    return Check(name, "missing", found, remedy, error.exit_code if error else 0)


def _ok_or_warning(name: str, found: str, is_ok: bool, remedy: str) -> Check:
    return _ok(name, found) if is_ok else Check(name, "warning", found, remedy)


def examine(config: Config, write_out: bool, tell: Callable[[str], None]) -> list[Check]:
    """All checks, in seconds; in up to 90 with large packages on a cold disk, or a cluster.

    write_out: try the run folder with a small file. `tell` is told what takes long.
    """
    questions: dict[str, tuple[str, ...]] = {
        "torch": ("torch", config.network.backbone, config.network.weights),
        "ray": ("ray",),
    }
    answers: dict[str, Facts] = {}
    for module in ("cuml", "cupy", "faiss"):
        if find_spec(module) is not None:
            questions[module] = ("import", module)
    address = os.environ.get("RAY_ADDRESS")
    try:
        address = cluster_address()
        if address:
            raise_if_silent(address, ADDRESS_SECONDS)
            questions["cluster"] = ("cluster", config.ray.model_dump_json())
    except ClusterError as error:
        answers["cluster"] = {"refused": str(error)}
    except (OSError, OverflowError) as error:
        why = f"nothing answers there ({getattr(error, 'strerror', None) or error})"
        answers["cluster"] = {"failed": why}
    try:
        RunFolder(config.out, create=False)
        questions["storage"] = ("storage", config.out, "write" if write_out else "look")
    except ConfigError as error:  # such as a login in it, which no other process may see
        answers["storage"] = {"refused": str(error), "exit_code": error.exit_code}
    answers |= ask_all(questions, tell)
    cuml = {name: answers.get(name) for name in ("cuml", "cupy")}
    faiss = {"faiss": answers.get("faiss")}
    return [
        *check_packages(),
        *check_torch(answers["torch"], nvidia_smi(), config, bool(address)),
        check_import("cuML", cuml, config.cluster.backend == "cuml", "daal-reid[gpu]"),
        check_import("faiss", faiss, config.cluster.search == "approximate", "daal-reid[faiss]"),
        *check_ray(answers["ray"]),
        check_cluster(address, answers.get("cluster", {})),
        check_token(address),
        check_cpus(config, bool(address)),
        *check_images(config),
        *check_storage(config.out, answers["storage"]),
        *check_weights(config.network.weights, answers["torch"].get("weights")),
    ]


def check_packages() -> Iterator[Check]:
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
        yield Check(name, "warning", "not installed as a package", remedy)
    for extra in EXTRAS:
        if wrong := out_of_range(requirements(extra)):
            remedy = f"pip install '{DISTRIBUTION}[{extra}]' if you need it"
            yield _missing(f"packages for {extra}", ", ".join(wrong), remedy)


def check_torch(
    torch: Facts, driver: list[tuple[str, str]], config: Config, on_cluster: bool
) -> Iterator[Check]:
    """torch itself, then GPUs: those that it can use against those of the driver."""
    if "failed" in torch:
        late = torch["failed"].startswith("no answer")
        if late and config.ray.use_gpu is not True:
            yield Check("torch", "warning", torch["failed"], ASK_AGAIN)
        elif late:
            yield _missing("torch", torch["failed"], ASK_AGAIN, ClusterError)
        else:
            yield _missing("torch", torch["failed"], "install torch again", ConfigError)
        return
    yield _ok("torch", f"{torch['version']}, built for {torch['cuda'] or 'CPUs only'}")
    if torch["gpus"] and not torch["has_nccl"]:
        yield _missing("NCCL", "not in this torch", "install PyTorch's own build", ConfigError)
    # On a cluster, other machines do the work.
    is_wanted = config.ray.use_gpu is True and not on_cluster
    error = ClusterError if is_wanted else None
    version = f"driver {driver[0][1]}" if driver else "unknown driver"
    if number := len(torch["gpus"]):
        found = ", ".join(f"{name} ({size / 2**30:.0f} GiB)" for name, size in torch["gpus"])
        found, least = f"{found}, {version}", config.ray.least_workers
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
        found = f"{driver[0][0]} with {version}, which torch can't use"
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


def check_import(name: str, found: dict[str, Facts | None], wanted: bool, package: str) -> Check:
    """An optional library: by module, what came of importing it; None: not installed."""
    remedy = f"pip install '{package}' if you need it"
    error = ConfigError if wanted else None
    if absent := [module for module, facts in found.items() if facts is None]:
        return _missing(name, f"{' and '.join(absent)} not installed", remedy, error)
    failed = {m: facts["failed"] for m, facts in found.items() if facts and "failed" in facts}
    said = "; ".join(f"{module}: {reason}" for module, reason in failed.items())
    if failed and all(reason.startswith("no answer") for reason in failed.values()):
        return Check(name, "warning", f"not imported yet ({said})", ASK_AGAIN)
    if failed:
        return _missing(name, f"can't be imported ({said})", remedy, error)
    return _ok(name, ", ".join(f"{m} {facts['version']}" for m, facts in found.items() if facts))


def check_ray(ray: Facts) -> Iterator[Check]:
    """Ray, and the memory that it sees on this machine or in its container."""
    if "failed" in ray:
        yield _missing("Ray", ray["failed"], "install ray again", ConfigError)
        return
    yield _ok("Ray", ray["version"])
    found = f"{ray['total'] / 1e9:.1f} GB, {ray['free'] / 1e9:.1f} GB of them free"
    remedy = "stop other programs; daal size says what a run needs"
    yield _ok_or_warning("memory", found, ray["free"] >= LITTLE_MEMORY, remedy)
    store = ray["store"] / 1e9
    found = f"{ray['shm'] / 1e9:.1f} GB free for Ray's object store of {store:.1f} GB"
    remedy = f"start a container with --shm-size={store:.0f}gb: the rest will be on the disk"
    yield _ok_or_warning("shared memory", found, ray["shm"] >= ray["store"], remedy)


def check_cluster(address: str | None, cluster: Facts) -> Check:
    name = "Ray cluster"
    if not address:
        return _ok(name, "RAY_ADDRESS is not set: a run starts a Ray of its own")
    if "resources" in cluster:
        return _ok(name, f"{address} answers; a run would take {cluster['resources']}")
    if "refused" in cluster:
        return _missing(name, cluster["refused"], "", ClusterError)
    remedy = "check that it runs and can be reached from here, or unset RAY_ADDRESS"
    return _missing(name, f"RAY_ADDRESS={address}: {cluster['failed']}", remedy, ClusterError)


def check_token(address: str | None) -> Check:
    """Ray's token: whether there is one that only its owner may read. Never what it is."""
    name, path, mode = "Ray token", token_path(), os.environ.get("RAY_AUTH_MODE", "disabled")
    if mode.lower() != "token":
        remedy = "set RAY_AUTH_MODE=token, unless only you can reach its ports"
        return Check(name, "warning", f"RAY_AUTH_MODE={mode}: Ray asks for none", remedy)
    if os.environ.get("RAY_AUTH_TOKEN"):
        return _ok(name, "in RAY_AUTH_TOKEN")
    try:
        permissions = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        if not address:
            return _ok(name, f"none yet; the first run makes {path}, or uses a token of its own")
        remedy = "copy the cluster's token there (chmod 600), or set RAY_AUTH_TOKEN_PATH"
        return _missing(name, f"{path} doesn't exist", remedy, ClusterError)
    found = f"{path}, permissions {permissions:o}"
    return _ok_or_warning(name, found, not permissions & 0o077, f"chmod 600 {path}")


def check_cpus(config: Config, on_cluster: bool) -> Check:
    here, wanted = available_cpus(), config.ray.cpus_needed
    if here >= wanted or on_cluster:
        return _ok("CPUs", str(here))
    remedy = "a run works all the same; ray.num_workers=1 reserves fewer"
    return Check("CPUs", "warning", f"{here}, shared by the {wanted:g} that a run reserves", remedy)


def check_images(config: Config) -> Iterator[Check]:
    """The data sets' folders, where they are given; `daal validate` looks inside."""
    for domain, settings in config.domains():
        if is_bucket(settings.root) or (settings.root and os.access(settings.root, os.R_OK)):
            yield _ok(f"{domain} images", settings.root)
        elif settings.root:
            remedy = f"correct {domain}.root, or mount its disk"
            yield _missing(f"{domain} images", f"{settings.root} can't be read", remedy, DataError)


def check_storage(out: str, storage: Facts) -> Iterator[Check]:
    """The run folder and its disk."""
    if "free" in storage:
        used = 1 - storage["free"] / storage["size"] if storage["size"] else 1.0
        found = f"{storage['free'] / 1e9:.1f} GB free in {storage['place']} ({used:.0%} used)"
        if storage["free"] < NO_DISK:
            yield _missing("disk", found, "make room, or choose another out=", StorageError)
        else:
            has_room = storage["free"] >= LITTLE_DISK and used <= RAY_DISK_SHARE
            remedy = "make room: checkpoints are kept, and Ray spills no objects beyond 95 %"
            yield _ok_or_warning("disk", found, has_room, remedy)
    if "refused" in storage:
        yield Check("run folder", "missing", storage["refused"], "", storage["exit_code"])
    elif "failed" in storage:
        remedy = "check the storage, or choose another out="
        yield _missing("run folder", f"out={out}: {storage['failed']}", remedy, StorageError)
    elif "written" in storage:
        yield _ok("run folder", f"out={out}: a file was written, read and deleted")


def check_weights(weights: str, file: str | None) -> Iterator[Check]:
    """file: where torchvision keeps ImageNet weights; None: `weights` is a file or "none"."""
    path = file or weights
    if os.path.isfile(path):
        yield _ok("weights", path)
    elif file:
        remedy = "without a network, set network.weights=FILE"
        found = f"{path} doesn't exist: the first run downloads it"
        yield Check("weights", "warning", found, remedy)
    elif weights != "none":
        remedy = "correct network.weights"
        yield _missing("weights", f"{path} doesn't exist", remedy, CheckpointError)


def exit_code(checks: list[Check]) -> int:
    return next((check.exit_code for check in checks if check.exit_code), 0)


def as_dict(checks: list[Check]) -> dict[str, Any]:
    """What `daal doctor --json` prints."""
    code = exit_code(checks)
    return {"can_start": code == 0, "exit_code": code, "checks": [vars(check) for check in checks]}
