"""What is shown on a terminal, elsewhere and when quiet."""

import io
from contextlib import suppress

import pytest
from rich.console import Console

from pipelines.show import progress as shown
from pipelines.show.progress import Progress

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor
TRAINING = {
    "stage": "iteration-01/train", "epoch": 1, "epochs": 2, "step": 45, "steps": 100,
    "images_per_s": 149.4, "loss": {"source": 0.276, "domain": 0.0, "total": 1.757},
}  # fmt: skip


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=150, _environ={"TERM": "xterm"})


@pytest.mark.parametrize("ending", [None, RuntimeError, KeyboardInterrupt])
def test_the_terminal_is_as_before__however_a_stage_ends(ending):
    console = terminal()
    progress = Progress(console=console)
    with suppress(RuntimeError, KeyboardInterrupt), progress.stage("pretrain/train"):
        progress.tasks("neighbours", 3, 8)
        if ending is not None:
            raise ending
    output = console.file.getvalue()
    assert output.count(HIDE) == output.count(SHOW) == 1
    assert output.index(HIDE) < output.index(SHOW)


def test_no_terminal_control_where_there_is_no_terminal(monkeypatch):
    output, events, now = io.StringIO(), [], [100.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])
    progress = Progress(events.append, Console(file=output, width=200))
    with progress.stage("iteration-01/train"):
        progress._show(TRAINING)
        progress._show({**TRAINING, "step": 46})  # too soon for another line
        progress._show({**TRAINING, "step": 100})
        now[0] += 7
    text = output.getvalue()
    assert "\x1b" not in text
    assert "step 45/100" in text and "step 46/100" not in text and "step 100/100" in text
    assert "iteration-01/train: done in" in text
    assert [event.get("state") for event in events] == ["started", None]
    assert events[1]["stage"] == "iteration-01/train" and events[1]["seconds"] == 7


@pytest.mark.parametrize("console", [terminal(), Console(file=io.StringIO())])
def test_quiet__notes_and_nothing_else(console):
    progress = Progress(console=console, quiet=True)
    with progress.stage("pretrain/train"):
        progress.say("2 workers")
        progress._show(TRAINING)
        progress.tasks("neighbours", 3, 8)
    assert console.file.getvalue() == ""
    progress._show({"stage": "workers", "starts": 2, "workers": 3})
    assert "note: 3 workers have taken over" in console.file.getvalue()
