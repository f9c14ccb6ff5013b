"""Whether anybody listens at an address: Ray itself would ask for minutes, without a word."""

import socket


def knock(address: str, seconds: float) -> None:
    """Raises OSError (or OverflowError) if nothing answers at HOST:PORT; others aren't asked."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
