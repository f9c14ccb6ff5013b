"""Ray for the length of a run: a local one is started, or a cluster joined."""

import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from daal.config import RayConfig
from daal.errors import ClusterError
from pipelines.console import errors, show
from pipelines.knock import knock
from pipelines.resources import Resources
from pipelines.wait_for_nodes import place_in_time

KNOCK_SECONDS = 10.0
LOOK_SECONDS, LOST_SECONDS = 3.0, 40.0  # whether the cluster is there; until it is given up


@contextmanager
def ray_session(
    config: RayConfig, verbose: bool = False, common_batch: int = 0
) -> Iterator[Resources]:
    """Ray for the length of a run: RAY_ADDRESS's cluster if set, a local one otherwise.

    A local Ray listens on loopback only and asks for a token, unless RAY_AUTH_MODE says
    otherwise; it gets as many logical CPUs as the run needs, however few cores there are.
    The run's workers share batches that `common_batch` divides (`pipelines.resources.plan`).

    Raises:
        ClusterError: the cluster can't be reached, refuses the token or is too small.
    """
    ours = not ray.is_initialized()
    if ours:
        _start_or_join(config, verbose)
    if not verbose:
        silence_ray_data()
    if not ours:
        yield place_in_time(config, common_batch)
        return
    _end_on_sigterm()
    over = threading.Event()
    threading.Thread(target=_watch_cluster, args=(over,), daemon=True).start()
    try:
        yield place_in_time(config, common_batch)
    finally:
        over.set()
        ray.shutdown()


def silence_ray_data() -> None:
    """It reports every execution on the driver's console, through loggers of its own."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _start_or_join(config: RayConfig, verbose: bool) -> None:
    quiet = logging.INFO if verbose else logging.ERROR
    address = os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"logging_level": quiet, "log_to_driver": verbose}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            if address:
                knock(address, KNOCK_SECONDS)
                ray.init(address=address, **common)
            else:
                ensure_private_token()
                cpus = max(os.cpu_count() or 1, int(config.cpus_needed))
                with nullcontext() if verbose else _without_its_first_line():
                    ray.init(
                        address="local", num_cpus=cpus, dashboard_host="127.0.0.1",
                        include_dashboard=True, **common,
                    )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        raise ClusterError(
            f"{where} can't be used: {error} (RAY_ADDRESS, RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH "
            "say where it is and how to log in)."
        ) from error


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

    Ray 2.60 would write it with the umask's mode, so that others could read it for a while.
    """
    mode, token = (os.environ.get(f"RAY_AUTH_{name}", "") for name in ("MODE", "TOKEN"))
    if mode.lower() != "token" or token:
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.is_file():
            path.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
