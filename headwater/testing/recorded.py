"""Recorded logs as tests: pytest runs every file named *.headwater.jsonl (or .gz), and decides it again."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.supervisor import Rules
from handlers.team import Team
from headwater.replay.recording import FileRecording
from headwater.replay.verify import verify
from headwater.teams import load_team

ENDINGS = (".headwater.jsonl", ".headwater.jsonl.gz")


class RecordedLogError(AssertionError):
    """A decision of a recorded log would be another one now."""


def check_recorded(path: Path, team: Team) -> None:
    """Decide a recorded log again with `team`. Raises `RecordedLogError` naming the first difference of each task."""

    async def check() -> None:
        recording = FileRecording(path)
        report = await verify(recording, await recording.tenants(), Rules(team, team.strictness), limit=10)
        if report.diverged:
            found = [
                f"task {d.task_id}, event {d.event_id}, {d.pointer}: recorded {d.recorded!r}, now {d.now!r}"
                for d in report.differences
            ]
            raise RecordedLogError("\n".join([f"{path}: {report.diverged} of {report.tasks} tasks differ", *found]))
        if not report.tasks:
            raise RecordedLogError(f"{path} has no task to decide again")

    asyncio.run(check())


class RecordedFile(pytest.File):
    """A file of recorded tasks: one test."""

    def collect(self) -> Iterator[pytest.Item]:
        """The test."""
        yield RecordedItem.from_parent(self, name="verify")


class RecordedItem(pytest.Item):
    """Decides the file again, with the team that the ini option `headwater_team` names."""

    def runtest(self) -> None:
        """Fails at a difference."""
        spec = self.config.getini("headwater_team")
        if not spec:
            raise pytest.UsageError(f"{self.path}: set headwater_team = module:object in pytest's configuration")
        check_recorded(self.path, load_team(spec))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        """The differences, without a traceback that would only show our own code."""
        return str(excinfo.value) if isinstance(excinfo.value, RecordedLogError) else str(excinfo.getrepr())

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where it is reported."""
        return self.path, 0, f"recorded log {self.path.name}"
