"""Headwater's processes as a test runs them: started, signalled and ended by their pid."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType

from headwater.embedded.process import die_with_parent

DEADLINE_S = 60.0


class HeadwaterProcess:
    """`python -m headwater …` with its output in a file."""

    def __init__(self, arguments: list[str], env: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "headwater", *arguments],
                env=os.environ | dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509  # one system call, no allocation
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._child.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._child.kill()
        self._child.wait()

    def is_running(self) -> bool:
        """Has it not ended?"""
        return self._child.poll() is None

    def status(self) -> int | None:
        """Its exit status, if it has ended."""
        return self._child.poll()

    def output(self) -> str:
        """What it wrote so far."""
        return self.log.read_text(errors="replace")

    def __enter__(self) -> "HeadwaterProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_running():
            # A stopped process does not see SIGTERM until it goes on.
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self._child.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.kill()


async def until(condition: Callable[[], Awaitable[bool]], what: str, *, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition; fail with `what` when it does not come true in time."""
    end = time.monotonic() + deadline_s
    while not await condition():
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}"
        await asyncio.sleep(0.05)
