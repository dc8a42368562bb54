"""The fake in a process of its own, so that it can be killed."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from headwater.embedded.process import die_with_parent
from tests.fake_langfuse.faults import Faults
from tests.fake_langfuse.store import StoredSpan

PUBLIC_KEY = "pk-lf-fake"
SECRET_KEY = "sk-lf-fake"
REQUEST_S = 30.0


class FakeLangfuse:
    """Keeps its port and its file over restarts."""

    def __init__(self, file: Path, *, public_key: str = PUBLIC_KEY, secret_key: str = SECRET_KEY) -> None:
        self._arguments = (str(file), public_key, secret_key)
        self._port = 0
        self._child: subprocess.Popen[str] | None = None
        # A proxy of the environment is not for a server of our own.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.url = ""

    def start(self) -> "FakeLangfuse":
        """Start it and wait until its port is bound."""
        file, public_key, secret_key = self._arguments
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.fake_langfuse", file, str(self._port), public_key, secret_key],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509  # one system call, no allocation
        )
        assert self._child.stdout is not None
        self.url = self._child.stdout.readline().strip()
        assert self.url, "the fake Langfuse did not start; its standard error says why"
        self._port = int(self.url.rpartition(":")[2])
        return self

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            assert self._child.stdout is not None
            self._child.stdout.close()
            self._child = None

    def __enter__(self) -> "FakeLangfuse":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def spans(self) -> list[StoredSpan]:
        """Every span that arrived, in order of arrival; one that arrived twice is there twice."""
        return [StoredSpan.model_validate(span) for span in self._request("GET", "/control/spans")]

    def stats(self) -> dict[str, int]:
        """Ingestion requests and reads since this process started, and spans stored."""
        stats: dict[str, int] = self._request("GET", "/control/stats")
        return stats

    def set_faults(self, **faults: Any) -> None:
        """Replace the faults; without arguments, all is well again. A restart forgets them too."""
        self._request("PUT", "/control/faults", Faults(**faults).model_dump_json().encode())

    def _request(self, method: str, path: str, data: bytes | None = None) -> Any:
        request = urllib.request.Request(self.url + path, data=data, method=method)
        with self._opener.open(request, timeout=REQUEST_S) as response:
            return json.loads(response.read())
