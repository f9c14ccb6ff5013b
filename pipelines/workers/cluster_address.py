"""The Ray cluster that a command joins: what RAY_ADDRESS says, and whether it answers.

Ray itself asks for minutes without a word where nothing answers, and for 20 seconds where it is
not let in.
"""

import os
import socket
from pathlib import Path

from daal.errors import ClusterError


def is_own_ray() -> bool:
    """Whether RAY_ADDRESS names no cluster, so that a command starts a Ray of its own."""
    return os.environ.get("RAY_ADDRESS", "").strip() in ("", "local")


def cluster_address() -> str | None:
    """RAY_ADDRESS: HOST:PORT, or auto for the one on this machine; None: a Ray of one's own.

    Raises:
        ClusterError: it is an address of another kind, which drivers can't join by.
    """
    if is_own_ray():
        return None
    address = os.environ["RAY_ADDRESS"].strip()
    if address == "auto":
        return address
    scheme, found, _ = address.partition("://")
    if found:
        what = {
            "ray": "Ray Client's, which Ray Train can't be run through",
            "http": "the dashboard's",
            "https": "the dashboard's",
        }.get(scheme, "of a kind that a run can't join by")
        raise ClusterError(
            f"RAY_ADDRESS={address} is {what}; start the command on a node of the cluster with "
            "RAY_ADDRESS=auto, or send the run there with daal submit --address http://HOST:8265."
        )
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdigit():
        raise ClusterError(
            f"RAY_ADDRESS={address} has no port; give HOST:PORT as ray start prints it, usually "
            f"{address.rstrip(':')}:6379, or auto on a node of the cluster."
        )
    return address


def knock(address: str, seconds: float) -> None:
    """Raises OSError (or OverflowError) if nothing answers at HOST:PORT; auto isn't asked."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()


def token_refused(address: str, seconds: float) -> str | None:
    """Why the cluster at HOST:PORT would not let this user in, with what to set; None if it would.

    The token, which Ray sends unencrypted too, is sent only where one is asked for.
    """
    import grpc

    def status(metadata: list[tuple[str, str]]) -> str:
        # Not by way of http_proxy: the cluster's own network is meant, and its token.
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
            try:
                ask(b"", timeout=seconds, metadata=metadata)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    if not address.rpartition(":")[2].isdigit() or status([]) != "UNAUTHENTICATED":
        return None  # it asks for none; or it isn't for us to know
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return "it asks for a token, and RAY_AUTH_MODE is not token"
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        path = token_path()
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return f"it asks for a token, and {path} can't be read"
    if status([("authorization", f"Bearer {token}")]) == "UNAUTHENTICATED":
        return "it refuses the token"
    return None


def token_path() -> Path:
    """Where Ray looks for this user's token. It begins with ~ if the user's home isn't known."""
    return Path(os.path.expanduser(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"))
