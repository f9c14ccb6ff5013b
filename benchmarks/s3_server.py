"""A server of S3 on loopback, by moto: real HTTP, and a log of every request."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from unittest.mock import patch

BUCKET = "bucket"
REQUEST = re.compile(r'"(?:\x1b\[[\d;]*m)*([A-Z]+) /(\S*) HTTP/1\.1(?:\x1b\[[\d;]*m)*" (\d+)')


@dataclass(frozen=True)
class S3Server:
    address: str
    log: Path

    def requests(self, method: str = "GET") -> list[str]:
        """What was asked for with success: `BUCKET/KEY?OPTIONS`, in this order."""
        lines = map(REQUEST.search, self.log.read_text(errors="replace").splitlines())
        return [m[2] for m in lines if m and m[1] == method and m[3].startswith("2")]

    def refuse(self) -> None:
        """From now on nobody may do anything: it knows no access key."""
        self._ask("/moto-api/reset-auth", "POST", b"0")

    def _ask(self, path: str, method: str, data: bytes = b"") -> None:
        connection = HTTPConnection(self.address.removeprefix("http://"))
        connection.request(
            method, path, data, {"Content-Type": "text/plain"}
        )  # moto reads no other
        if (status := connection.getresponse().status) != HTTPStatus.OK:
            raise OSError(f"{method} {path} is answered with {status}")


def program() -> str | None:
    """`make test` puts it beside our own programs; see tests/faults/s3_server.txt."""
    return shutil.which("moto_server", path=f"{sys.prefix}/s3/bin:{os.environ['PATH']}")


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """It has an empty bucket, s3://bucket; the way there is in the environment meanwhile.

    Raises FileNotFoundError if moto isn't installed.
    """
    if (server := program()) is None:
        raise FileNotFoundError("moto_server: pip install -r tests/faults/s3_server.txt")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    with tempfile.NamedTemporaryFile() as log, patch.dict(os.environ, environment):
        process = subprocess.Popen(
            [server, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
        found = S3Server(address, Path(log.name))
        try:
            while not _has_bucket(found):
                if process.poll() is not None:
                    raise RuntimeError(f"moto_server has ended with exit code {process.returncode}")
                time.sleep(0.1)
            yield found
        finally:
            process.kill()
            process.wait()


def _has_bucket(server: S3Server) -> bool:
    with suppress(OSError):
        server._ask(f"/{BUCKET}", "PUT")
        return True
    return False
