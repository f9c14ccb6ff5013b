"""The checks of `daal doctor`, in the order in which a run needs the things."""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from cluster.blocks import compiled_code_folder
from daal.available_cpus import available_cpus
from daal.config import Config
from daal.errors import CheckpointError, ClusterError, ConfigError, DataError, StorageError
from pipelines.doctor.check import Check, missing, ok, warning
from pipelines.doctor.packages import check_packages
from pipelines.doctor.probes import Facts, ask_all
from pipelines.run.folder import RunFolder
from pipelines.workers.cluster_address import cluster_address, raise_if_silent
from pipelines.workers.ray_token import token_path

ADDRESS_SECONDS = 3.0
LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 4e9, 5e9, 1e8
RAY_DISK_SHARE = 0.95  # Ray spills no more objects to a disk that is fuller
ASK_AGAIN = "ask again when the machine is idle; a package loads faster the second time"


def examine(config: Config, write_out: bool, tell: Callable[[str], None]) -> list[Check]:
    """All checks, in seconds; in up to 90 with large packages on a cold disk, or a cluster.

    write_out: try the run folder with a small file. `tell` is told what takes long.
    """
    address, closed = os.environ.get("RAY_ADDRESS"), None
    try:
        address = cluster_address()
        if address:
            raise_if_silent(address, ADDRESS_SECONDS)
    except ClusterError as error:
        closed = str(error)
    except (OSError, OverflowError) as error:
        closed = f"nothing answers there ({getattr(error, 'strerror', None) or error})"
    questions: dict[str, tuple[str, ...]] = {
        "torch": ("torch", config.network.backbone, config.network.weights),
        "ray": ("ray",),
    }
    for module in ("cuml", "cupy", "faiss"):
        if find_spec(module) is not None:
            questions[module] = ("import", module)
    storage: Facts = {}
    try:
        RunFolder(config.out, create=False)
        questions["storage"] = ("storage", config.out, "write" if write_out else "look")
    except ConfigError as error:  # such as a login in it, which no other process may see
        storage = {"refused": str(error), "exit_code": error.exit_code}
    if address and not closed:
        questions["cluster"] = ("cluster", config.ray.model_dump_json())
    answers = {"cluster": {"failed": closed}, "storage": storage, **ask_all(questions, tell)}
    ray = answers["ray"]
    return [
        *check_packages(),
        *check_torch(answers["torch"], nvidia_smi(), config, bool(address)),
        check_import("cuML", {name: answers.get(name) for name in ("cuml", "cupy")},
                     config.cluster.backend == "cuml", "daal-reid[gpu]"),
        check_import("faiss", {"faiss": answers.get("faiss")},
                     config.cluster.search == "approximate", "daal-reid[faiss]"),
        *check_ray(ray, address, answers["cluster"]),
        check_token(address),
        check_cpus(config, bool(address)),
        check_compiled_code(),
        *([] if "failed" in ray else [check_memory(ray), check_shared_memory(ray)]),
        *check_images(config),
        *check_storage(config.out, answers["storage"]),
        *check_weights(config.network.weights, answers["torch"].get("weights")),
    ]  # fmt: skip


def check_torch(
    torch: Facts, driver: list[tuple[str, str]], config: Config, on_cluster: bool
) -> Iterator[Check]:
    """torch itself, then GPUs: those that it can use against those of the driver."""
    if "failed" in torch:
        late = torch["failed"].startswith("no answer")
        remedy = ASK_AGAIN if late else "install torch again"
        if late and config.ray.use_gpu is not True:
            yield warning("torch", torch["failed"], remedy)
        else:
            kind = ClusterError if late else ConfigError
            yield missing("torch", torch["failed"], remedy, kind)
        return
    yield ok("torch", f"{torch['version']}, built for {torch['cuda'] or 'CPUs only'}")
    if torch["gpus"] and not torch["has_nccl"]:
        yield missing("NCCL", "not in this torch", "install PyTorch's own build", ConfigError)
    # On a cluster, other machines do the work.
    is_wanted = config.ray.use_gpu is True and not on_cluster
    error = ClusterError if is_wanted else None
    version = f"driver {driver[0][1]}" if driver else "unknown driver"
    if number := len(torch["gpus"]):
        found = ", ".join(f"{name} ({size / 2**30:.0f} GiB)" for name, size in torch["gpus"])
        found, least = f"{found}, {version}", config.ray.least_workers
        if is_wanted and number < least:
            remedy = f"set ray.num_workers={number}"
            yield missing("GPUs", f"{found}: too few for {least} workers", remedy, error)
        else:
            unused = config.ray.use_gpu is False
            yield ok("GPUs", f"{found}{': not used (ray.use_gpu=false)' * unused}")
    elif driver:
        remedy = "install a torch built for CUDA"
        if torch["cuda"]:
            remedy = f"update the driver for CUDA {torch['cuda']}, or install another torch"
        yield missing(
            "GPUs", f"{driver[0][0]} with {version}, which torch can't use", remedy, error
        )
    else:
        remedy = "small sets need none; the recipe paper needs one"
        yield missing("GPUs", "none: everything runs on CPUs", remedy, error)


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
        return missing(name, f"{' and '.join(absent)} not installed", remedy, error)
    failed = {m: facts["failed"] for m, facts in found.items() if facts and "failed" in facts}
    said = "; ".join(f"{module}: {reason}" for module, reason in failed.items())
    if failed and all(reason.startswith("no answer") for reason in failed.values()):
        return warning(name, f"not imported yet ({said})", ASK_AGAIN)
    if failed:
        return missing(name, f"can't be imported ({said})", remedy, error)
    return ok(name, ", ".join(f"{m} {facts['version']}" for m, facts in found.items() if facts))


def check_ray(ray: Facts, address: str | None, cluster: Facts) -> Iterator[Check]:
    """cluster: whether a run fits; "refused": a run's own error; "failed": no answer."""
    if "failed" in ray:
        yield missing("Ray", ray["failed"], "install ray again", ConfigError)
    else:
        yield ok("Ray", ray["version"])
    name = "Ray cluster"
    if not address:
        yield ok(name, "RAY_ADDRESS is not set: a run starts a Ray of its own")
    elif "resources" in cluster:
        yield ok(name, f"{address} answers; a run would take {cluster['resources']}")
    elif "refused" in cluster:  # with its remedy
        yield missing(name, cluster["refused"], "", ClusterError)
    else:
        remedy = "check that it runs and can be reached from here, or unset RAY_ADDRESS"
        found = f"RAY_ADDRESS={address}: {cluster['failed'].rstrip('.')}"
        yield missing(name, found, remedy, ClusterError)


def check_token(address: str | None) -> Check:
    """Ray's token: whether there is one that only its owner may read. Never what it is."""
    name, path, mode = "Ray token", token_path(), os.environ.get("RAY_AUTH_MODE", "disabled")
    if mode.lower() != "token":
        remedy = "set RAY_AUTH_MODE=token, unless only you can reach its ports"
        return warning(name, f"RAY_AUTH_MODE={mode}: Ray asks for none", remedy)
    if os.environ.get("RAY_AUTH_TOKEN"):
        return ok(name, "in RAY_AUTH_TOKEN")
    try:
        permissions = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        if not address:
            return ok(name, f"none yet; the first run makes {path}, or uses a token of its own")
        remedy = "copy the cluster's token there (chmod 600), or set RAY_AUTH_TOKEN_PATH"
        return missing(name, f"{path} doesn't exist", remedy, ClusterError)
    if permissions & 0o077:
        return warning(name, f"others may read {path} ({permissions:o})", f"chmod 600 {path}")
    return ok(name, f"{path}, which only its owner may read")


def check_cpus(config: Config, on_cluster: bool) -> Check:
    here, wanted = available_cpus(), config.ray.cpus_needed
    if here >= wanted or on_cluster:
        return ok("CPUs", str(here))
    remedy = "a run works all the same; ray.num_workers=1 reserves fewer"
    return warning("CPUs", f"{here}, shared by the {wanted:g} that a run reserves", remedy)


def check_compiled_code() -> Check:
    """Whether the compiled loops of the label step can be kept."""
    if folder := compiled_code_folder():
        return ok("compiled code", f"kept in {folder}")
    remedy = "set NUMBA_CACHE_DIR to a folder that can be written"
    return warning("compiled code", "no folder can be written: each process compiles again", remedy)


def check_memory(ray: Facts) -> Check:
    found = f"{ray['total'] / 1e9:.1f} GB, {ray['free'] / 1e9:.1f} GB of them free"
    if ray["free"] < LITTLE_MEMORY:
        return warning("memory", found, "stop other programs; daal size says what a run needs")
    return ok("memory", found)


def check_shared_memory(ray: Facts) -> Check:
    name, store = "/dev/shm", ray["store"] / 1e9  # noqa: S108  its name is printed
    found = f"{ray['shm'] / 1e9:.1f} GB free for Ray's object store of {store:.1f} GB"
    if ray["shm"] >= ray["store"]:
        return ok(name, found)
    remedy = f"start a container with --shm-size={store:.0f}gb or --ipc=host"
    return warning(name, f"{found}, which will be on the disk instead", remedy)


def check_images(config: Config) -> Iterator[Check]:
    """The data sets' folders, where they are given; `daal validate` looks inside."""
    for domain, settings in config.domains():
        if settings.root and os.access(settings.root, os.R_OK | os.X_OK):
            yield ok(f"{domain} images", settings.root)
        elif settings.root:
            remedy = f"correct {domain}.root, or mount its disk"
            found = f"{settings.root} can't be read"
            yield missing(f"{domain} images", found, remedy, DataError)


def check_storage(out: str, storage: Facts) -> Iterator[Check]:
    """The run folder and its disk."""
    if "free" in storage:
        used = 1 - storage["free"] / storage["size"] if storage["size"] else 1.0
        found = f"{storage['free'] / 1e9:.1f} GB free in {storage['place']} ({used:.0%} used)"
        if storage["free"] < NO_DISK:
            yield missing("disk", found, "make room, or choose another out=", StorageError)
        elif storage["free"] < LITTLE_DISK or used > RAY_DISK_SHARE:
            remedy = "make room: checkpoints are kept, and Ray spills no objects beyond 95 %"
            yield warning("disk", found, remedy)
        else:
            yield ok("disk", found)
    if "refused" in storage:
        yield Check("run folder", "missing", storage["refused"], "", storage["exit_code"])
    elif "failed" in storage:
        remedy = "check the storage, or choose another out="
        yield missing("run folder", f"out={out}: {storage['failed']}", remedy, StorageError)
    elif "written" in storage:
        yield ok("run folder", f"out={out}: a file was written, read and deleted")


def check_weights(weights: str, file: str | None) -> Iterator[Check]:
    """file: where torchvision keeps ImageNet weights; None: `weights` is a file or "none"."""
    if weights == "none":
        return
    path = file or weights
    if os.path.isfile(path):
        yield ok("weights", path)
    elif file:
        remedy = "without a network, set network.weights=FILE"
        yield warning("weights", f"{path} doesn't exist: the first run downloads it", remedy)
    else:
        yield missing("weights", f"{path} doesn't exist", "correct network.weights",
                      CheckpointError)  # fmt: skip


def exit_code(checks: list[Check]) -> int:
    return next((check.exit_code for check in checks if check.exit_code), 0)


def as_dict(checks: list[Check]) -> dict[str, Any]:
    """What `daal doctor --json` prints."""
    code = exit_code(checks)
    return {"can_start": code == 0, "exit_code": code, "checks": [vars(check) for check in checks]}
