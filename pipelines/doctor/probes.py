"""What `daal doctor` asks of the machine, each in a process of its own.

A broken driver or a library of another CUDA may crash the process that imports it, and a storage
that doesn't answer would be waited for: so a question has a process, and the process a deadline.

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
from contextlib import suppress
from pathlib import Path
from typing import Any

from daal.errors import first_line
from pipelines.workers.cluster_address import knock

SECONDS = 12.0  # that a question may take
# To import a large package. cuML alone takes 6 to 11 s, and more from a cold disk.
IMPORT_SECONDS = 90.0
CLUSTER_SECONDS = 60.0  # to join a cluster whose port answers: imports, Ray, a task on each node

KNOCK_SECONDS = 3.0

Facts = dict[str, Any]  # with "failed" and a reason, if there is no answer


# ---- In the process that asks -----------------------------------------------------------


def ask(name: str, *arguments: str, seconds: float | None = None) -> Facts:
    """A probe's answer, whatever becomes of it."""
    limits = {"cluster": CLUSTER_SECONDS, "torch": IMPORT_SECONDS, "import": IMPORT_SECONDS}
    limit = seconds or limits.get(name, SECONDS)
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: not what lies in the current folder under a module's name.
    command = [sys.executable, "-P", "-m", "pipelines.doctor.probes", name, *arguments]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()  # and not waited for: a process that hangs in a disk's driver stays
        return {"failed": f"no answer within {limit:g} s"}
    try:
        answer = json.loads(out.splitlines()[-1])
        assert isinstance(answer, dict)
    except (ValueError, IndexError, AssertionError):
        how = f"signal {-process.returncode}" if process.returncode < 0 else "no answer"
        last = err.strip().splitlines()[-1:] or ["nothing said"]
        return {"failed": f"it crashed ({how}: {last[0][:200]})"}
    return answer


def silence_of(address: str) -> str | None:
    """Why nothing answers at HOST:PORT."""
    try:
        knock(address, KNOCK_SECONDS)
    except (OSError, OverflowError) as error:
        return f"nothing answers there ({getattr(error, 'strerror', None) or error})"
    return None


def nvidia_smi() -> list[dict[str, str]]:
    """The driver's own list of GPUs: name, memory (MiB), driver; empty if it tells of none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    names = ("name", "memory.total", "driver_version")
    command = [program, f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split(", ") for line in done.stdout.strip().splitlines()]
    return [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]


# ---- In a process of their own ----------------------------------------------------------


def torch_facts() -> Facts:
    """torch's build, the GPUs that it can use, and its collectives."""
    import torch
    import torch.distributed as dist

    is_available = torch.cuda.is_available()
    # Those that an old driver can't use are counted, but asking for them raises.
    usable = range(torch.cuda.device_count()) if is_available else ()
    devices = [torch.cuda.get_device_properties(i) for i in usable]
    has_nccl = dist.is_available() and dist.is_nccl_available()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [[each.name, each.total_memory] for each in devices],
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
        "gloo": "in torch" if dist.is_available() and dist.is_gloo_available() else None,
    }


def import_facts(module: str) -> Facts:
    """Whether a package can really be imported."""
    return {"version": str(getattr(importlib.import_module(module), "__version__", "?"))}


def cluster_facts(ray_config: str) -> Facts:
    """Join RAY_ADDRESS's cluster and see whether a run fits. "refused": what it would say."""
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
    """A run folder's place: room, and (`wanted`: "write") whether files can be made there.

    "unusable": no file system can be made of it. "failed": it can't be written.
    """
    import pyarrow as pa
    from pyarrow import fs

    from pipelines.run.folder import filesystem_of

    try:
        filesystem, base = filesystem_of(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        return {"unusable": first_line(error)}
    facts: Facts = {}
    made: list[Path] = []
    if isinstance(filesystem, fs.LocalFileSystem):
        place = Path(base)
        while not place.exists():
            made.append(place)
            place = place.parent
        usage = shutil.disk_usage(place)
        facts = {"place": str(place), "free": usage.free, "size": usage.total}
    if wanted == "write":
        try:
            if made:
                Path(base).mkdir(parents=True)
            _try_out(filesystem, f"{base}/.daal-doctor-{uuid.uuid4().hex}")
            facts["written"] = True
        except (pa.ArrowException, OSError) as error:
            facts["failed"] = first_line(error)
        finally:
            with suppress(OSError):
                for folder in made:  # the deepest first
                    folder.rmdir()
    return facts


def _try_out(filesystem: Any, name: str) -> None:
    """All that a run folder does to a file."""
    data = os.urandom(1 << 16)
    try:
        with filesystem.open_output_stream(name) as stream:
            stream.write(data)
        filesystem.move(name, f"{name}.renamed")
        with filesystem.open_input_stream(f"{name}.renamed") as stream:
            if stream.read() != data:
                raise OSError("it gives back other bytes than were written")
        filesystem.delete_file(f"{name}.renamed")
    except Exception:
        for left in (name, f"{name}.renamed"):
            with suppress(Exception):
                filesystem.delete_file(left)
        raise


PROBES: dict[str, Callable[..., Facts]] = {
    "torch": torch_facts,
    "import": import_facts,
    "cluster": cluster_facts,
    "storage": storage_facts,
}


def main(name: str, *arguments: str) -> None:
    try:
        answer = PROBES[name](*arguments)
    except Exception as error:  # whatever a broken installation raises
        answer = {"failed": f"{type(error).__name__}: {first_line(error)}"[:300]}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
