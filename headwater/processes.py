"""What runs in the worker and projector processes: a broker, its subscribers, and a clean way to stop."""

import asyncio
import gc
import signal

import structlog
from faststream.redis import RedisBroker

from handlers.provider import LitellmProvider, Provider
from headwater.embedded import Endpoints
from headwater.heartbeat import beating
from headwater.history import LogArchive
from headwater.rewinding import rewinding
from headwater.runtime import add_decider, add_projector, add_runner, make_broker, make_llm, make_recall, worker_name
from headwater.settings import Settings
from headwater.teams import load_team
from headwater.tracing import exporting, init_langfuse
from headwater.trimming import trimming
from projections.db import connect, migrate
from projections.memory_search import prepare_memory
from projections.rebuild import rebuild_outdated
from projections.runner import Runner
from streams.connection import open_streams

logger = structlog.get_logger(__name__)


async def run_worker(settings: Settings, endpoints: Endpoints, *, provider: Provider | None = None) -> None:
    """Decide and run calls until SIGTERM or SIGINT, then finish what is running.

    LLM requests go to `provider`; by default through LiteLLM to what the settings name.
    """
    team = load_team(settings.agents)
    streams = await open_streams(endpoints.redis_url, shards=settings.shards)
    # No connection is made before an agent asks for its session or its memories, or something was trimmed.
    pool = await connect(endpoints.database_url, min_size=0) if endpoints.database_url else None
    streams.log.archive = None if pool is None else LogArchive(pool)
    worker = worker_name()
    broker = make_broker(endpoints.redis_url, streams)
    add_decider(broker, streams, team, settings)
    if len(team.registry):
        if provider is None:
            provider = LitellmProvider(settings.llm_base_url, settings.llm_api_key)
            await provider.warm_up()
        recall = None if pool is None else make_recall(settings, streams, pool)
        llm, tracer = make_llm(settings, provider), init_langfuse(settings)
        add_runner(broker, streams, team, llm, settings, worker, tracer, recall=recall)
    try:
        logger.info("worker_started", worker=worker, agents=[agent.agent_id for agent in team.registry])
        await _run_until_stopped(broker, settings)
    finally:
        if isinstance(provider, LitellmProvider):
            await provider.aclose()
        if pool is not None:
            await pool.close()
        await streams.close()
    logger.info("worker_stopped", worker=worker)


async def run_projector(settings: Settings, endpoints: Endpoints) -> None:
    """Apply the log to the projections until SIGTERM or SIGINT."""
    streams = await open_streams(endpoints.redis_url, shards=settings.shards)
    pool = await connect(endpoints.database_url)
    try:
        await migrate(pool)
        await prepare_memory(pool)
        await rebuild_outdated(pool)
        broker = make_broker(endpoints.redis_url, streams)
        runner = Runner(pool, streams.log)
        add_projector(broker, streams, runner, settings)
        async with exporting(settings, pool), trimming(settings, streams, pool), rewinding(streams, pool, runner):
            logger.info("projector_started")
            await _run_until_stopped(broker, settings)
    finally:
        await pool.close()
        await streams.close()
    logger.info("projector_stopped")


def _collect_seldom() -> None:
    """Spare the garbage collector what never becomes garbage, and most of its rounds.

    With LiteLLM and its friends a process holds some 200,000 objects for life, and every message makes hundreds that
    go away by themselves: by default a seventh of a worker's time went into looking for cycles among them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def _run_until_stopped(broker: RedisBroker, settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await broker.start()
    _collect_seldom()
    async with beating(settings.heartbeat, broker.subscribers):
        await stop.wait()
        logger.info("draining")
        await broker.stop()
