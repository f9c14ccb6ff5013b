"""Standard output is for results: a machine that reads it finds nothing else there."""

import ast
import json
from pathlib import Path

import pytest
from programs import python

ROOT = Path(__file__).parents[2]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
# As Ray's threads, a library in C and a program that is started write to it.
NOISY = """
import os, subprocess, sys
from benchmarks.tables import parse, parser_of, tell

given = parse(parser_of("Noise."))
print("a thread")
os.write(1, b"a library\\n")
subprocess.run([sys.executable, "-c", "print('a program')"], check=True)
tell(given, "A table", [{"name": "x", "ratio": 0.5}], same=True)
print("afterwards")
"""
# Nodes report from the first moment of a session on.
REPORT = """
from contextlib import suppress
from ray._private import worker
from daal.config import RayConfig
from daal.errors import ClusterError
from pipelines.workers import session

def start(*_):
    said = {"lines": ["a worker was ended for want of memory"], "pid": "raylet", "is_err": False}
    worker.print_to_stdstream(said, ignore_prefix=False)
    raise ClusterError("no cluster")

session._start_or_join = start
with suppress(ClusterError), session.ray_session(RayConfig()):
    pass
"""


def test_a_benchmark__whatever_writes_beside_it():
    done = python("-c", NOISY, "--json", cwd=ROOT)
    assert json.loads(done.stdout) == {"rows": [{"name": "x", "ratio": 0.5}], "same": True}
    assert set(done.stderr.splitlines()) == {"a thread", "a library", "a program", "afterwards"}
    assert python("-c", NOISY, cwd=ROOT).stdout == "\nA table\nname  ratio\nx     0.500\n"


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_no_benchmark_writes_past_it(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    prints = [call for call in calls if ast.unparse(call.func) == "print"]
    assert [ast.unparse(p) for p in prints if "file" not in {k.arg for k in p.keywords}] == []
    if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
        assert "parse" in {ast.unparse(call.func) for call in calls}
        assert not any(ast.unparse(call.func).endswith("parse_args") for call in calls)


def test_what_ray_s_nodes_report():
    done = python("-c", REPORT, cwd=ROOT)
    assert done.stdout == "" and "for want of memory" in done.stderr, done.stderr


def test_a_command(tiny_world):
    roots = [f"source.root={tiny_world}/source", f"target.root={tiny_world}/target"]
    done = python("-m", "pipelines.cli", "adapt", "demo", *roots, "--dry-run", "--json", cwd=ROOT)
    assert json.loads(done.stdout), done.stderr
