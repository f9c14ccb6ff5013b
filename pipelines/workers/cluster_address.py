"""The Ray cluster that a command joins: what RAY_ADDRESS says, and whether it answers."""

import os
import socket

from daal.errors import ClusterError


def is_own_ray() -> bool:
    """Whether RAY_ADDRESS names no cluster, so that a command starts a Ray of its own."""
    return os.environ.get("RAY_ADDRESS", "").strip() in ("", "local")


def cluster_address() -> str | None:
    """HOST:PORT from RAY_ADDRESS, or auto: the cluster on this machine; None: a Ray of one's own.

    Raises:
        ClusterError: it is an address of another kind.
    """
    if is_own_ray():
        return None
    address = os.environ["RAY_ADDRESS"].strip()
    if address == "auto":
        return address
    if "://" in address:  # Ray Client's, or the dashboard's
        raise ClusterError(
            f"RAY_ADDRESS={address} is no address that a run can join; start the command on a node "
            "of the cluster with RAY_ADDRESS=auto, or send the run there with daal submit "
            "--address http://HOST:8265."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(
            f"RAY_ADDRESS={address} has no port; give HOST:PORT as ray start prints it, usually "
            f"{address.rstrip(':')}:6379, or auto on a node of the cluster."
        )
    return address


def raise_if_silent(address: str, seconds: float) -> None:
    """Raises OSError (or OverflowError) if nothing answers at HOST:PORT; auto isn't asked.

    Ray itself would wait for minutes without a word.
    """
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
