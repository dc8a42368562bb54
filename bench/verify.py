"""Deciding a recorded log again: 10,000 tasks in a file, and a tenant of a million events in bounded memory."""

import tempfile
from pathlib import Path

import orjson

from bench.client import headwater
from bench.figures import Figure
from bench.recorded import PER_TASK, TEAM, TENANT, recorded_task, stored, task_id_of
from bench.world import World
from headwater.replay.recording import FORMAT

TASKS = 10_000
EVENTS = 1_000_000
MAX_S = 60.0


async def run(world: World) -> list[Figure]:
    """CPU time of verifying on one core, and the peak memory of replaying a tenant of a million events from a file."""
    tasks, events = (200, 20_000) if world.quick else (TASKS, EVENTS)
    verify = ("replay", "--verify", "--agents", TEAM)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.jsonl"
        _write(path, tasks)
        proved = await headwater(*verify, str(path))
        large = Path(directory) / "large.jsonl"
        _write(large, events // PER_TASK)
        story = await headwater("replay", str(large), "--task", task_id_of(events // PER_TASK - 1))
        all_proved = await headwater(*verify, str(large))
    name = f"verify {tasks:,} recorded tasks"
    return [
        Figure(f"{name}, one core", proved.seconds, "s", aim=MAX_S, better="lower"),
        Figure(f"{name}, CPU", proved.cpu_seconds, "s", aim=MAX_S, better="lower", note="with the command's start"),
        Figure("verified tasks per second of CPU", tasks / proved.cpu_seconds, "tasks/s"),
        *story.figures(f"story of one task in a file of {events:,} events"),
        *all_proved.figures(f"verify a file of {events:,} events"),
    ]


def _write(path: Path, tasks: int) -> None:
    """Write a tenant's log with so many tasks."""
    with path.open("wb") as file:
        file.write(orjson.dumps({"headwater": FORMAT}) + b"\n")
        for number in range(tasks):
            blobs: dict[str, bytes] = {}
            entries = [stored(event, blobs) for event in recorded_task(number, blobs)]
            for sha, data in blobs.items():
                file.write(orjson.dumps({"tenant": TENANT, "blob": sha, "data": data.decode()}) + b"\n")
            for place, fields in enumerate(entries):
                position = f"{1_760_000_000_000 + number}-{place}"
                file.write(orjson.dumps({"tenant": TENANT, "position": position, **fields}) + b"\n")
