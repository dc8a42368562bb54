"""The Redis servers that the contract is run on: one node, a cluster of three, and Debian's where it is there."""

import contextlib
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from headwater.embedded.process import ServerProcess
from headwater.embedded.redis import find_redis_binary

NODES = 3
SLOTS = 16384
READY_S = 30.0
OPTIONS = ("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", "--bind", "127.0.0.1")


def implementations() -> list[str]:
    """What there is to run on here: the first two always, a system's own Redis where it has one."""
    return ["node", "cluster", *(["redis-server"] if shutil.which("redis-server") else [])]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _answers(port: int) -> bool:
    try:
        with Redis(port=port) as client:
            return bool(client.ping())
    except (OSError, RedisError):
        return False


@contextlib.contextmanager
def server(binary: Path, port: int, *options: str) -> Iterator[int]:
    """One node on `port`."""
    with tempfile.TemporaryDirectory(prefix="hw-redis-") as data:
        process = ServerProcess("Redis", Path(data) / "redis.log")
        command = [str(binary), "--port", str(port), "--dir", data, *OPTIONS, *options]
        process.start(command, lambda: _answers(port), stop_signal=signal.SIGTERM, uid_gid=None)
        try:
            yield port
        finally:
            process.stop(signal.SIGKILL)


@contextlib.contextmanager
def cluster(binary: Path) -> Iterator[list[int]]:
    """Three primaries that share the slots."""
    ports = _free_ports(2 * NODES)
    with contextlib.ExitStack() as stack:
        for port, bus in zip(ports[:NODES], ports[NODES:], strict=True):
            enabled = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "2000")
            stack.enter_context(server(binary, port, *enabled))
        nodes = [stack.enter_context(Redis(port=port, decode_responses=True)) for port in ports[:NODES]]
        for number, node in enumerate(nodes):
            first, end = SLOTS * number // NODES, SLOTS * (number + 1) // NODES
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port, bus in zip(ports[1:NODES], ports[NODES + 1 :], strict=True):
            nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
        deadline = time.monotonic() + READY_S
        while not all(_is_complete(node) for node in nodes):
            assert time.monotonic() < deadline, "the nodes did not become a cluster"
            time.sleep(0.02)
        yield ports[:NODES]


def _is_complete(node: Any) -> bool:
    info: Any = node.execute_command("CLUSTER", "INFO")
    found = info if isinstance(info, dict) else dict(line.split(":", 1) for line in info.split("\r\n") if line)
    return found["cluster_state"] == "ok" and int(found["cluster_known_nodes"]) == NODES


@contextlib.contextmanager
def redis_of(implementation: str) -> Iterator[str]:
    """The URL of a running server, or of one node of a cluster."""
    match implementation:
        case "node":
            with server(find_redis_binary(), _free_ports(1)[0]) as port:
                yield f"redis://127.0.0.1:{port}"
        case "redis-server":
            with server(Path(str(shutil.which("redis-server"))), _free_ports(1)[0]) as port:
                yield f"redis://127.0.0.1:{port}"
        case "cluster":
            with cluster(find_redis_binary()) as ports:
                yield f"redis://127.0.0.1:{ports[0]}"
