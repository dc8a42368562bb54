"""Both servers together, on one locked data directory."""

import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from headwater.embedded.postgres import EmbeddedPostgres
from headwater.embedded.process import DataDirectoryInUseError, EmbeddedServerError
from headwater.embedded.redis import EmbeddedRedis


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the servers answer. A URL is empty for a server that was not asked for."""

    redis_url: str
    database_url: str


class EmbeddedServers:
    """Starts and stops the embedded servers. Use it from the main thread: they die with the thread that started them.

    `fsync` is Redis' appendfsync: "everysec" may lose the last second when the machine loses power, "always" nothing.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        redis_binary: str | None = None,
        fsync: str = "everysec",
        redis: bool = True,
        postgres: bool = True,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._lock: IO[str] | None = None
        # Socket paths are limited to 108 bytes, so they live in a short directory of their own.
        self._sockets = _socket_directory()
        self._sockets.chmod(0o711)
        self.redis = EmbeddedRedis(self.data_dir, self._sockets, binary=redis_binary, fsync=fsync) if redis else None
        self.postgres = EmbeddedPostgres(self.data_dir, self._sockets) if postgres else None

    def start(self) -> Endpoints:
        """Start what was asked for, on the data that is there.

        Raises:
            DataDirectoryInUseError: another process runs on this directory.
            EmbeddedServerError: a server is missing or does not start, or the directory cannot be written.
        """
        try:
            self._lock = lock_directory(self.data_dir)
            if self.redis:
                self.redis.start()
            if self.postgres:
                self.postgres.start()
        except BaseException:
            self.stop()
            raise
        return Endpoints(self.redis.url if self.redis else "", self.postgres.url if self.postgres else "")

    def revive(self) -> list[str]:
        """Start again, on the same data and at the same place, what has died. Returns the names of those servers."""
        revived = []
        for server in (self.redis, self.postgres):
            if server is not None and server.process.pid is None:
                server.start()
                revived.append(server.process.name)
        return revived

    def stop(self) -> None:
        """Stop both and release the directory."""
        if self.postgres:
            self.postgres.stop()
        if self.redis:
            self.redis.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Endpoints:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def lock_directory(data_dir: Path) -> IO[str]:
    """Make a data directory, and lock it for this process until the returned file is closed or the process ends.

    Raises:
        DataDirectoryInUseError: another process holds it.
        EmbeddedServerError: it cannot be made or written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("a+")
    except OSError as error:
        raise EmbeddedServerError(
            f"data directory {data_dir} cannot be used by user {os.geteuid()}: {error.strerror}. Make it that user's, "
            "or name another with --data"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise DataDirectoryInUseError(
            f"data directory {data_dir} is in use by process {owner}: stop it, or use another --data directory"
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _socket_directory() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="headwater-"))
    except OSError as error:
        raise EmbeddedServerError(
            f"no place for the servers' sockets: {error.strerror}. In a container with a read-only file system, mount "
            "a tmpfs on /tmp; elsewhere, TMPDIR names a short path that can be written"
        ) from None
