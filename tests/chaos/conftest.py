"""What the chaos tests share: an environment for worker processes."""

from pathlib import Path

import pytest

from headwater.embedded import Endpoints
from streams.connection import Streams
from tests.conftest import SHARDS

PRICES = Path(__file__).parents[2] / "examples" / "support_desk" / "prices.json"


@pytest.fixture
def worker_env(endpoints: Endpoints, streams: Streams, database_url: str) -> dict[str, str]:
    """Environment of a worker on an empty log and database; the simulator's URL is still to be added."""
    return {
        "REDIS_URL": endpoints.redis_url,
        "DATABASE_URL": database_url,
        "HEADWATER_SHARDS": str(SHARDS),
        "HEADWATER_LEASE_MS": "2000",
        "HEADWATER_FAST_MODELS": "openai/sim-fast",
        "HEADWATER_REASONING_MODELS": "openai/sim-reasoning",
        "HEADWATER_PRICES": str(PRICES),
        "HEADWATER_LLM_API_KEY": "simulator",
        "HEADWATER_LLM_RETRY_MS": "20",
        "HEADWATER_LOG_LEVEL": "warning",
    }
