"""Which wheels a machine without a network needs for `benchmarks.gpu_first`, as lines for a shell.

The names are found where all is installed, by what the packages say that they require; PyTorch and
what it requires are taken to be there.
"""

from collections.abc import Iterable
from importlib import metadata

from daal import DISTRIBUTION

# Beside PyTorch, of the code that sections of the first two phases run, and of the tests.
CODE = ("numba", "numpy", "pillow", "pyarrow", "pydantic", "PyYAML", "safetensors", "scipy",
        "threadpoolctl", "torchvision")  # fmt: skip
TESTS = ("hypothesis", "psutil", "pytest", "pytest-timeout", "scikit-learn")
PYTHON = "3.12"
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "linux_x86_64",
)
OPTIONS = (
    f"--python-version {PYTHON} --implementation cp --only-binary :all: --no-deps "
    + " ".join(f"--platform {platform}" for platform in PLATFORMS)
)
NOTES = """\
# For Python {python} on Linux, x86-64. Phases 1 and 2 need the first line, phase 3 both.
# torchvision fits its PyTorch (here {torch}): with another one on the machine, take the version
# that
#   python -m pip install --dry-run torchvision torch==VERSION
# names. The repository comes along as a folder and need not be installed.
{first}
{second}
# There, without a network:
python -m pip install --no-index --no-deps wheels/*.whl
"""


def download_lines() -> str:
    """Raises PackageNotFoundError where a package isn't installed."""
    torch = requirements(["torch"])
    first = requirements([*CODE, *TESTS]) - torch
    second = requirements([DISTRIBUTION]) - torch - first - {DISTRIBUTION}
    return NOTES.format(
        python=PYTHON,
        torch=metadata.version("torch"),
        first=_download(first),
        second=_download(second),
    ).rstrip()


def requirements(names: Iterable[str]) -> set[str]:
    """These packages and all that they require, by normalised names."""
    from packaging.requirements import Requirement  # a bare machine has none
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    left = [Requirement(name) for name in names]
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        asked = {name, *(f"{name}[{extra}]" for extra in wanted.extras)}
        if asked <= found:
            continue
        found |= asked
        for text in metadata.requires(name) or []:
            part = Requirement(text)
            environments = ({"python_version": PYTHON, "extra": e} for e in ("", *wanted.extras))
            if part.marker is None or any(map(part.marker.evaluate, environments)):
                left.append(part)
    return {name for name in found if "[" not in name}


def _download(names: set[str]) -> str:
    pins = " ".join(f"{name}=={metadata.version(name)}" for name in sorted(names))
    return f"python -m pip download {OPTIONS} --dest wheels {pins}"
