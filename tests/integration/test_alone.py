"""The processes one by one, as containers run them: the API alone, its metrics port, and the heartbeats (row F4)."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import httpx

from headwater.embedded import Endpoints
from headwater.heartbeat import SILENT_S, beating
from headwater.runtime import add_decider, make_broker
from headwater.settings import Settings
from projections.db import Pool
from streams.connection import Streams
from tests.conftest import SHARDS
from tests.processes import HeadwaterProcess, until
from tests.serving import Echo, echo_team, key_of, working

TEAM = "tests.slot_team:team"


def free_port() -> int:
    """A port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(endpoints: Endpoints, database_url: str, **more: str) -> dict[str, str]:
    """What Compose gives to each of our containers."""
    return {
        "REDIS_URL": endpoints.redis_url,
        "DATABASE_URL": database_url,
        "HEADWATER_SHARDS": str(SHARDS),
        "HEADWATER_LOG_LEVEL": "info",
        "NO_COLOR": "1",
        "COLUMNS": "200",
        **more,
    }


async def answers(url: str, process: HeadwaterProcess) -> bool:
    """Does it answer 200?"""
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(url)).status_code == 200
    except httpx.TransportError:
        assert process.is_running(), process.output()
        return False


async def test_the_api_alone_serves_tasks_and_a_metrics_port_and_stops_cleanly(
    endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    port, metrics_port = free_port(), free_port()
    env = environment(endpoints, database_url, HEADWATER_METRICS_PORT=str(metrics_port))
    with HeadwaterProcess(["api", "--port", str(port)], env, tmp_path / "api.log") as api:
        await until(lambda: answers(f"http://127.0.0.1:{port}/readyz", api), "the API is ready")
        with_database = Endpoints(endpoints.redis_url, database_url)
        async with working(settings, with_database, echo_team(Echo())), httpx.AsyncClient(trust_env=False) as client:
            for tenant in ("acme", "globex"):
                headers = await key_of(pool, tenant)
                sent = await client.post(
                    f"http://127.0.0.1:{port}/v1/tasks", headers=headers, json={"session": "s", "text": tenant}
                )
                assert sent.status_code == 202, sent.text
                task = sent.json()["task"]
                url = f"http://127.0.0.1:{port}/v1/tasks/{task}"
                done = await client.get(url, headers=headers, params={"wait": 20}, timeout=30)
                assert done.json()["status"] == "completed", done.text
                other = await key_of(pool, "globex" if tenant == "acme" else "acme")
                assert (await client.get(url, headers=other)).status_code == 404
            metrics = f"http://127.0.0.1:{metrics_port}/metrics"
            shown = await client.get(metrics, headers={"X-Forwarded-For": "203.0.113.7", "Host": "api:9100"})
            assert shown.status_code == 200
            for tenant in ("acme", "globex"):
                assert (
                    f'supervisor_tasks_total{{decomposed="false",status="completed",tenant_id="{tenant}"}} 1.0'
                    in shown.text
                )
            assert "consumer_lag_seconds" in shown.text
            assert "http_requests_total" in shown.text
            elsewhere = await client.get(f"http://127.0.0.1:{port}/metrics", headers={"Host": "api:8080"})
            assert elsewhere.status_code == 401, "without a key only that port shows all tenants"
            assert (await client.get(f"http://127.0.0.1:{metrics_port}/v1/tasks")).status_code == 404
        api.signal(signal.SIGTERM)
        await until(lambda: ended(api), "the API stops")
    assert api.status() == 0, api.output()


async def ended(process: HeadwaterProcess) -> bool:
    """Has it?"""
    return not process.is_running()


async def test_a_metrics_port_that_is_taken_is_an_error_that_says_so(
    endpoints: Endpoints, streams: Streams, database_url: str, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        env = environment(endpoints, database_url, HEADWATER_METRICS_PORT=str(port))
        with HeadwaterProcess(["api", "--port", "0"], env, tmp_path / "api.log") as api:
            await until(lambda: ended(api), "it gives up")
            assert api.status() == 1
    assert f"HEADWATER_METRICS_PORT {port} on 127.0.0.1 cannot be used" in api.output()
    assert "the HTTP application did not start" in api.output()


async def test_worker_and_projector_beat_while_they_read(
    endpoints: Endpoints, streams: Streams, database_url: str, tmp_path: Path
) -> None:
    for name in ("projector", "worker"):
        beat = tmp_path / name
        env = environment(endpoints, database_url, HEADWATER_HEARTBEAT=str(beat), HEADWATER_AGENTS=TEAM)
        with HeadwaterProcess([name], env, tmp_path / f"{name}.log") as process:
            await until(lambda beat=beat, process=process: exists(beat, process), f"{name} beats")  # type: ignore[misc]
            first = beat.stat().st_mtime_ns
            await until(lambda beat=beat, first=first: is_younger(beat, first), f"{name} beats again")  # type: ignore[misc]
            process.signal(signal.SIGTERM)
            await until(lambda process=process: ended(process), f"{name} stops")  # type: ignore[misc]
        assert not beat.exists(), "a process that is gone leaves no sign of life"


async def exists(path: Path, process: HeadwaterProcess | None = None) -> bool:
    """Is it there? Fails if `process`, which should write it, has ended."""
    assert process is None or process.is_running(), process.output()
    return os.access(path, os.F_OK)


async def is_younger(path: Path, than_ns: int) -> bool:
    """Was it touched since?"""
    return os.stat(path).st_mtime_ns > than_ns


async def test_no_heartbeat_of_a_reader_that_reads_nothing(
    streams: Streams, settings: Settings, tmp_path: Path
) -> None:
    broker = make_broker("redis://127.0.0.1:1", streams)
    reader = add_decider(broker, streams, echo_team(), settings)
    beat = tmp_path / "beat"
    now = asyncio.get_running_loop().time
    async with beating(beat, broker.subscribers, every_s=0.001):
        await asyncio.sleep(0.02)  # many beats would have been due
        assert not beat.exists(), "it has not read yet"
        reader.handled_at = now()
        await until(lambda: exists(beat), "it reads")
        reader.handled_at = now() - SILENT_S
        await asyncio.sleep(0.005)  # a beat that was under way
        last = beat.stat().st_mtime_ns
        await asyncio.sleep(0.02)
        assert beat.stat().st_mtime_ns == last, "it has not read for long"
        reader.handled_at = now()
        await until(lambda: is_younger(beat, last), "it reads again")
