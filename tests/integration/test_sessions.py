"""Sessions (row D1): keyed by tenant and session, they survive restarts and end only by an explicit clear."""

import pytest

from projections import queries
from projections.db import Pool, connect, migrate
from projections.rebuild import digests, rebuild
from projections.session_store import SessionStore
from schemas.bodies import SessionCleared, SessionStateSet, TaskCompleted, TaskFailed, TaskSubmitted
from schemas.content import Json, seal
from schemas.errors import InvalidInputError, NotFoundError, UnavailableError, UnreadableEventError
from schemas.event import FIELDS, decode, encode
from schemas.task import NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams, open_streams
from streams.log import readable
from tests.conftest import SHARDS
from tests.projecting import event, project

LARGE = "word " * 2000


async def said(streams: Streams, tenant: str, session: str, text: str, answer: Json) -> str:
    """A task and its result: two messages of the session. Returns the task's id."""
    bus = TenantEventBus(streams, tenant)
    accepted = await bus.submit(NewTask(tenant=tenant, session=session, text=text))
    done = TaskCompleted(result=answer, routed_by="rules", agent_results={})
    await bus.publish(event(done, tenant, session, accepted.task_id, agent="supervisor"))
    return accepted.task_id


def state_set(key: str, value: Json) -> SessionStateSet:
    return SessionStateSet(
        call_id="c", ordinal=0, delivery=1, agent_id="writer", key=key, value=value, request_hash="r"
    )


async def texts(store: SessionStore, tenant: str, session: str) -> list[Json]:
    found = await store.get(tenant, session)
    assert found is not None
    return [message.content for message in found.messages]


async def test_a_session_has_its_messages_in_order_and_no_others(streams: Streams, pool: Pool) -> None:
    await said(streams, "acme", "s1", "one", {"answer": 1})
    await said(streams, "acme", "s2", "elsewhere", "no")
    await said(streams, "globex", "s1", "another tenant's", "no")
    await said(streams, "acme", "s1", LARGE, "two")
    await project(streams, pool)
    store = SessionStore(pool, streams)
    assert await texts(store, "acme", "s1") == ["one", {"answer": 1}, LARGE, "two"]
    assert await texts(store, "globex", "s1") == ["another tenant's", "no"]
    assert await store.get("globex", "s2") is None
    roles = [message.role for message in (await store.get("acme", "s1")).messages]  # type: ignore[union-attr]
    assert roles == ["user", "assistant"] * 2


async def test_what_a_task_may_see_of_its_session(streams: Streams, pool: Pool) -> None:
    first = await said(streams, "acme", "s1", "one", "1")
    second = await said(streams, "acme", "s1", "two", "2")
    await said(streams, "acme", "s1", "three", "3")
    await project(streams, pool)
    store = SessionStore(pool, streams)
    assert await store.before_task("acme", "s1", first, limit=100) == []
    seen = await store.before_task("acme", "s1", second, limit=100)
    assert [message.content for message in seen] == ["one", "1"]
    assert [m.content for m in await store.before_task("acme", "s1", second, limit=1)] == ["1"]


async def test_a_clear_ends_messages_and_state_for_every_later_reader(streams: Streams, pool: Pool) -> None:
    for tenant in ("acme", "globex"):
        await said(streams, tenant, "s1", "before", "b")
        await TenantEventBus(streams, tenant).publish(event(state_set("colour", "red"), tenant, agent="writer"))
    await project(streams, pool)
    store = SessionStore(pool, streams)
    position = await store.clear("acme", "s1", reason="asked to")
    await project(streams, pool)
    assert await texts(store, "acme", "s1") == []
    assert await store.state("acme", "s1") == {}
    assert await texts(store, "globex", "s1") == ["before", "b"]
    assert await store.state("globex", "s1") == {"colour": "red"}

    task = await said(streams, "acme", "s1", "after", "a")
    await TenantEventBus(streams, "acme").publish(event(state_set("size", 3), "acme", agent="writer"))
    await project(streams, pool)
    assert await texts(store, "acme", "s1") == ["after", "a"]
    assert await store.before_task("acme", "s1", task, limit=10) == []
    assert await store.state("acme", "s1") == {"size": 3}
    shown = await queries.session(pool, "acme", "s1")
    assert shown is not None
    assert [message["content"] for message in shown["messages"]] == ["after", "a"]
    assert shown["state"] == {"size": 3}
    assert len(shown["tasks"]) == 2
    assert shown["cleared_at"] is not None

    # What was said stays in the log, with the clear as an event of no task.
    events, unreadable = readable("acme", await streams.log.read("acme"))
    assert not unreadable
    cleared = next(e for e in events if isinstance(e.body, SessionCleared))
    assert (cleared.position, cleared.task_id, cleared.session_id) == (position, "", "s1")
    assert [e.body.text for e in events if isinstance(e.body, TaskSubmitted)] == ["before", "after"]
    archived = await queries.events(pool, "acme", session_id="s1")
    assert [p for p, fields in archived if fields["type"] == SessionCleared.type] == [position]


async def test_only_a_clear_ends_a_session(streams: Streams, pool: Pool, database_url: str) -> None:
    task = await said(streams, "acme", "s1", "one", "1")
    failed = TaskFailed(reason="no")
    await TenantEventBus(streams, "acme").publish(event(failed, "acme", task=task, agent="supervisor"))
    await TenantEventBus(streams, "acme").publish(event(state_set("k", {"deep": [1]}), "acme", agent="writer"))
    await project(streams, pool)
    # New connections to both servers know no less.
    again, database = await open_streams(streams_url(streams), shards=SHARDS), await connect(database_url)
    store = SessionStore(database, again)
    assert await texts(store, "acme", "s1") == ["one", "1"]
    assert await store.state("acme", "s1") == {"k": {"deep": [1]}}
    await database.close()
    await again.close()


def streams_url(streams: Streams) -> str:
    options = streams.redis.connection_pool.connection_kwargs  # type: ignore[union-attr]
    path = options.get("path")
    return f"unix://{path}" if path else f"redis://{options['host']}:{options['port']}"


async def test_a_value_is_replaced_and_taken_away(streams: Streams, pool: Pool) -> None:
    bus = TenantEventBus(streams, "acme")
    await said(streams, "acme", "s1", "one", "1")
    for key, value in (("a", 1), ("b", LARGE), ("a", {"$blob": "mine", "bytes": 1}), ("c", 1), ("c", None)):
        await bus.publish(event(state_set(key, seal(value)), "acme", agent="writer"))
    await project(streams, pool)
    assert await SessionStore(pool, streams).state("acme", "s1") == {
        "a": {"$blob": "mine", "bytes": 1},
        "b": LARGE,
    }


async def test_the_sessions_rebuild_to_the_same_digest(streams: Streams, pool: Pool) -> None:
    for tenant in ("acme", "globex"):
        bus = TenantEventBus(streams, tenant)
        await said(streams, tenant, "s1", "before", LARGE)
        await bus.publish(event(state_set("a", 1), tenant, agent="writer"))
        await project(streams, pool)
        await SessionStore(pool, streams).clear(tenant, "s1")
        await bus.publish(event(state_set("b", 2), tenant, agent="writer"))
        await said(streams, tenant, "s1", "after", "a")
    await project(streams, pool)
    before = [d for d in await digests(pool) if d.projection == "sessions"]
    await rebuild(pool, ["sessions"])
    assert [d for d in await digests(pool) if d.projection == "sessions"] == before
    assert before[0].rows > 0


async def test_clearing_an_unknown_session_writes_nothing(streams: Streams, pool: Pool) -> None:
    await said(streams, "acme", "s1", "one", "1")
    await project(streams, pool)
    end = await streams.log.end("acme")
    store = SessionStore(pool, streams)
    with pytest.raises(NotFoundError, match="has no session 's2'"):
        await store.clear("acme", "s2")
    with pytest.raises(NotFoundError, match="tenant 'globex' has no session"):
        await store.clear("globex", "s1")
    assert await streams.log.end("acme") == end
    assert await streams.log.end("globex") == "0-0"


async def test_a_reader_does_not_answer_from_a_projection_that_is_behind(streams: Streams, pool: Pool) -> None:
    await said(streams, "acme", "s1", "one", "1")
    with pytest.raises(UnavailableError, match="behind the log of tenant 'acme'"):
        await SessionStore(pool, streams, catch_up_s=0.05).get("acme", "s1")


async def test_a_database_that_nobody_prepared_is_waited_for(streams: Streams, database_url: str) -> None:
    empty = await connect(database_url)
    with pytest.raises(UnavailableError, match="not prepared yet"):
        await SessionStore(empty, streams).get("acme", "s1")
    await migrate(empty)
    assert await SessionStore(empty, streams).get("acme", "s1") is None
    await empty.close()


def test_only_what_can_happen_outside_a_task_may_name_none() -> None:
    cleared = event(SessionCleared(), "acme", task="")
    fields = dict(
        zip(FIELDS, (str(v, "utf-8") if isinstance(v, bytes) else v for v in encode(cleared, {})), strict=True)
    )
    assert decode("acme", "1-0", fields).task_id == ""
    with pytest.raises(InvalidInputError, match="event and task ids have 1 to 64 characters"):
        event(TaskFailed(reason="no"), "acme", task="")
    with pytest.raises(UnreadableEventError, match="event and task ids"):
        decode("acme", "1-0", fields | {"type": "task.failed", "body": '{"reason": "no"}'})
