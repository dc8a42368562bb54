"""One server process of ours: it dies with its parent, logs to a file, and says why it would not start."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from schemas.errors import ConfigurationError

_PR_SET_PDEATHSIG = 1
START_S = 60.0
STOP_S = 20.0


class EmbeddedServerError(ConfigurationError):
    """An embedded server cannot be found or does not start. The text has the end of its log."""


class DataDirectoryInUseError(EmbeddedServerError):
    """Another process runs servers on this data directory."""


def die_with_parent(deathsig: int) -> Callable[[], None]:
    """A `preexec_fn` that has the kernel send `deathsig` when the thread that started the child ends (Linux)."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def set_deathsig() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, deathsig)

    return set_deathsig


class ServerProcess:
    """A server under our care. Start it from the main thread: it ends when the starting thread does."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def start(
        self, command: Sequence[str], is_ready: Callable[[], bool], *, stop_signal: int, uid_gid: tuple[int, int] | None
    ) -> None:
        """Start and wait until `is_ready`. Raises `EmbeddedServerError` with the end of the log."""
        identity = {} if uid_gid is None else {"user": uid_gid[0], "group": uid_gid[1], "extra_groups": []}
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A locale that is not installed kills both servers.
                env=os.environ | {"LC_ALL": "C"},
                # Ctrl-C in a terminal goes to us alone; we stop the servers after our own work is drained.
                start_new_session=True,
                preexec_fn=die_with_parent(stop_signal),  # noqa: PLW1509  # one system call, no allocation
                **identity,  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + START_S
        while not is_ready():
            if self._child.poll() is not None:
                raise EmbeddedServerError(f"{self.name} ended with status {self._child.returncode}:\n{self._log_end()}")
            if time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise EmbeddedServerError(f"{self.name} was not ready after {START_S:.0f} s:\n{self._log_end()}")
            time.sleep(0.01)

    def stop(self, stop_signal: int) -> None:
        """Send `stop_signal` and wait; after `STOP_S`, SIGKILL."""
        if self._child is None:
            return
        if self._child.poll() is None:
            self._child.send_signal(stop_signal)
            try:
                self._child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._child = None

    def _log_end(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-15:]) or f"(nothing in {self.log})"
