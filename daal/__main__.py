"""The command `daal`, as it is installed; `python -m daal` is the same.

Other projects have packages named `cluster` and `pipelines`, too. If one of theirs comes before
ours, the command would fail somewhere inside or run other code. So it checks first where they lie.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from daal import DISTRIBUTION
from daal.errors import ConfigError


def foreign_package() -> str | None:
    """A sentence about another project's `cluster` or `pipelines` in place of ours, if any."""
    here = Path(__file__).resolve().parents[1]
    for name in ("cluster", "pipelines"):
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            return f"{DISTRIBUTION}'s package {name} isn't there; install {DISTRIBUTION} again."
        found = Path(spec.origin).resolve()
        if f'DISTRIBUTION = "{DISTRIBUTION}"'.encode() in found.read_bytes():
            continue
        if found.parent == here / name:
            return (
                f"another project's {name} was installed over {DISTRIBUTION}'s, in {found.parent}; "
                f"pip uninstall {name}, install {DISTRIBUTION} again, and keep the other in an "
                "environment of its own."
            )
        return (
            f"another {name}, {found}, hides {DISTRIBUTION}'s own; take its folder out of "
            "PYTHONPATH, or start the command in another folder."
        )
    return None


def main() -> None:
    """Entry point of the script `daal`."""
    if foreign := foreign_package():
        print(f"error: {foreign}", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    import_module("pipelines.cli").main()


if __name__ == "__main__":
    main()
