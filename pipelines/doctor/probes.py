"""Questions that `daal doctor` asks in processes of their own, each with a deadline.

A broken driver or library may crash the process that imports it, and storage may never answer.

    python -m pipelines.doctor.probes NAME ARGUMENT...     prints one line of JSON
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from daal.errors import first_line

# cuML alone takes 6 to 11 s to import, and more from a cold disk. A cluster: imports, Ray, and a
# task on each node.
SECONDS = {"torch": 90.0, "import": 90.0, "ray": 90.0, "cluster": 60.0, "storage": 12.0}
PATIENT_SECONDS = 5.0  # until the user is told what is waited for

# An answer; {"failed": reason} if there is none, {"refused": text} for the error that a run would
# end with.
Facts = dict[str, Any]


def ask_all(questions: dict[str, tuple[str, ...]], tell: Callable[[str], None]) -> dict[str, Facts]:
    """The answers, all asked at once. `tell` is told what takes longer than PATIENT_SECONDS."""
    with ThreadPoolExecutor(len(questions)) as pool:
        answers = {name: pool.submit(ask, *asked) for name, asked in questions.items()}
        _, late = wait(answers.values(), timeout=PATIENT_SECONDS)
        if late:
            names = [name for name, answer in answers.items() if answer in late]
            tell(f"waiting for {', '.join(names)}: large packages load slowly from a cold disk")
        return {name: answer.result() for name, answer in answers.items()}


def ask(name: str, *arguments: str) -> Facts:
    """The answer of one probe, whatever happens to its process."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: don't import modules from the current folder.
    command = [sys.executable, "-P", "-m", "pipelines.doctor.probes", name, *arguments]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=SECONDS[name])
    except subprocess.TimeoutExpired:
        process.kill()  # without a wait: a process that hangs in a disk's driver can't be ended
        return {"failed": f"no answer within {SECONDS[name]:g} s"}
    try:
        return dict(json.loads(out.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        how = f"signal {-process.returncode}" if process.returncode < 0 else "no answer"
        last = err.strip().splitlines()[-1:] or ["nothing said"]
        return {"failed": f"it crashed ({how}: {last[0][:200]})"}


def torch_facts(backbone: str, weights: str) -> Facts:
    """torch's build, the GPUs that it can use, and where ImageNet weights are kept."""
    import torch
    import torchvision

    from daal.config import IMAGENET_WEIGHTS

    # torch also counts GPUs that an old driver can't use, and raises when it is asked about them.
    usable = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    devices = [torch.cuda.get_device_properties(i) for i in usable]
    file = None
    if weights in IMAGENET_WEIGHTS:
        url = torchvision.models.get_model_weights(backbone)[IMAGENET_WEIGHTS[weights]].url
        home = os.environ.get("TORCH_HOME") or os.path.join(
            os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch"
        )
        file = str(Path(home).expanduser() / "hub/checkpoints" / url.rpartition("/")[2])
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [[each.name, each.total_memory] for each in devices],
        "has_nccl": torch.distributed.is_available() and torch.distributed.is_nccl_available(),
        "weights": file,
    }


def import_facts(module: str) -> Facts:
    """Whether a package can really be imported."""
    return {"version": str(getattr(importlib.import_module(module), "__version__", "?"))}


def ray_facts() -> Facts:
    """Ray's version and the memory that it sees: of the machine, or of its container."""
    import ray
    from ray._common.utils import get_system_memory
    from ray._private import utils

    free = utils.estimate_available_memory()
    return {
        "version": ray.__version__,
        "total": get_system_memory(),
        "free": free,
        "store": utils.resolve_object_store_memory(free),
        "shm": utils.get_shared_memory_bytes(),
    }


def cluster_facts(ray_config: str) -> Facts:
    """Join the cluster of RAY_ADDRESS and see whether a run fits."""
    from daal.config import RayConfig
    from daal.errors import ClusterError
    from pipelines.workers.session import ray_session

    config = RayConfig.model_validate_json(ray_config).model_copy(update={"wait_minutes": 0.0})
    try:
        with ray_session(config) as resources:
            return {"resources": str(resources)}
    except ClusterError as error:
        return {"refused": str(error)}


def storage_facts(uri: str, wanted: str) -> Facts:
    """Room in a run folder's place, and with `wanted` "write" whether files can be made there."""
    from daal.errors import DaalError, StorageError
    from pipelines.run.folder import RunFolder

    facts: Facts = {}
    made: list[Path] = []
    try:
        folder = RunFolder(uri, create=False)
        if folder.is_local:
            place = Path(folder.base)
            while not place.exists():
                made.append(place)
                place = place.parent
            usage = shutil.disk_usage(place)
            facts = {"place": str(place), "free": usage.free, "size": usage.total}
        if wanted == "write":
            name, data = f".daal-doctor-{uuid.uuid4().hex}", os.urandom(1 << 16)
            folder.write(name, data)
            if folder.read(name) != data:
                raise StorageError(f"{uri} returns other bytes than were written; check its disk.")
            folder.delete_file(name)
            facts["written"] = True
    except DaalError as error:
        facts |= {"refused": str(error), "exit_code": error.exit_code}
    finally:
        with suppress(OSError):
            for path in made:  # the deepest first
                path.rmdir()
    return facts


PROBES: dict[str, Callable[..., Facts]] = {
    "torch": torch_facts,
    "import": import_facts,
    "ray": ray_facts,
    "cluster": cluster_facts,
    "storage": storage_facts,
}


def main(name: str, *arguments: str) -> None:
    try:
        answer = PROBES[name](*arguments)
    except Exception as error:  # a broken installation may raise anything
        answer = {"failed": f"{type(error).__name__}: {first_line(error)}"[:300]}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
