"""The command `daal` in this process, and Python in a process of its own."""

import contextlib
import io
import subprocess
import sys
from typing import Any
from unittest.mock import patch

from pipelines import cli


def daal(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        patch.object(sys, "argv", ["daal", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return code, out.getvalue(), err.getvalue()


def python(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """What `python ARGUMENTS` printed; `options` are those of subprocess.run."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)
