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

from daal.config import IMAGENET_WEIGHTS, RESNETS, RayConfig
from daal.errors import DaalError, StorageError, first_line

# cuML alone takes 6 to 11 s to import, and more from a cold disk. A cluster: imports, Ray, and a
# task on each node.
SECONDS = {"torch": 90.0, "import": 90.0, "cluster": 60.0, "storage": 12.0}
PATIENT_SECONDS = 5.0  # until the user is told what is waited for

# An answer. Without one, {"failed": reason}; {"late": reason} after the deadline; and the error
# that a run would end with as {"refused": text, "exit_code": code}.
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
        return {"late": f"no answer within {SECONDS[name]:g} s"}
    try:
        return dict(json.loads(out.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        how = f"signal {-process.returncode}" if process.returncode < 0 else "no answer"
        last = err.strip().splitlines()[-1:] or ["nothing said"]
        return {"failed": f"it crashed ({how}: {last[0][:200]})"}


def torch_facts(backbone: str, weights: str) -> Facts:
    """torch's build, the GPUs that it can use, and where it keeps ImageNet weights."""
    import torch
    import torchvision

    # torch also counts GPUs that an old driver can't use, and raises when it is asked about them.
    usable = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    devices = [torch.cuda.get_device_properties(number) for number in usable]
    file = None
    if weights in IMAGENET_WEIGHTS and backbone in RESNETS:
        url = torchvision.models.get_model_weights(backbone)[IMAGENET_WEIGHTS[weights]].url
        file = str(Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2])
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [[each.name, each.total_memory] for each in devices],
        "weights": file,
    }


def import_facts(*modules: str) -> Facts:
    """Whether packages can really be imported, and their versions."""
    found = {name: importlib.import_module(name) for name in modules}
    versions = [f"{name} {getattr(found[name], '__version__', '?')}" for name in found]
    return {"version": ", ".join(versions)}


def cluster_facts(ray_config: str) -> Facts:
    """Join the cluster of RAY_ADDRESS and see whether a run fits."""
    from pipelines.workers.session import ray_session

    config = RayConfig.model_validate_json(ray_config).model_copy(update={"wait_minutes": 0.0})
    with ray_session(config) as resources:
        return {"resources": str(resources)}


def storage_facts(uri: str, wanted: str) -> Facts:
    """Room in a run folder's place, and with `wanted` "write" whether files can be made there."""
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
            facts = {"place": str(place), "free": shutil.disk_usage(place).free}
        if wanted == "write":
            name, data = f".daal-doctor-{uuid.uuid4().hex}", os.urandom(1 << 16)
            folder.write(name, data)
            if folder.read(name) != data:
                raise StorageError(f"{uri} returns other bytes than were written; check its disk.")
            folder.delete_file(name)
            facts["written"] = True
        return facts
    finally:
        with suppress(OSError):
            for path in made:  # the deepest first
                path.rmdir()


PROBES: dict[str, Callable[..., Facts]] = {
    "torch": torch_facts,
    "import": import_facts,
    "cluster": cluster_facts,
    "storage": storage_facts,
}


def answer(name: str, *arguments: str) -> Facts:
    try:
        return PROBES[name](*arguments)
    except DaalError as error:
        return {"refused": str(error), "exit_code": error.exit_code}
    except Exception as error:  # a broken installation may raise anything
        return {"failed": f"{type(error).__name__}: {first_line(error)}"[:300]}


if __name__ == "__main__":
    print(json.dumps(answer(*sys.argv[1:])), flush=True)
