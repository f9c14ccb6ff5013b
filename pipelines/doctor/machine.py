"""What is installed on this machine, and what it has: the facts that `daal doctor` judges."""

import os
import platform
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from cluster.compiled import compiled_code_folder
from daal import DISTRIBUTION
from daal.available_cpus import available_cpus
from daal.config import IMAGENET_WEIGHTS, Config
from daal.errors import ClusterError
from pipelines.doctor import probes
from pipelines.doctor.probes import Facts
from pipelines.workers.cluster_address import cluster_address, token_path

PATIENT_SECONDS = 5.0  # without a word
SHM = "/dev/shm"  # noqa: S108  looked at, not written
DEVELOPMENT = {"dev", "docs"}  # optional dependencies that no run asks for
IMAGENET = {  # torchvision's files; by asking it, this would take seconds longer
    ("resnet18", "imagenet"): "resnet18-f37072fd.pth",
    ("resnet34", "imagenet"): "resnet34-b627a593.pth",
    ("resnet50", "imagenet"): "resnet50-0676ba61.pth",
    ("resnet50", "imagenet-v2"): "resnet50-11ad3fa6.pth",
}


def gather(config: Config, write_out: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Answers of all probes, which run side by side, and what can be asked right here.

    `tell` is told what is still waited for after PATIENT_SECONDS.
    """
    questions: dict[str, tuple[str, ...]] = {"torch": ("torch",)}
    for module in ("cuml", "cupy", "faiss"):
        if find_spec(module) is not None:
            questions[module] = ("import", module)
    has_login = bool(urlsplit(config.out).username)
    if not has_login:
        questions["storage"] = ("storage", config.out, "write" if write_out else "look")
    try:
        address, closed = cluster_address(), None
    except ClusterError as error:
        address, closed = os.environ["RAY_ADDRESS"], str(error)
    else:
        closed = probes.silence_of(address) if address else None
    if address and not closed:
        questions["cluster"] = ("cluster", config.ray.model_dump_json())
    with ThreadPoolExecutor(len(questions)) as pool:
        answers = {name: pool.submit(probes.ask, *asked) for name, asked in questions.items()}
        nvidia = pool.submit(probes.nvidia_smi)
        _, late = wait(answers.values(), timeout=PATIENT_SECONDS)
        if late:
            names = [name for name, answer in answers.items() if answer in late]
            tell(f"waiting for {', '.join(names)}: large packages load slowly from a cold disk")
        return {
            **dict.fromkeys(("cuml", "cupy", "faiss")),
            "cluster": {"failed": closed} if closed else None,
            "storage": {"unusable": "it has a login in it"},
            **{name: answer.result() for name, answer in answers.items()},
            "nvidia": nvidia.result(),
            "python": platform.python_version(),
            "packages": installed(),
            "address": address,
            "token": token_facts(),
            "ray": version_of("ray"),
            "cpus": available_cpus(),
            "compiled": compiled_code_facts(),
            "memory": _memory(),
            "shm": shutil.disk_usage(SHM).free if os.path.isdir(SHM) else 0,
            "weights": weights_file(config),
        }


def installed() -> Facts:
    """Requirements by the extra that has them ("": every run's), each with what is installed."""
    try:
        wanted = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
        extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
        python = metadata.metadata(DISTRIBUTION)["Requires-Python"]
    except metadata.PackageNotFoundError:
        return {"failed": f"{DISTRIBUTION} is not installed as a package"}
    groups = {
        extra: [
            (str(each), version)
            for requirement in wanted
            if _applies(requirement, extra) and not (extra and _applies(requirement, ""))
            for each, version in _with_its_extras(requirement)
        ]
        for extra in ("", *(extra for extra in extras if extra not in DEVELOPMENT))
    }
    return {"python": python or "", "groups": groups}


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _with_its_extras(requirement: Requirement) -> Iterator[tuple[Requirement, str | None]]:
    """ray[data] is ray, and what ray needs for data."""
    version = version_of(requirement.name)
    requirement.marker = None  # it applies
    yield requirement, version
    for extra in requirement.extras if version else ():
        for text in metadata.requires(requirement.name) or []:
            part = Requirement(text)
            if part.marker and _applies(part, extra) and not _applies(part, ""):
                part.marker = None
                yield part, version_of(part.name)


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def token_facts() -> Facts:
    """Where Ray's token is, never what it is."""
    path = token_path()
    facts: Facts = {
        "mode": os.environ.get("RAY_AUTH_MODE", "disabled").lower(),
        "in_environment": bool(os.environ.get("RAY_AUTH_TOKEN")),
        "path": str(path),
        "permissions": None,
        "is_asked_for": bool(os.environ.get("RAY_AUTH_TOKEN_PATH")),
        "can_be_made": _can_be_made(path),
    }
    with suppress(OSError):
        facts["permissions"] = stat.S_IMODE(path.stat().st_mode)
    return facts


def _can_be_made(path: Path) -> bool:
    if path.parts[0] == "~":  # of a user without a home
        return False
    there = next(parent for parent in path.absolute().parents if parent.exists())
    return os.access(there, os.W_OK | os.X_OK)


def compiled_code_facts() -> Facts:
    """Where the label step's compiled loops are kept; None: compiled again by each process."""
    return {"folder": compiled_code_folder()}


def weights_file(config: Config) -> Facts | None:
    weights = config.network.weights
    if weights == "none":
        return None
    if weights not in IMAGENET_WEIGHTS:
        return {"path": weights, "download": False, "is_there": os.path.isfile(weights)}
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(os.environ.get("TORCH_HOME") or f"{cache}/torch").expanduser()
    path = home / "hub" / "checkpoints" / IMAGENET[config.network.backbone, weights]
    return {"path": str(path), "download": True, "is_there": path.is_file()}


def _memory() -> dict[str, float]:
    """Bytes, of a container's limit if it has one."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = float(page * os.sysconf("SC_PHYS_PAGES"))
    free = float(page * os.sysconf("SC_AVPHYS_PAGES"))
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = 1024 * float(line.split()[1])
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most, now = _text(f"{folder}/{limit}").strip(), _text(f"{folder}/{used}").strip()
        if most.isdigit() and now.isdigit() and int(most) < total:
            total, free = float(most), min(free, float(most) - float(now))
    return {"total": total, "free": max(0.0, free)}


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
