"""Ray for the length of a run: a local one is started, or a cluster joined."""

import logging
import os
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray._private import worker as rays
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.exceptions import RayError

from daal.available_cpus import available_cpus
from daal.config import RayConfig
from daal.errors import ClusterError
from pipelines.show.console import errors, show
from pipelines.workers.cluster_address import cluster_address, knock, token_path, token_refused
from pipelines.workers.code_on_nodes import PACKAGES, check_code_on_nodes, code_found
from pipelines.workers.own_ray import start_own_ray
from pipelines.workers.ray_environment import set_for_session
from pipelines.workers.resources import Resources
from pipelines.workers.wait_for_nodes import place_in_time

KNOCK_SECONDS = 10.0
LOOK_SECONDS, LOST_SECONDS = 3.0, 40.0  # whether the cluster is there; until it is given up


@contextmanager
def ray_session(
    config: RayConfig, verbose: bool = False, common_batch: int = 0, start_gpus: bool = True
) -> Iterator[Resources]:
    """Ray for the length of a run: RAY_ADDRESS's cluster if set, a local one otherwise.

    A local Ray listens on loopback only and asks for a token, unless RAY_AUTH_MODE says
    otherwise; it gets as many logical CPUs as the run needs, however few cores there are.
    The run's workers share batches that `common_batch` divides
    (`pipelines.workers.resources.plan`). With ray.use_gpu=auto, an autoscaling cluster is asked
    for GPUs if `start_gpus`.

    Raises:
        ClusterError: the cluster can't be reached, refuses the token, is too small, or has other
            code on a node.
    """
    with ExitStack() as stack:
        stack.enter_context(set_for_session())
        stack.enter_context(_reports_on_standard_error())
        ours = not ray.is_initialized()
        address = cluster_address() if ours else "auto"
        if ours:
            _start_or_join(address, config, verbose)
            stack.callback(ray.shutdown)
            _end_on_sigterm()
            over = threading.Event()
            stack.callback(over.set)
            threading.Thread(target=_watch_cluster, args=(over,), daemon=True).start()
        if not verbose:
            silence_ray_data()
        resources = place_in_time(config, common_batch, start_gpus)
        if address:
            check_code_on_nodes(code_found(PACKAGES))
        yield resources


def silence_ray_data() -> None:
    """It reports every execution on the driver's console, through loggers of its own."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _reports_on_standard_error() -> Iterator[None]:
    """Standard output is for results, and whatever is asked of `ray.init`, Ray prints there what
    its nodes report: a worker that was ended for want of memory, or that many have started."""
    rays_print = rays.print_to_stdstream

    def on_standard_error(data: Any, ignore_prefix: bool) -> None:
        rays_print({**data, "is_err": True}, ignore_prefix)

    rays.print_to_stdstream = on_standard_error
    try:
        yield
    finally:
        rays.print_to_stdstream = rays_print


def _start_or_join(address: str | None, config: RayConfig, verbose: bool) -> None:
    quiet = logging.INFO if verbose else logging.ERROR
    common: dict[str, Any] = {"logging_level": quiet, "log_to_driver": verbose}
    # Ray puts the current folder in front of its workers' sys.path, with whatever cluster.py lies
    # there; from here, they find the code that runs this command.
    code = Path(__file__).resolve().parents[2]
    if os.environ.get("RAY_AUTH_TOKEN_PATH"):  # Ray's processes are in another folder
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_path().absolute())
    try:
        with warnings.catch_warnings(), chdir(code):
            warnings.simplefilter("ignore", FutureWarning)
            if address:
                if address == "auto":
                    address = canonicalize_bootstrap_address_or_die(address)
                knock(address, KNOCK_SECONDS)
                if refused := token_refused(address, KNOCK_SECONDS):
                    raise ClusterError(
                        f"the Ray cluster at {address} can't be used: {refused}; set "
                        "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file that holds the "
                        "cluster's own token."
                    )
                ray.init(address=address, **common)
            else:
                ensure_private_token()
                cpus = max(available_cpus(), int(config.cpus_needed))
                with nullcontext() if verbose else _without_its_first_line():
                    start_own_ray(cpus, **common)
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        raise ClusterError(f"{where} can't be used: {reason(error)}.") from error


def reason(error: Exception) -> str:
    """What Ray says, in one line; of different versions, which they are."""
    text = str(error)
    if "Version mismatch" in text:
        versions = re.findall(r"(?:Ray|Python): (\S+)", text)
        if len(versions) == 4:
            theirs, ours = versions[:2], versions[2:]
            return (
                f"it runs Ray {theirs[0]} on Python {theirs[1]}, and this command Ray {ours[0]} on "
                f"Python {ours[1]}; both must be the same: use the cluster's own environment, or "
                "start the cluster from this one"
            )
    line = " ".join(text.split()).rstrip(".") or type(error).__name__
    return (
        f"{line} (RAY_ADDRESS, RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH say where it is and how to "
        "log in)"
    )


@contextmanager
def _without_its_first_line() -> Iterator[None]:
    """Ray's C++ side says on file descriptor 2 that it will say nothing; all else is passed on."""
    with os.fdopen(os.dup(2), "wb") as terminal, tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal.fileno(), 2)
            kept.seek(0)
            terminal.writelines(line for line in kept if b"RAY_BACKEND_LOG_LEVEL" not in line)


def _end_on_sigterm() -> None:
    # The handler that Ray installs prints stacks, and aborts the process three seconds later.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _watch_cluster(over: threading.Event) -> None:
    # Ray ends a driver that has lost its cluster for a minute, from within and in its own words.
    address = ray.get_runtime_context().gcs_address
    lost_since = None
    while not over.wait(LOOK_SECONDS):
        try:
            knock(address, KNOCK_SECONDS)
            lost_since = None
        except OSError:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > LOST_SECONDS:
                errors.show_cursor()  # which the live table has hidden
                gone = f"the Ray cluster at {address} is gone"
                show("red", "error", f"{gone}; the same command continues the run on another one.")
                sys.stderr.flush()
                os._exit(ClusterError.exit_code)  # nothing of Ray answers any more


def ensure_private_token() -> None:
    """Make the token that a local Ray asks for, if there is none, readable to this user alone.

    Ray 2.60 would write it with the umask's mode, so that others could read it for a while. Where
    no file can be written (a container without a home), this process and its Ray have a token
    of their own, which nobody else is told.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = token_path()
    if path.parts[0] == "~":
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        return
    if path.is_file():
        with suppress(PermissionError):  # another user's, whom we may read by their wish
            path.chmod(0o600)
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        if path.is_file():  # another run was faster
            return
        if os.environ.get("RAY_AUTH_TOKEN_PATH"):
            raise  # it was asked for
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
