"""Calls that would read pickles, unpack archives or run what a file says: none in our code.

ruff's S rules (pyproject.toml) stop most of them; these can't be silenced by a comment.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("daal", "cluster", "pipelines", "benchmarks")
DEPLOYED = [ROOT / "ray_cluster.yaml", *sorted((ROOT / "pipelines/deploy").iterdir())]

# Full names, with all that is under them.
NO_PICKLE = (
    "pickle", "_pickle", "dill", "shelve", "marshal", "joblib", "jsonpickle", "pickletools",
    "cloudpickle.load", "cloudpickle.loads", "ray.cloudpickle.load", "ray.cloudpickle.loads",
    "torch.distributed.checkpoint", "torch.jit.load", "torch.hub", "torch.package",
    "torch.export.load", "torch.serialization", "pandas.read_pickle", "pyarrow.deserialize",
    "pyarrow.PyExtensionType",
)  # fmt: skip
NO_CODE = ("eval", "exec", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load",
           "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.Loader", "tempfile.mktemp")  # fmt: skip
NO_ARCHIVES = ("tarfile", "zipfile", "shutil.unpack_archive")
NO_FETCHING = ("urllib.request", "http.client", "httpx", "aiohttp", "ftplib")
# It reads back, from memory, the program that the same function has made a moment before.
ALLOWED = {
    "daal/export.py": {"torch.export.load"},
    "daal/available_cpus.py": {"joblib"},  # it is asked for the number of CPUs
    "daal/data/tars.py": {"tarfile"},  # members are read where they lie
    "benchmarks/image_sets.py": {"tarfile"},  # it writes one
}
FORBIDDEN = (*NO_PICKLE, *NO_CODE, *NO_ARCHIVES, *NO_FETCHING)


def forbidden(code: str) -> Iterator[str]:
    """What `code` uses of the above, and what else it does that it must not."""
    tree = ast.parse(code)
    known: dict[str, str] = {}  # local name -> full name
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield from _under(name.name)
                first = name.name.partition(".")[0]
                known[name.asname or first] = name.name if name.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield from _under(full)
                known[name.asname or name.name] = full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            yield from _under(_full_name(node, known))
        if isinstance(node, ast.Attribute) and node.attr in ("extractall", "unpack_archive"):
            yield node.attr
        if isinstance(node, ast.Constant) and "RAY_DATA_AUTOLOAD" in str(node.value):
            yield str(node.value)
        if isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if not _is(given.get("allow_pickle"), False, absent=True):
                yield "allow_pickle"
            if not _is(given.get("shell"), False, absent=True):
                yield "shell"
            called = _full_name(node.func, known)
            if called == "torch.load" and not _is(given.get("weights_only"), True):
                yield "torch.load without weights_only=True"


def _is(value: ast.expr | None, wanted: bool, absent: bool = False) -> bool:
    if value is None:
        return absent
    return isinstance(value, ast.Constant) and value.value is wanted


def _full_name(node: ast.expr, known: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, known)}.{node.attr}"
    return known.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def _under(full: str) -> Iterator[str]:
    yield from (name for name in FORBIDDEN if full == name or full.startswith(f"{name}."))


def test_s1_s2_s6_s8_no_forbidden_call() -> None:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(paths) > 60, "the scan must not pass because it finds nothing"
    found = {str(path.relative_to(ROOT)): set(forbidden(path.read_text())) for path in paths}
    assert {name: calls for name, calls in found.items() if calls} == ALLOWED


def test_what_is_allowed_reads_no_file() -> None:
    """Only bytes of this process are loaded, and joblib is asked for a number."""

    def parts(file: str, start: str) -> list[str]:
        nodes = map(ast.unparse, ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))))
        return [node for node in nodes if node.startswith(start)]

    loads = parts("daal/export.py", "torch.export.load(")
    assert loads and all(load.startswith("torch.export.load(io.BytesIO(") for load in loads)
    assert {part.partition("(")[0] for part in parts("daal/available_cpus.py", "joblib")} == {
        "joblib", "joblib.cpu_count",
    }  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import joblib as j", "import dill",
        "from ray import cloudpickle\ncloudpickle.loads(b'')",
        "import ray\nray.cloudpickle.loads(b'')", "import ray.cloudpickle as c\nc.load(f)",
        "import torch\ntorch.load(p)", "import torch as t\nt.load(p, weights_only=False)",
        "from torch import load\nload(p, weights_only=flag)", "torch.jit.load(p)",
        "import torch.distributed.checkpoint as dcp",
        "from torch.distributed import checkpoint", "import torch\ntorch.hub.load('a', 'b')",
        "import numpy as np\nnp.load(p, allow_pickle=True)", "load(p, allow_pickle=flag)",
        "import pandas as pd\npd.read_pickle(p)", "import pyarrow as pa\npa.PyExtensionType",
        "os.environ['RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE'] = '1'",
        "import yaml\nyaml.load(t, yaml.Loader)", "from yaml import UnsafeLoader", "eval(t)",
        "import os\nos.system(c)", "import subprocess\nsubprocess.run(c, shell=True)",
        "import tarfile", "a.extractall()", "import shutil\nshutil.unpack_archive(a)",
        "import urllib.request", "from urllib import request",
    ],
)  # fmt: skip
def test_the_scan_finds(code: str) -> None:
    assert set(forbidden(code))


def test_the_scan_lets_pass() -> None:
    code = """
import numpy as np, torch, ray
torch.load(path, map_location="cpu", weights_only=True)
np.load(path); np.lib.format.read_array(stream, allow_pickle=False)
ray.cloudpickle.register_pickle_by_value(module)
model.eval()
"""
    assert set(forbidden(code)) == set()


def test_s3_nothing_that_is_deployed_switches_unpickling_on() -> None:
    for path in DEPLOYED:
        assert "RAY_DATA_AUTOLOAD" not in path.read_text(encoding="utf-8"), path
