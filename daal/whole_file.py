"""A file that a command was asked to write: the whole of it, or what was there before."""

import os
from pathlib import Path

from daal.errors import ConfigError, StorageError


def check_file_to_write(out: Path) -> None:
    """Call before the expensive work. Raises ConfigError if `out` can't be a file."""
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it first.")
    if out.is_dir():
        raise ConfigError(f"--out {out}: that is a folder; name a file in it.")


def write_whole(out: Path, data: bytes) -> None:
    """Write aside and rename. Raises StorageError, and leaves what was there."""
    try:
        if out.exists() and not out.is_file():  # /dev/null and its like must not be replaced
            out.write_bytes(data)
            return
        out = out.resolve()  # a link stays a link, and what it leads to is replaced
        aside = out.with_name(f"{out.name}.{os.getpid()}.partial")
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, out)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{out} can't be written ({error.strerror or error}; {len(data):,} bytes); make room "
            "or check the permissions."
        ) from error
