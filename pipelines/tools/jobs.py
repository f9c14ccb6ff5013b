"""Runs as jobs of a Ray cluster: Ray's job API with names, and a check of where the token goes.

Each submission of a run is a job of its own, `daal-NAME-1`, `daal-NAME-2`, ... They share the run
folder, so that submitting a name again resumes its run.
"""

import asyncio
import ipaddress
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from daal.config import Config
from daal.errors import ClusterError, ConfigError
from pipelines.workers.code_on_nodes import PACKAGES

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
RECIPE = "run.yaml"
RUN_KEY = "daal_run"  # of a job's metadata


@dataclass(frozen=True)
class Job:
    """One submission of a run."""

    run: str
    submission_id: str
    status: JobStatus
    exit_code: int | None
    message: str
    started: float  # milliseconds since the epoch

    @property
    def is_over(self) -> bool:
        return bool(self.status.is_terminal())


class Jobs:
    """Runs on one cluster. `address` is its dashboard's: http://HOST:8265.

    The token, where the cluster asks for one, comes from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or
    ~/.ray/auth_token with RAY_AUTH_MODE=token. `insecure` lets it travel unencrypted to another
    host.

    Raises:
        ConfigError: it isn't such an address, or the token would be readable on its way there.
        ClusterError: nothing answers there, or it refuses the token.
    """

    def __init__(self, address: str, insecure: bool = False) -> None:
        check_address(address, insecure)
        self.address = address
        # Ray prefers this variable, or else RAY_ADDRESS, to the address it is given, and would send
        # the token to a host that wasn't checked.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        if _is_loopback(host := urlsplit(address).hostname or ""):
            # A proxy of the environment would get the token, and can't reach this machine.
            os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), host]))
        with self._errors():
            self._client = JobSubmissionClient(address)
        for name in ("ray", "ray.dashboard.modules", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they report every upload

    def submit(self, name: str, config: Config, ship_code: bool = False) -> Job:
        """Start the run `name`, or resume it. `ship_code` sends these packages along.

        Raises:
            ConfigError: it can't be a name, or the run is at work already.
        """
        check_name(name)
        earlier = [job for job in self.all() if job.run == name]
        for job in earlier:
            if not job.is_over:
                raise ConfigError(
                    f"the run {name} is at work already ({job.submission_id}, {job.status.value}); "
                    f"daal logs {name} follows it, daal stop {name} ends it."
                )
        numbers = (int(job.submission_id.rpartition("-")[2]) for job in earlier)
        number = 1 + max(numbers, default=0)
        with tempfile.TemporaryDirectory() as folder, self._errors():
            recipe = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            (Path(folder) / RECIPE).write_text(recipe, encoding="utf-8")
            environment: dict[str, Any] = {
                "working_dir": folder,
                "env_vars": {"RAY_TRAIN_ENABLE_STATE_TRACKING": "1"},
            }
            if ship_code:
                here = Path(__file__).parents[2]
                environment["py_modules"] = [str(here / package) for package in PACKAGES]
                environment["excludes"] = ["**/__pycache__/**"]
            submission_id = self._client.submit_job(
                entrypoint=f"python -m daal adapt {RECIPE}",
                submission_id=f"daal-{name}-{number}",
                runtime_env=environment,
                metadata={RUN_KEY: name, "out": config.out},
            )
            return _job(self._client.get_job_info(submission_id))

    def all(self) -> list[Job]:
        """Every submission of a run of this project, oldest first."""
        with self._errors():
            found = self._client.list_jobs()
        ours = [_job(each) for each in found if RUN_KEY in (each.metadata or {})]
        return sorted(ours, key=lambda job: job.started)

    def get(self, name: str) -> Job:
        """The last submission of a run. Raises ConfigError if there is none."""
        check_name(name)
        jobs = self.all()
        for job in reversed(jobs):
            if job.run == name:
                return job
        known = ", ".join(sorted({job.run for job in jobs}))
        raise ConfigError(f"{self.address} knows no run {name}; it has {known or 'none'}.")

    def logs(self, job: Job) -> str:
        with self._errors():
            return str(self._client.get_job_logs(job.submission_id))

    def follow(self, job: Job, write: Callable[[str], Any]) -> Job:
        """Pass the job's log to `write` until it is over; returns the job as it is then."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job.submission_id):
                write(text)

        with self._errors():
            asyncio.run(tail())
            return _job(self._client.get_job_info(job.submission_id))

    def stop(self, job: Job) -> None:
        with self._errors():
            self._client.stop_job(job.submission_id)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (ConnectionError, requests.exceptions.RequestException, ValueError) as error:
            raise ClusterError(
                f"no Ray cluster answers at {self.address}; give the dashboard's address, "
                "--address http://HOST:8265."
            ) from error
        except AuthenticationError as error:
            raise ClusterError(
                f"the cluster at {self.address} refuses the token: set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN_PATH to a file that holds it."
            ) from error
        except RuntimeError as error:
            text = str(error).strip().splitlines()[-1]
            raise ClusterError(f"the cluster at {self.address} says: {text}") from error


def check_address(address: str, insecure: bool = False) -> None:
    """Refuse an address that the token would travel to unencrypted, unless `insecure`."""
    try:
        url = urlsplit(address)
    except ValueError:  # such as http://[::1
        url = urlsplit("")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(
            f"{address} is not a dashboard's address; give one like --address http://HOST:8265."
        )
    if url.scheme == "http" and not insecure and not _is_loopback(url.hostname):
        raise ConfigError(
            f"{address} is another host, and the token would travel there unencrypted: open a "
            f"tunnel (ssh -L 8265:127.0.0.1:8265 {url.hostname}, ray dashboard or kubectl "
            "port-forward) and give --address http://127.0.0.1:8265, or use https://; --insecure "
            "sends it unencrypted, for a network where nobody else listens."
        )


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f'"{name}" can\'t name a run: small letters, digits, dots, dashes and underscores, '
            "at most 63, beginning with a letter or digit."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _job(details: Any) -> Job:
    return Job(
        run=(details.metadata or {}).get(RUN_KEY, ""),
        submission_id=details.submission_id,
        status=details.status,
        exit_code=details.driver_exit_code,
        message=(details.message or "").strip(),
        started=float(details.start_time or 0),
    )
