"""The worker process that is measured: `headwater worker` as it is, with the instant provider in LiteLLM's place."""

import asyncio
import sys
from pathlib import Path

from bench.sampling import Sampler
from bench.team import InstantProvider
from bench.world import SHARDS
from headwater.embedded import Endpoints
from headwater.logs import configure_logging
from headwater.processes import run_worker
from headwater.settings import Settings


def main(redis_url: str, samples: str | None = None) -> None:
    """Work on the log at `redis_url` until SIGTERM; with `samples`, write there where the time went."""
    settings = Settings(shards=SHARDS, agents="bench.team:team", log_level="warning")
    configure_logging(settings.log_level)
    sampler = Sampler()
    if samples is not None:
        sampler.start()
    asyncio.run(run_worker(settings, Endpoints(redis_url, ""), provider=InstantProvider()))
    if samples is not None:
        sampler.save(Path(samples))


if __name__ == "__main__":
    main(*sys.argv[1:])
