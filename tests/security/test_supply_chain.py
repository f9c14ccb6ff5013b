"""S1, S3, S11: what is installed is what was tried, and not a release known to be unsafe."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
)


EXTRAS = PROJECT["optional-dependencies"]


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["gpu"]])
def test_s11_every_package_is_pinned(text):
    wanted = Requirement(text)
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)])


@pytest.mark.parametrize(
    "name, unsafe",
    [
        ("torch", "2.9.1"),  # CVE-2026-24747: weights_only=True ran code, as up to 2.5.1 before
        ("ray", "2.54"),  # 2.49-2.54 unpickled what Parquet files say of their columns
    ],
)
def test_s1_s3_releases_that_unpickle_are_not_allowed(name, unsafe):
    (wanted,) = (each for each in map(Requirement, PROJECT["dependencies"]) if each.name == name)
    assert not wanted.specifier.contains(unsafe)


def test_s11_both_installations_follow_the_pins():
    for file in ("Makefile", "pipelines/deploy/Dockerfile"):
        commands = re.findall(r"^.*pip install.*$", (ROOT / file).read_text(), re.MULTILINE)
        others = [each for each in commands if "--constraint constraints.txt" not in each]
        assert len(others) < len(commands)
        # The server that tests of object stores ask has an environment, and pins, of its own.
        assert all("/s3/bin/pip" in each for each in others)
    pins = (ROOT / "tests/faults/s3_server.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins if not pin.startswith("#"))
