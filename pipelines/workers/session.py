"""Ray for the length of a run: a local one is started, or a cluster joined."""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, nullcontext
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
from pipelines.workers.cluster_address import cluster_address, raise_if_silent
from pipelines.workers.code_on_nodes import PACKAGES, check_code_on_nodes, code_found
from pipelines.workers.own_ray import start_own_ray
from pipelines.workers.ray_environment import set_for_session
from pipelines.workers.ray_token import ensure_private_token, token_path, token_refused
from pipelines.workers.resources import Resources
from pipelines.workers.wait_for_nodes import place_in_time

ANSWER_SECONDS = 10.0  # that a cluster has to answer
LOOK_SECONDS, LOST_SECONDS = 3.0, 40.0  # between looks at the cluster; until it counts as lost


@contextmanager
def ray_session(
    config: RayConfig, verbose: bool = False, common_batch: int = 0
) -> Iterator[Resources]:
    """Ray for the length of a run: RAY_ADDRESS's cluster if set, a local one otherwise.

    A local Ray listens on loopback only and asks for a token, unless RAY_AUTH_MODE says
    otherwise. It gets as many logical CPUs as the run needs, however few cores there are.
    common_batch: see `pipelines.workers.resources.plan`.

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
        resources = place_in_time(config, common_batch)
        if address:
            check_code_on_nodes(code_found(PACKAGES))
        yield resources


def silence_ray_data() -> None:
    """Ray Data would report every execution on the driver's console."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _reports_on_standard_error() -> Iterator[None]:
    """Ray prints what its nodes report, such as a worker that was ended for want of memory, on
    standard output, which is for results. No argument of `ray.init` changes that."""
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
    # Ray puts the current folder first in its workers' sys.path, where another cluster.py may be.
    # From this folder they find the code that runs this command.
    code = Path(__file__).resolve().parents[2]
    if os.environ.get("RAY_AUTH_TOKEN_PATH"):  # Ray's processes are in another folder
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_path().absolute())
    try:
        with warnings.catch_warnings(), chdir(code):
            warnings.simplefilter("ignore", FutureWarning)
            if address:
                if address == "auto":
                    address = canonicalize_bootstrap_address_or_die(address)
                raise_if_silent(address, ANSWER_SECONDS)
                if refused := token_refused(address, ANSWER_SECONDS):
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
    """Ray's error in one line, and what to look at."""
    line = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if "Version mismatch" in line:
        return f"{line}; use the cluster's own environment, or start the cluster from this one"
    return (
        f"{line} (RAY_ADDRESS, RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH say where it is and how to "
        "log in)"
    )


@contextmanager
def _without_its_first_line() -> Iterator[None]:
    """Leaves out what Ray's C++ side writes to file descriptor 2 because its log level is set."""
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
    # Ray's own handler prints stacks and aborts the process three seconds later.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _watch_cluster(over: threading.Event) -> None:
    # Ray's C++ side would end a driver that has lost its cluster for a minute, without a remedy.
    address = ray.get_runtime_context().gcs_address
    lost_since = None
    while not over.wait(LOOK_SECONDS):
        try:
            raise_if_silent(address, ANSWER_SECONDS)
            lost_since = None
        except OSError:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > LOST_SECONDS:
                errors.show_cursor()  # which the live table has hidden
                lost = f"lost the connection to the Ray cluster at {address}"
                show("red", "error", f"{lost}; the same command continues the run on another one.")
                sys.stderr.flush()
                os._exit(ClusterError.exit_code)  # nothing of Ray answers any more
