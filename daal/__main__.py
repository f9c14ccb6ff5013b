"""The command `daal`, as it is installed; `python -m daal` is the same.

`cluster` and `pipelines` are names that other projects have, too. One of theirs in front of ours
would fail somewhere inside, or run other code; so the command looks where they lie first.
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
        origin = spec.origin if spec else None
        ours = here / name / "__init__.py"
        if spec is None or not ours.is_file():
            return (
                f"the package {name} of {DISTRIBUTION} isn't there; install {DISTRIBUTION} again."
            )
        if origin is None or Path(origin).resolve() != ours:
            place = origin or next(iter(spec.submodule_search_locations or ()), "?")
            return (
                f"another {name}, {place}, hides {DISTRIBUTION}'s own; take its folder out of "
                "PYTHONPATH, or start the command in another folder."
            )
        if f'DISTRIBUTION = "{DISTRIBUTION}"' not in ours.read_text(encoding="utf-8"):
            return (
                f"another project's {name} was installed over {DISTRIBUTION}'s, in {ours.parent}; "
                f"pip uninstall {name}, install {DISTRIBUTION} again, and keep the other in an "
                "environment of its own."
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
