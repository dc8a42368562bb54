"""Where a worker's time goes while 128 tasks are in flight: `python -m bench profile`."""

import json
import tempfile
from pathlib import Path

from bench.figures import Figure
from bench.load import Producers, tenants
from bench.world import World


async def run(world: World) -> list[Figure]:
    """Shares of the worker's CPU time, by part of the code."""
    with tempfile.TemporaryDirectory() as directory:
        samples = Path(directory) / "samples.json"
        async with world.log() as streams, Producers(streams, tenants(100)) as producers:
            async with world.worker(profile=samples):
                await producers.ready()
                await producers.closed(in_flight=128, tasks=world.count(5_000))
            counts: dict[str, int] = json.loads(samples.read_text())
    total = sum(counts.values())
    parts = sorted(counts.items(), key=lambda item: -item[1])
    return [Figure(f"worker's time in {part}", 100 * count / total, "%") for part, count in parts]
