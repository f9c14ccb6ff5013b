"""A worker that makes no step for long reports its stacks and ends, so that the group restarts.

After a lost message, or when one rank hangs, all others would wait inside a collective for ever.
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

# Ranks notice a hang at slightly different times. The first one that ends breaks the collective
# in which the others hang, before they have said so.
GRACE_SECONDS = 5.0


class Watchdog(AbstractContextManager["Watchdog"]):
    """Inside, `step` must be called every `seconds`. 0: no limit."""

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
    """The stack of each other thread of this process, first that of the thread `first`."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != first)
    return "\n".join(
        f"{names.get(ident, 'a thread')}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in frames
        if ident != threading.get_ident()
    )
