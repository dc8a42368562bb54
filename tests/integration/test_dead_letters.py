"""Dead letters: parked with their origin, redriven once and in order, dropped with the task's end (row B3)."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from handlers.decider import redecide
from handlers.llm import LlmService
from handlers.provider import LitellmProvider
from handlers.supervisor import Rules
from handlers.team import Team
from headwater.embedded import Endpoints
from headwater.runtime import add_runner, make_broker
from headwater.settings import Settings
from schemas.bodies import AgentFailed, EventDropped, EventParked, TaskFailed, TaskSubmitted
from schemas.errors import InvalidInputError, NotFoundError
from schemas.ids import new_id
from schemas.task import Accepted, NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.log import readable
from streams.parked import DeadLetter, DeadLetters
from tests.agent_runs import llm_service as llm_service
from tests.agent_runs import order
from tests.deciding import (
    BROKEN,
    Idle,
    Raising,
    Rule,
    ask_to_cancel,
    events_of,
    submit,
    supervisor,
    types_of,
    until_types,
)
from tests.processes import until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """No retries: what fails is parked at once."""
    return settings.model_copy(update={"retry_delays_s": ()})


async def parked(streams: Streams, tenant: str = "acme") -> DeadLetter:
    """The tenant's one dead letter, once it is there."""
    letters = DeadLetters(streams)

    async def there() -> bool:
        return await letters.count(tenant) > 0

    await until(there, "something was parked")
    [letter] = await letters.page(tenant)
    return letter


async def test_a_dead_letter_has_its_origin_and_all_its_fields(
    streams: Streams, endpoints: Endpoints, settings: Settings
) -> None:
    async with supervisor(streams, endpoints, settings, Rule()):
        accepted = await submit(streams, "acme", BROKEN)
        letter = await parked(streams)
    [(position, flat)] = await streams.log.read("acme", limit=1)
    assert letter.fields == dict(zip(flat[::2], flat[1::2], strict=True))
    assert (letter.reader, letter.position, letter.attempts) == ("decider", position, 1)
    assert (letter.event_type, letter.task_id, letter.session_id) == ("task.submitted", accepted.task_id, "s")
    assert letter.error == "LookupError: no such customer"
    letters = DeadLetters(streams)
    assert await letters.show("acme", letter.id) == letter
    # Another tenant has none, and cannot name it.
    assert await letters.page("globex") == []
    for other in (letters.show, letters.redrive, letters.drop):
        with pytest.raises(NotFoundError, match=r"'globex'.*headwater dead-letters list"):
            await other("globex", letter.id)
    with pytest.raises(InvalidInputError, match="not the id of a dead letter"):
        await letters.show("acme", "; DROP")


async def test_two_people_who_redrive_it_do_it_once_and_in_order(
    streams: Streams, endpoints: Endpoints, settings: Settings
) -> None:
    rule = Rule()
    async with supervisor(streams, endpoints, settings, rule):
        accepted = await submit(streams, "acme", BROKEN)
        await parked(streams)
        # It comes while its task is parked, and waits.
        await ask_to_cancel(streams, accepted)
        await until_types(streams, accepted, ["task.submitted", "event.parked", "task.cancel_requested"])
        letter = await parked(streams)
        rule.mended = True
        tries = await asyncio.gather(
            *(DeadLetters(streams).redrive("acme", letter.id) for _ in range(8)), return_exceptions=True
        )
        assert sum(isinstance(found, DeadLetter) for found in tries) == 1
        assert sum(isinstance(found, NotFoundError) for found in tries) == 7
        wanted = ["task.submitted", "event.parked", "task.cancel_requested", "event.redriven"]
        await until_types(streams, accepted, [*wanted, "task.routed", "task.cancelled"])
    assert await DeadLetters(streams).page("acme") == []
    assert len(rule.asked_at[accepted.task_id]) == 2
    assert await streams.redis.keys("*:deferred") == []


async def test_redriven_in_vain_it_is_parked_again(streams: Streams, endpoints: Endpoints, settings: Settings) -> None:
    rule = Rule()
    async with supervisor(streams, endpoints, settings, rule):
        accepted = await submit(streams, "acme", BROKEN)
        first = await parked(streams)
        await DeadLetters(streams).redrive("acme", first.id)
        await until_types(streams, accepted, ["task.submitted", "event.parked", "event.redriven", "event.parked"])
        second = await parked(streams)
    assert second.id != first.id
    assert second.fields == first.fields
    ids = [event.id for event in await events_of(streams, accepted)]
    assert len(ids) == len(set(ids))


async def test_dropping_it_fails_the_task_with_the_reason(
    streams: Streams, endpoints: Endpoints, settings: Settings
) -> None:
    rule = Rule()
    async with supervisor(streams, endpoints, settings, rule):
        accepted, other = await submit(streams, "acme", BROKEN), await submit(streams, "globex", BROKEN)
        letter = await parked(streams)
        tries = await asyncio.gather(
            *(DeadLetters(streams).drop("acme", letter.id, reason="nonsense") for _ in range(4)),
            return_exceptions=True,
        )
        assert sum(isinstance(found, DeadLetter) for found in tries) == 1
        await until_types(streams, accepted, ["task.submitted", "event.parked", "event.dropped", "task.failed"])
    *_, dropped, failed = await events_of(streams, accepted)
    assert isinstance(dropped.body, EventDropped)
    assert isinstance(failed.body, TaskFailed)
    assert "nonsense (LookupError: no such customer)" in failed.body.reason
    # The other tenant's is still there.
    assert (await parked(streams, "globex")).task_id == other.task_id
    # A replay leaves out what was dropped, and comes to the same decisions (I5).
    events = readable("acme", await streams.log.read("acme"))[0]
    rules = Rules(Team(agents=[Idle()], router=Raising(Rule())), Team(agents=[Idle()], router=Raising(rule)).strictness)
    assert list(redecide(events, rules, {})) == []


async def test_dropping_an_event_of_an_open_task_fails_it_after_what_waited(
    streams: Streams, endpoints: Endpoints, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervisor(streams, endpoints, settings, Rule()):
        accepted = await submit(streams, "acme", "fine")
        await until_types(streams, accepted, ["task.submitted", "task.routed"])
        await write(streams, accepted, "agent.completed", "99", "{}")
        letter = await parked(streams)
        assert letter.attempts == 1  # waiting would not help
        assert "version 99" in letter.error
        await DeadLetters(streams).drop("acme", letter.id)

        async def failed() -> bool:
            return (await types_of(streams, accepted))[-1] == "task.failed"

        await until(failed, "the task failed")
    # Its call is gone from the queue: nobody begins what is not wanted any more.
    assert not await streams.redis.keys("*:call:*")


async def write(streams: Streams, accepted: Accepted, kind: str, version: str, body: str) -> None:
    """An entry as another version of Headwater, or a person, might write it."""
    now = "2026-01-01T00:00:00Z"
    fact = [new_id(), kind, version, "s", accepted.task_id, "normal", "idle", "user>supervisor>idle", "", now, body]
    await streams.functions.append(
        accepted.tenant_id,
        key=new_id(),
        fingerprint="f",
        ttl_ms=60_000,
        task_id=accepted.task_id,
        fact=[*fact],
        blobs={},
    )


async def test_an_entry_of_a_newer_version_is_redriven_after_the_upgrade(
    streams: Streams, endpoints: Endpoints, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = Accepted(tenant_id="acme", session_id="s", task_id=new_id(), position="0-0", duplicate=False)
    async with supervisor(streams, endpoints, settings, Rule()):
        await write(streams, newer, "task.submitted", "2", '{"task_type":"note","text":"hello"}')
        beside = await submit(streams, "acme", "fine")
        await until_types(streams, beside, ["task.submitted", "task.routed"])
        letter = await parked(streams)
        assert letter.task_id == newer.task_id
    monkeypatch.setattr(TaskSubmitted, "version", 2)
    async with supervisor(streams, endpoints, settings, Rule()):
        await DeadLetters(streams).redrive("acme", letter.id)

        async def routed() -> bool:
            return "task.routed" in await types_of(streams, newer)

        await until(routed, "the entry was understood")


@pytest.mark.parametrize("flat", [["type", "task.submitted"], ["type", "agent.failed", "task", "\xff" * 90, "x", "y"]])
async def test_an_entry_that_is_no_event_is_parked_and_holds_up_nobody(
    streams: Streams, endpoints: Endpoints, settings: Settings, flat: list[str]
) -> None:
    async with supervisor(streams, endpoints, settings, Rule()):
        await streams.redis.xadd(streams.keys.log("acme"), dict(zip(flat[::2], flat[1::2], strict=True)))
        accepted = await submit(streams, "acme", "fine")
        await until_types(streams, accepted, ["task.submitted", "task.routed"])
        letter = await parked(streams)
        assert letter.fields == dict(zip(flat[::2], flat[1::2], strict=True))
        await DeadLetters(streams).drop("acme", letter.id)
        await until(lambda: _empty(streams), "nothing of it is left")
        again = await submit(streams, "acme", "fine")
        await until_types(streams, again, ["task.submitted", "task.routed"])


async def _empty(streams: Streams) -> bool:
    return not await streams.redis.keys("*:deferred")


async def test_a_call_that_kills_its_workers_is_parked_and_its_task_goes_on(
    streams: Streams, endpoints: Endpoints, settings: Settings
) -> None:
    # No provider is asked: the agent is not even run.
    service = LlmService(LitellmProvider("http://127.0.0.1:9", "none"), {}, *no_prices())
    ordered = await order(streams, service)
    for n in range(5):
        await ordered.take(f"worker-{n}")
        await ordered.end_lease()

    class Writer(Idle):
        registration = Idle.registration.model_copy(update={"agent_id": "writer"})

    broker = make_broker(endpoints.redis_url, streams)
    add_runner(broker, streams, Team(agents=[Writer()], router=Raising(Rule())), service, settings, "worker-6")
    await broker.start()
    try:
        letter = await parked(streams)
    finally:
        await broker.stop()
    events = await ordered.events()
    assert isinstance(events[-2].body, AgentFailed)
    assert isinstance(events[-1].body, EventParked)
    assert events[-1].body.call_id == letter.call_id == ordered.call.call_id
    assert json.loads(letter.fields["body"]) == json.loads(ordered.call.model_dump_json())
    assert letter.attempts == 5
    with pytest.raises(InvalidInputError, match="its task went on"):
        await DeadLetters(streams).redrive("acme", letter.id)
    await DeadLetters(streams).drop("acme", letter.id)
    assert await DeadLetters(streams).page("acme") == []
    assert (await ordered.events())[-1].type == "event.dropped"


def no_prices() -> tuple[Any, Any]:
    """A price table and a retry policy that nobody needs."""
    from handlers.llm import RetryPolicy
    from handlers.prices import PriceTable

    return PriceTable.load(None), RetryPolicy(attempts_per_model=1, base_delay_ms=1, timeout_s=1.0)


async def command(env: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """`headwater …` as a user runs it: status, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headwater", "dead-letters", *arguments),
        env=os.environ | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_commands(
    streams: Streams, endpoints: Endpoints, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    env = {"REDIS_URL": endpoints.redis_url, "DATABASE_URL": database_url, "HEADWATER_SHARDS": str(settings.shards)}
    acme, rule = ("--tenant", "acme"), Rule()
    async with supervisor(streams, endpoints, settings, rule):
        first, second = await submit(streams, "acme", BROKEN), await submit(streams, "acme", f"{BROKEN} too")
        await until_types(streams, second, ["task.submitted", "event.parked"])
        status, out, _ = await command(env, "list", *acme, "--json")
        letters = [json.loads(line) for line in out.splitlines()]
        assert (status, [letter["task"] for letter in letters]) == (0, [first.task_id, second.task_id])
        shown = json.loads((await command(env, "show", letters[0]["id"], *acme, "--json"))[1])
        assert shown == letters[0]
        rule.mended = True
        both = await asyncio.gather(*(command(env, "redrive", letters[0]["id"], *acme, "--json") for _ in range(2)))
        assert sorted(status for status, _, _ in both) == [0, 1]
        assert "has no dead letter" in "".join(err for _, _, err in both) or "just now" in "".join(
            e for _, _, e in both
        )
        await until_types(streams, first, ["task.submitted", "event.parked", "event.redriven", "task.routed"])
        assert (await command(env, "drop", letters[1]["id"], *acme, "--reason", "old"))[0] == 0
        await until_types(streams, second, ["task.submitted", "event.parked", "event.dropped", "task.failed"])
    assert (await command(env, "list", *acme, "--json"))[1] == ""
    assert (await command(env, "show", "x", *acme))[0] == 2
    assert (await command(env, "list", "--tenant", "A B"))[0] == 2


async def test_a_waiter_hears_of_the_end_of_a_dropped_task(
    streams: Streams, endpoints: Endpoints, settings: Settings
) -> None:
    from streams.outcomes import Outcomes

    outcomes = Outcomes(streams)
    async with supervisor(streams, endpoints, settings, Rule()):
        bus = TenantEventBus(streams, "acme")
        waiting = asyncio.create_task(outcomes.submit_and_wait(bus, NewTask(tenant="acme", session="s", text=BROKEN)))
        letter = await parked(streams)
        await DeadLetters(streams).drop("acme", letter.id, reason="no use")
        outcome = await asyncio.wait_for(waiting, 10)
    assert outcome.status == "failed"
    assert "no use" in (outcome.error or "")
    await outcomes.close()
