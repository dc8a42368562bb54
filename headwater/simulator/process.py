"""The simulator in a child process of its own, for demos and tests."""

import contextlib
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from headwater.embedded.process import die_with_parent
from headwater.simulator.config import FaultRule, SimulatorConfig
from schemas.errors import ConfigurationError

STOP_S = 5.0
REQUEST_S = 30.0


class SimulatorProcess:
    """`with SimulatorProcess(config) as simulator:` gives `.url`, `.bill()`, `.stats()`, `.set_faults([…])`."""

    def __init__(self, config: SimulatorConfig, *, port: int = 0) -> None:
        self._config = config
        self._port = port
        self._child: subprocess.Popen[str] | None = None
        # A proxy of the environment is not for a server of our own.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.url = ""

    def start(self) -> "SimulatorProcess":
        """Start it and wait until its port is bound. Raises `ConfigurationError`; the reason is on its standard error.

        Call it from the main thread: the child ends when the thread that started it does.
        """
        self._child = subprocess.Popen(
            [sys.executable, "-m", "headwater.simulator", str(self._port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  # one system call, no allocation
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError), self._child.stdin as stdin:
            stdin.write(self._config.model_dump_json(by_alias=True))
        self.url = self._child.stdout.readline().strip()
        if not self.url:
            status = self._child.wait()
            self.stop()
            raise ConfigurationError(f"the simulator did not start (status {status}); its standard error says why")
        return self

    def stop(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.terminate()
            try:
                self._child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            assert self._child.stdout is not None
            self._child.stdout.close()
            self._child = None

    def __enter__(self) -> "SimulatorProcess":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def bill(self) -> dict[str, Any]:
        """The totals and all entries. Of a bill that grows while it is read: as it was at the first look."""
        bill = self._request("GET", "/bill")
        missing = bill["requests"] - len(bill["entries"])
        while missing > 0:
            page = self._request("GET", f"/bill?after={len(bill['entries'])}&limit={missing}")["entries"]
            if not page:
                raise ConfigurationError("the simulator's bill was reset while it was read; read it again")
            bill["entries"] += page
            missing -= len(page)
        return bill

    def stats(self) -> dict[str, Any]:
        """Outcomes so far, also by model, and requests in flight now and at most, by `model:…` and `agent:…`."""
        return self._request("GET", "/stats")

    def set_faults(self, rules: Sequence[FaultRule]) -> None:
        """Replace the fault rules."""
        self._request("PUT", "/faults", [rule.model_dump() for rule in rules])

    def _request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        with self._opener.open(request, timeout=REQUEST_S) as response:
            value: dict[str, Any] = json.loads(response.read())
            return value
