"""A file of `headwater export`, plain or packed, and as somebody else may have written it."""

import gzip
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from bench.recorded import LONG_EVERY, PER_TASK, RULES, recorded_task, stored, task_id_of
from headwater.replay.recording import FORMAT, FileRecording, export
from headwater.replay.verify import verify
from schemas.bodies import LlmAttempted
from schemas.errors import NotFoundError

TASKS = 2 * LONG_EVERY
"""Of these, two have texts that stand in blobs."""
Line = dict[str, object]


def as_exported(line: Line) -> bytes:
    return orjson.dumps(line)


def as_by_others(line: Line) -> bytes:
    """Other writers have another order, and spaces."""
    return orjson.dumps(line, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2).replace(b"\n", b" ")


def lines(tenants: tuple[str, ...]) -> list[Line]:
    found: list[Line] = [{"headwater": FORMAT}]
    for tenant in tenants:
        for number in range(TASKS):
            blobs: dict[str, bytes] = {}
            entries = [stored(event, blobs) for event in recorded_task(number, blobs, tenant)]
            found += [{"tenant": tenant, "blob": sha, "data": data.decode()} for sha, data in blobs.items()]
            found += [{"tenant": tenant, "position": f"{number + 1}-{n}", **fields} for n, fields in enumerate(entries)]
    return found


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
@pytest.mark.parametrize("written", [as_exported, as_by_others])
async def test_entries_and_contents_are_found(tmp_path: Path, name: str, written: Callable[[Line], bytes]) -> None:
    data = b"".join(written(line) + b"\n" for line in lines(("acme", "globex")))
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    recording = FileRecording(path)
    assert await recording.tenants() == ["acme", "globex"]
    report = await verify(recording, ["acme", "globex"], RULES)
    assert (report.tasks, report.diverged, report.skipped) == (2 * TASKS, 0, 0)

    attempts = [entry async for entry in recording.entries("acme", types={LlmAttempted.type})]
    assert len(attempts) == 3 * TASKS
    assert {fields["type"] for _, fields in attempts} == {LlmAttempted.type}
    of_task = [position async for position, _ in recording.entries("globex", task_id=task_id_of(3), after=(4, 5))]
    assert of_task == [f"4-{n}" for n in range(6, PER_TASK)]
    # What is read can be written again.
    again = [orjson.loads(line) async for line in export(recording, ["acme", "globex"])]
    assert again == lines(("acme", "globex"))


async def test_a_content_belongs_to_its_tenant(tmp_path: Path) -> None:
    written = lines(("acme",))
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(as_exported(line) + b"\n" for line in written))
    recording = FileRecording(path)
    sha = next(str(line["blob"]) for line in written if "blob" in line)
    assert b"Many more words" in await recording.blob("acme", sha)
    with pytest.raises(NotFoundError, match="tenant 'globex' is missing"):
        await recording.blob("globex", sha)
