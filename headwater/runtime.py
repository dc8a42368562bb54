"""The composition root: builds the parts of a process from settings, and wires handlers to the log."""

import os
import socket

from faststream.redis import RedisBroker, RedisClusterBroker
from redis.asyncio.cluster import RedisCluster

from handlers.decider import Decider
from handlers.embedders import make_embedder
from handlers.llm import LlmService, RetryPolicy
from handlers.prices import PriceTable
from handlers.provider import LitellmProvider, Provider
from handlers.recall import Recall
from handlers.runner import AgentRunner
from handlers.supervisor import DECIDER, SUPERVISOR, WANTED, Rules
from handlers.team import Team
from handlers.tokens import TokenCounters
from handlers.tracing import ExecutionTracer
from headwater.settings import Settings
from projections.db import Pool
from projections.memory_search import MemorySearch
from projections.runner import Runner
from projections.session_store import SessionStore
from schemas.event import AgentEvent
from streams.connection import Streams
from streams.functions import Commit
from streams.keys import in_lane
from streams.settling import settle_middleware
from streams.subscriber import CallSubscriber, LeasedRound, LogSubscriber, TakenCall

MAX_TENANTS_PER_ROUND = 64
PROJECTOR = "projector"
QUESTIONS_AT_ONCE = 256
"""How many questions of the supervisor's are before a model at once."""


def worker_name() -> str:
    """A name for this process that no other process has: the fencing token of its calls contains it."""
    return f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"


def make_llm(settings: Settings, provider: Provider | None = None) -> LlmService:
    """The LLM service that the settings describe."""
    return LlmService(
        provider=provider or LitellmProvider(settings.llm_base_url, settings.llm_api_key),
        tiers={"fast": settings.fast_models, "reasoning": settings.reasoning_models},
        prices=PriceTable.load(settings.prices),
        retry=RetryPolicy(
            attempts_per_model=settings.llm_attempts,
            base_delay_ms=settings.llm_retry_ms,
            timeout_s=settings.llm_timeout_s,
        ),
    )


def make_recall(settings: Settings, streams: Streams, pool: Pool) -> Recall:
    """What agents can recall: the read models, an embedder, and the token counters of the tiers' models."""
    embedder = make_embedder(settings.embedder)
    return Recall(
        sessions=SessionStore(pool, streams),
        counters=TokenCounters(
            {"fast": settings.fast_models, "reasoning": settings.reasoning_models}, settings.tiktoken_cache_dir
        ),
        memories=None if embedder is None else MemorySearch(pool, streams.log),
        embedder=embedder,
    )


def make_broker(redis_url: str, streams: Streams, *, described: bool = False) -> RedisBroker:
    """A FastStream broker whose handlers' results are settled on the log.

    A handler takes the one parsed message: with nothing to inject or convert, a message costs a third less. Only a
    broker that is `described` (AsyncAPI) inspects its handlers' types.
    """
    kind = RedisClusterBroker if isinstance(streams.redis, RedisCluster) else RedisBroker
    return kind(
        redis_url,
        middlewares=[settle_middleware(streams)],
        apply_types=described,
        logger=None,  # type: ignore[arg-type]  # None means no log lines of its own
        graceful_timeout=30.0,
    )


def add_decider(broker: RedisBroker, streams: Streams, team: Team, settings: Settings) -> LogSubscriber:
    """The supervisor, deciding on every tenant's log."""
    delays_ms = [round(delay_s * 1000) for delay_s in settings.retry_delays_s]
    decider = Decider(streams.log, Rules(team, team.strictness), retry_delays_ms=delays_ms)
    subscriber = LogSubscriber(
        broker,
        streams,
        DECIDER,
        lease_ms=settings.lease_ms,
        max_tenants=MAX_TENANTS_PER_ROUND,
        types=WANTED,
        states=True,
    )

    @subscriber
    async def decide(leased: LeasedRound) -> list[Commit]:
        """Routes tasks, judges handoffs, and ends tasks: facts of the log in, decisions and calls out."""
        return await decider.handle(leased)

    return subscriber


def add_runner(
    broker: RedisBroker,
    streams: Streams,
    team: Team,
    llm: LlmService,
    settings: Settings,
    worker: str,
    tracer: ExecutionTracer | None = None,
    *,
    recall: Recall | None = None,
    lane: str | None = None,
) -> CallSubscriber:
    """The agents, running the calls that the supervisor ordered. Without `recall` they have no session or memory.

    With `lane`, of the tasks that were forked to this team, and its rules decide on them.
    """
    rules = None if lane is None else Rules(team, team.strictness)
    runner = AgentRunner(
        streams, team.registry, llm, lease_ms=settings.lease_ms, tracer=tracer, recall=recall, rules=rules
    )
    capacity = {in_lane(agent.agent_id, lane): agent.registration.max_concurrent_tasks for agent in team.registry}
    capacity[in_lane(SUPERVISOR, lane)] = QUESTIONS_AT_ONCE
    subscriber = CallSubscriber(broker, streams, worker, lease_ms=settings.lease_ms, capacity=capacity, lane=lane)

    @subscriber
    async def run_agent(taken: TakenCall) -> list[AgentEvent]:
        """Runs one agent once: a call in, the facts that settle it out."""
        return await runner.handle(taken)

    return subscriber


def add_projector(broker: RedisBroker, streams: Streams, runner: Runner, settings: Settings) -> LogSubscriber:
    """The projections, reading every tenant's log."""
    subscriber = LogSubscriber(broker, streams, PROJECTOR, lease_ms=settings.lease_ms, max_tenants=256, max_entries=500)

    @subscriber
    async def project(leased: LeasedRound) -> list[Commit]:
        """Applies facts of the log to the read models, exactly once."""
        return await runner.handle(leased)

    return subscriber
