"""A sampling profiler for one process: where its CPU time goes, by part of the code."""

import json
import signal
from collections import Counter
from pathlib import Path
from types import FrameType

EVERY_S = 0.001
PARTS = (
    ("/pydantic", "pydantic"),
    ("/redis/", "redis-py"),
    ("/hiredis/", "redis-py"),
    ("/faststream/", "FastStream"),
    ("/fast_depends/", "FastStream"),
    ("/msgpack/", "MessagePack"),
    ("/asyncpg/", "asyncpg"),
    ("/asyncio/", "asyncio"),
    ("/structlog/", "logging"),
    ("/schemas/", "schemas: events, ids, contents"),
    ("/streams/", "streams: subscribers, functions"),
    ("/handlers/supervisor.py", "handlers: supervisor"),
    ("/handlers/state.py", "handlers: supervisor"),
    ("/handlers/decider.py", "handlers: supervisor"),
    ("/handlers/", "handlers: agents, LLM, journal"),
    ("/projections/", "projections"),
    ("/headwater/", "headwater"),
)
"""What a path contains → the part it belongs to; the first that fits."""
OTHER = "the rest of Python"


class Sampler:
    """Counts, at every `EVERY_S` of CPU time, the part that the innermost known frame belongs to."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._known: dict[str, str | None] = {}

    def start(self) -> None:
        """Begin. The main thread only."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def save(self, path: Path) -> None:
        """Stop, and write part → samples."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        path.write_text(json.dumps(self._counts))

    def _sample(self, _: int, frame: FrameType | None) -> None:
        part: str | None = None
        while frame is not None and part is None:
            part = self._part(frame.f_code.co_filename)
            frame = frame.f_back
        self._counts[part or OTHER] += 1

    def _part(self, path: str) -> str | None:
        if path not in self._known:
            self._known[path] = next((part for piece, part in PARTS if piece in path), None)
        return self._known[path]
