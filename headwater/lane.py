"""Running a team beside the one that runs: for tasks that were forked to it (`handlers/lanes.py`)."""

import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from handlers.provider import LitellmProvider, Provider
from handlers.team import Team
from headwater.client import Headwater
from headwater.embedded import Endpoints
from headwater.runtime import add_runner, make_broker, make_llm, make_recall, worker_name
from headwater.settings import Settings
from headwater.teams import load_team
from headwater.tracing import init_langfuse
from schemas.content import content_hash


@dataclass(frozen=True, slots=True)
class OtherTeam:
    """A team as it was named, and as it is now: another code is another team."""

    agents: str
    team: Team
    code_hash: str
    """Of the module's file."""

    @classmethod
    def load(cls, agents: str) -> "OtherTeam":
        """The team in `module:object`. Raises `ConfigurationError`."""
        team = load_team(agents)
        source = getattr(sys.modules[agents.partition(":")[0]], "__file__", None)
        return cls(agents, team, content_hash(Path(source).read_bytes() if source else b"")[:16])


@contextlib.asynccontextmanager
async def serving(
    lane: str, team: Team, hw: Headwater, settings: Settings, endpoints: Endpoints, *, provider: Provider | None = None
) -> AsyncIterator[None]:
    """Decide on the tasks of a lane and run their calls, in this process, until the block ends.

    What runs then is finished first, for half a minute at most.
    """
    own = None if provider is not None else LitellmProvider(settings.llm_base_url, settings.llm_api_key)
    used = provider or own
    assert used is not None
    broker = make_broker(endpoints.redis_url, hw.streams)
    llm = make_llm(settings, used)
    recall = make_recall(settings, hw.streams, hw.pool)
    # A command's output needs no line that says what is not set up.
    tracer = init_langfuse(settings) if settings.langfuse_public_key else None
    add_runner(broker, hw.streams, team, llm, settings, worker_name(), tracer, recall=recall, lane=lane)
    try:
        if own is not None:
            await own.warm_up()
        await broker.start()
        yield
    finally:
        await broker.stop()
        if own is not None:
            await own.aclose()
