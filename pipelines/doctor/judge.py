"""What works on this machine, what doesn't, and what it would take: `daal doctor`.

`pipelines.doctor.machine` gathers the facts, `judge` turns them into lines. A line with an exit
code keeps a run from starting here; the rest is advice.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from daal import DISTRIBUTION
from daal.config import Config
from daal.errors import CheckpointError, ClusterError, ConfigError, DaalError, StorageError
from pipelines.doctor.machine import SHM, gather
from pipelines.doctor.probes import Facts

HAVE_LINES = ("gpu", "faiss")  # optional packages that are imported to see if they work
ASK_AGAIN = "ask again when the machine is idle; what was loaded once loads faster"
LITTLE_MEMORY = 4e9
LITTLE_DISK, NO_DISK = 5e9, 1e8
RAY_DISK_SHARE = 0.95  # used; beyond it Ray spills no more objects
# Of Ray 2.60: its object store's share of free memory, and what it may take without /dev/shm.
STORE_SHARE, STORE_WITHOUT_SHM = 0.3, 1e10


@dataclass(frozen=True)
class Check:
    """A line. `exit_code`: what a run would end with because of it; 0: it would not."""

    name: str
    status: Literal["ok", "warning", "missing"]
    found: str
    remedy: str = ""
    exit_code: int = 0


def examine(config: Config, write_out: bool, tell: Callable[[str], None]) -> list[Check]:
    """All checks, in seconds; with large packages on a cold disk, or a cluster, in 90 at most.

    `write_out` tries the run folder with a small file. `tell` is told what takes long.
    """
    return judge(gather(config, write_out, tell), config)


def exit_code(checks: list[Check]) -> int:
    return next((check.exit_code for check in checks if check.exit_code), 0)


def as_dict(checks: list[Check]) -> dict[str, Any]:
    """What `daal doctor --json` prints."""
    code = exit_code(checks)
    lines = [asdict(check) for check in checks]
    return {"can_start": code == 0, "exit_code": code, "checks": lines}


def judge(facts: Facts, config: Config) -> list[Check]:
    """Lines in the order in which things are needed."""
    return [
        *_packages(facts),
        *_torch(facts, config),
        *_optional(facts, config),
        *_ray(facts),
        *_machine(facts, config),
        *_run_folder(facts, config),
        *_weights(facts),
    ]


def _ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def _warning(name: str, found: str, remedy: str) -> Check:
    return Check(name, "warning", found, remedy)


def _missing(name: str, found: str, remedy: str, error: type[DaalError] | None = None) -> Check:
    """`error`: what a run would end with, if it needs the thing."""
    return Check(name, "missing", found, remedy, error.exit_code if error else 0)


def _packages(facts: Facts) -> Iterator[Check]:
    python, packages = facts["python"], facts["packages"]
    if "failed" in packages:
        yield _ok("Python", python)
        yield _warning("packages", packages["failed"], "pip install it to have versions compared")
        return
    wanted = packages["python"]
    if Requirement(f"python{wanted}").specifier.contains(python, prereleases=True):
        yield _ok("Python", f"{python} ({wanted})")
    else:
        yield _missing("Python", python, f"install Python {wanted}", ConfigError)
    for extra, pairs in packages["groups"].items():
        if extra in HAVE_LINES and all(version is None for _, version in pairs):
            continue
        name = f"{DISTRIBUTION}[{extra}]" if extra else DISTRIBUTION
        wrong = [
            f"{wanted} ({version or 'not installed'})"
            for wanted, version in pairs
            if version is None
            or not Requirement(wanted).specifier.contains(version, prereleases=True)
        ]
        line, found = f"packages of {name}", ", ".join(wrong)
        if not wrong:
            yield _ok(line, f"{len(pairs)}, each in its range")
        elif extra:
            yield _missing(line, found, f"pip install '{name}', where it is wanted")
        else:
            needed = " ".join(f"'{each.rpartition(' (')[0]}'" for each in wrong)
            yield _missing(line, found, f"pip install {needed}", ConfigError)


def _torch(facts: Facts, config: Config) -> Iterator[Check]:
    torch = facts["torch"]
    if _is_late(torch):
        found = f"{torch['failed']}, so nothing is known of GPUs"
        remedy = ASK_AGAIN
        if config.ray.use_gpu is True:
            yield _missing("torch", found, remedy, ClusterError)
        else:
            yield _warning("torch", found, remedy)
        return
    if "failed" in torch:
        yield _missing("torch", torch["failed"], "install torch again", ConfigError)
        return
    build = f"CUDA {torch['cuda']}" if torch["cuda"] else "CPUs only"
    yield _ok("torch", f"{torch['version']}, built for {build}")
    yield _gpus(facts, config)
    name = "NCCL" if torch["gpus"] else "Gloo"  # what the workers talk by
    if found := torch[name.lower()]:
        yield _ok(name, found)
    else:
        yield _missing(name, "not in this torch", "install PyTorch's own build", ConfigError)


def _gpus(facts: Facts, config: Config) -> Check:
    torch, nvidia = facts["torch"], facts["nvidia"]
    works_here = not facts["address"]  # on a cluster, other machines do the work
    error = ClusterError if config.ray.use_gpu is True and works_here else None
    driver = f"driver {nvidia[0]['driver_version']}" if nvidia else "unknown driver"
    if torch["gpus"]:
        each = ", ".join(f"{name} ({size / 2**30:.0f} GiB)" for name, size in torch["gpus"])
        least = config.ray.least_workers
        if len(torch["gpus"]) >= least or not works_here:
            return _ok("GPUs", f"{each}, {driver}")
        if not config.ray.use_gpu:
            return _ok("GPUs", f"{each}, {driver}: not used (ray.use_gpu=false)")
        if error is None:
            return _ok("GPUs", f"{each}, {driver}: fewer than {least} workers, so fewer workers")
        remedy = f"set ray.num_workers={len(torch['gpus'])}"
        return _missing("GPUs", f"{each}, {driver}: too few for {least} workers", remedy, error)
    if nvidia:
        remedy = "install a torch built for CUDA"
        if torch["cuda"]:
            remedy = f"update the driver to one for CUDA {torch['cuda']}, or choose another torch"
        found = f"{nvidia[0]['name']} with {driver}, which torch can't use"
        return _missing("GPUs", found, remedy, error)
    remedy = "none is needed for small sets; the recipe paper needs one"
    return _missing("GPUs", "none: everything runs on CPUs", remedy, error)


def _optional(facts: Facts, config: Config) -> Iterator[Check]:
    cluster = config.cluster
    yield _imported(
        *("cuML", ("cuml", "cupy"), facts, cluster.backend == "cuml"),
        "pip install 'daal-reid[gpu]' on a GPU machine; without it the labels are the same",
    )
    yield _imported(
        *("faiss", ("faiss",), facts, cluster.search == "approximate"),
        "pip install 'daal-reid[faiss]' for cluster.search=approximate",
    )


def _is_late(facts: Facts) -> bool:
    """Nothing is known: the machine is busy, or its disk slow."""
    return str(facts.get("failed")).startswith("no answer")


def _imported(
    name: str, modules: tuple[str, ...], facts: Facts, is_wanted: bool, remedy: str
) -> Check:
    error = ConfigError if is_wanted else None
    if absent := [module for module in modules if facts[module] is None]:
        return _missing(name, f"{' and '.join(absent)} not installed", remedy, error)
    broken = [f"{m}: {facts[m]['failed']}" for m in modules if "failed" in facts[m]]
    if broken and all(_is_late(facts[m]) or "failed" not in facts[m] for m in modules):
        return _warning(name, f"not imported yet ({'; '.join(broken)})", ASK_AGAIN)
    if broken:
        return _missing(name, f"can't be imported ({'; '.join(broken)})", remedy, error)
    return _ok(name, ", ".join(f"{module} {facts[module]['version']}" for module in modules))


def _ray(facts: Facts) -> Iterator[Check]:
    address, cluster = facts["address"], facts["cluster"]
    if facts["ray"] is None:
        return  # told of among the packages
    yield _ok("Ray", facts["ray"])
    yield _token(facts["token"], address)
    if not address:
        yield _ok("Ray cluster", "RAY_ADDRESS is not set: a run starts a Ray of its own")
    elif "resources" in cluster:
        yield _ok("Ray cluster", f"{address} answers; a run would take {cluster['resources']}")
    else:
        reason = str(cluster.get("refused") or cluster["failed"]).rstrip(".")
        found = f"RAY_ADDRESS={address}: {reason}"
        remedy = "check that it runs and can be reached from here, or unset RAY_ADDRESS"
        if "refused" in cluster:
            remedy = ""  # the reason has one
        yield _missing("Ray cluster", found, remedy, ClusterError)


def _token(token: Facts, address: str | None) -> Check:
    name, path, permissions = "Ray token", token["path"], token["permissions"]
    if token["mode"] != "token":
        remedy = "set RAY_AUTH_MODE=token, unless nobody else reaches its ports"
        return _warning(name, f"RAY_AUTH_MODE={token['mode']}: Ray asks for none", remedy)
    if token["in_environment"]:
        return _ok(name, "in RAY_AUTH_TOKEN")
    if permissions is None and address:
        remedy = "copy the cluster's token there (chmod 600), or set RAY_AUTH_TOKEN_PATH"
        return _missing(name, f"{path} is not there", remedy, ClusterError)
    if permissions is None and not token["can_be_made"] and token["is_asked_for"]:
        remedy = "set RAY_AUTH_TOKEN_PATH to a file that can be written, or unset it"
        return _missing(name, f"{path} can't be written", remedy, ClusterError)
    if permissions is None and not token["can_be_made"]:
        return _ok(name, f"{path} can't be written; each run's own Ray has a token of its own")
    if permissions is None:
        return _ok(name, f"none yet; the first run makes {path}")
    if permissions & 0o077:
        return _warning(name, f"others may read {path} ({permissions:o})", f"chmod 600 {path}")
    return _ok(name, f"{path}, which only its owner may read")


def _machine(facts: Facts, config: Config) -> Iterator[Check]:
    wanted = config.ray.cpus_needed
    if facts["cpus"] < wanted and not facts["address"]:
        found = f"{facts['cpus']}, shared by the {wanted:g} that a run reserves"
        yield _warning("CPUs", found, "a run works all the same; ray.num_workers=1 reserves fewer")
    else:
        yield _ok("CPUs", str(facts["cpus"]))

    if folder := facts["compiled"]["folder"]:
        yield _ok("compiled code", f"kept in {folder}")
    else:
        remedy = "set NUMBA_CACHE_DIR to a folder that can be written"
        found = "no folder to keep it in can be written: each process compiles again"
        yield _warning("compiled code", found, remedy)

    free = facts["memory"]["free"]
    found = f"{facts['memory']['total'] / 1e9:.1f} GB, {free / 1e9:.1f} GB of them free"
    if free < LITTLE_MEMORY:
        yield _warning("memory", found, "stop other programs; daal size says what a run needs")
    else:
        yield _ok("memory", found)

    store = min(STORE_SHARE * free, max(STORE_WITHOUT_SHM, 0.95 * facts["shm"]))
    found = f"{facts['shm'] / 1e9:.1f} GB free for Ray's object store of {store / 1e9:.1f} GB"
    if facts["shm"] < store:
        remedy = f"in a container, start it with --shm-size={store / 1e9:.0f}gb or --ipc=host"
        yield _warning(SHM, f"{found}, which will lie on the disk instead", remedy)
    else:
        yield _ok(SHM, found)


def _run_folder(facts: Facts, config: Config) -> Iterator[Check]:
    storage, name = facts["storage"], "run folder"
    out = "out=..." if urlsplit(config.out).username else f"out={config.out}"
    if "unusable" in storage:
        remedy = "give a path, s3:// or gs://, and leave logins to the environment"
        yield _missing(name, f"{out}: {storage['unusable']}", remedy, ConfigError)
        return
    if "free" in storage:
        used = 1 - storage["free"] / storage["size"] if storage["size"] else 1.0
        found = f"{storage['free'] / 1e9:.1f} GB free in {storage['place']} ({used:.0%} used)"
        if storage["free"] < NO_DISK:
            yield _missing("disk", found, "make room, or choose another out=", StorageError)
        elif storage["free"] < LITTLE_DISK or used > RAY_DISK_SHARE:
            remedy = "make room: checkpoints are kept, and Ray spills no objects beyond 95 %"
            yield _warning("disk", found, remedy)
        else:
            yield _ok("disk", found)
    if "failed" in storage:
        remedy = "check the storage, its credentials and permissions, or choose another out="
        yield _missing(name, f"{out}: {storage['failed']}", remedy, StorageError)
    elif storage.get("written"):
        yield _ok(name, f"{out}: a file was written, renamed, read and deleted")


def _weights(facts: Facts) -> Iterator[Check]:
    weights = facts["weights"]
    if weights is None:
        return
    if weights["is_there"]:
        yield _ok("weights", weights["path"])
    elif weights["download"]:
        found = f"{weights['path']} is not there: the first run downloads it"
        yield _warning("weights", found, "without a network, set network.weights=FILE")
    else:
        remedy = "correct network.weights"
        yield _missing("weights", f"{weights['path']} is not there", remedy, CheckpointError)
