"""A worker that makes no step for long says where it is and ends, so that the group starts anew.

A lost message or a rank that hangs leaves all others waiting inside a collective, for ever as it
looks from outside. Every rank notices by itself that it stands still, and tells where.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

# Ranks stop a moment apart; the first to end breaks the collective the others would tell about.
GRACE_SECONDS = 5.0


class Watchdog(AbstractContextManager["Watchdog"]):
    """Inside, `step` must be called every `seconds`; 0 watches nothing."""

    def __init__(self, seconds: float, tell: Callable[[dict[str, Any]], None]) -> None:
        self._seconds, self._tell = seconds, tell
        self._where: dict[str, Any] = {}
        self._seen = 0.0
        self._over = threading.Event()

    def step(self, where: dict[str, Any]) -> None:
        self._where, self._seen = where, time.monotonic()

    def __enter__(self) -> "Watchdog":
        self._seen, self._over = time.monotonic(), threading.Event()
        if self._seconds:
            watched = threading.get_ident(), self._over
            threading.Thread(target=self._watch, args=watched, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self, thread: int, over: threading.Event) -> None:
        while not over.wait(min(1.0, self._seconds / 4)):
            still = time.monotonic() - self._seen
            if still > self._seconds:
                self._tell({**self._where, "stalled_s": round(still), "stack": stacks(thread)})
                time.sleep(GRACE_SECONDS)
                os.kill(os.getpid(), signal.SIGKILL)


def stacks(first: int) -> str:
    """What each other thread of this process is doing, that of ident `first` before the rest."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != first)
    return "\n".join(
        f"{names.get(ident, 'a thread')}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in frames
        if ident != threading.get_ident()
    )
