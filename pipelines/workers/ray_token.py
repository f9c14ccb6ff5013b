"""Ray's token: where it is, that only its owner can read it, and whether a cluster accepts it."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def token_path() -> Path:
    """Where Ray looks for this user's token. Begins with ~ if the user's home isn't known."""
    return Path(os.path.expanduser(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"))


def ensure_private_token() -> None:
    """Make the token that a local Ray asks for, if there is none, readable to this user alone.

    Ray 2.60 would write it with the umask's mode, so that others could read it for a while. Where
    no file can be written (a container without a home), this process and its Ray get a token of
    their own. Raises OSError if RAY_AUTH_TOKEN_PATH can't be written.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = token_path()
    if path.is_file():
        with suppress(PermissionError):  # another user's file that this user was allowed to read
            path.chmod(0o600)
        return
    try:
        if path.parts[0] == "~":
            raise FileNotFoundError("this user has no home folder")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        if path.is_file():  # another run was faster
            return
        if os.environ.get("RAY_AUTH_TOKEN_PATH"):
            raise
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def token_refused(address: str, seconds: float) -> str | None:
    """Why the cluster at HOST:PORT refuses this user; None if it doesn't.

    Ray's own client would ask for 20 seconds and not say which of these it is. The token, which
    Ray sends unencrypted too, is sent only where one is asked for.
    """
    import grpc

    def answer(metadata: list[tuple[str, str]]) -> str:
        # Not through http_proxy, which would be given the token.
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
            try:
                ask(b"", timeout=seconds, metadata=metadata)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    if not address.rpartition(":")[2].isdigit() or answer([]) != "UNAUTHENTICATED":
        return None
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return "it asks for a token, and RAY_AUTH_MODE is not token"
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        path = token_path()
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return f"it asks for a token, and {path} can't be read"
    refused = answer([("authorization", f"Bearer {token}")]) == "UNAUTHENTICATED"
    return "it refuses the token" if refused else None
