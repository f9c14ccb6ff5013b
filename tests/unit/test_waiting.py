"""The tests' own helpers: they wait for what must come, and end all that they have started."""

import ast
import os
import subprocess
from pathlib import Path

import pytest
import waiting
from heads import end_processes, processes_of, ray_folder
from waiting import GIVE_UP_SECONDS, wait_until


def test_the_first_true_answer__or_what_did_not_come(monkeypatch):
    answers = iter(["", [], "here", "too late"])
    assert wait_until(lambda: next(answers), "nothing comes", pause=0) == "here"
    monkeypatch.setattr(waiting, "GIVE_UP_SECONDS", -1)
    with pytest.raises(pytest.fail.Exception, match="nothing comes: not within"):
        wait_until(lambda: False, "nothing comes")


def test_processes_that_start_others_are_ended__and_their_folder_is_removed():
    with ray_folder() as folder:
        # As Ray's node, which starts workers while it is being killed.
        restless = "while :; do sleep 900 & sleep 0.02; done"
        starter = subprocess.Popen(["sh", "-c", restless], env={**os.environ, "OF": folder})
        wait_until(lambda: len(processes_of(folder)) > 10, "no processes start")
        end_processes(folder)
        assert processes_of(folder) == []
        starter.wait()
    assert not Path(folder).exists()


def test_no_limit_that_a_busy_machine_may_exceed():
    """Only pytest's own limit ends a test, and what must come is waited for by `wait_until`."""
    limits = []
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                is_mark = ast.unparse(call.func) == "pytest.mark.timeout"
                given = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
                given += call.args if is_mark else []
                limits += [(path.name, ast.literal_eval(value)) for value in given]
    assert limits and [limit for limit in limits if limit[1] < GIVE_UP_SECONDS] == []
