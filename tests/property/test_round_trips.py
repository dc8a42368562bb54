"""For any values: what is stored comes back, what looks like a reference is none, and no tenant's key is another's."""

import string
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ValidationError
from redis.crc import key_slot

from schemas.bodies import BODIES, EventBody, TaskSubmitted
from schemas.content import INLINE_LIMIT_BYTES, blob_of, offload, resolve, seal, unseal
from schemas.errors import InvalidInputError
from schemas.event import FIELDS, AgentEvent, decode, encode
from schemas.ids import check_agent_id, check_session_id, check_tenant_id, derived_id
from schemas.money import TokenCounts, plain
from schemas.task import NewTask
from streams.keys import Keys
from streams.wire import pack, unpack

# Any Unicode that has a UTF-8 form: astral, combining, right-to-left, private, unassigned; no lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ids = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=24)
tenants = st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,62}\Z")
agents = st.from_regex(r"\A[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}\Z")
scalars = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
large = st.builds(lambda text, n: (text or "x") * n, texts, st.integers(INLINE_LIMIT_BYTES, INLINE_LIMIT_BYTES * 2))
look_alikes = st.fixed_dictionaries(
    {"$blob": scalars | ids}, optional={"bytes": scalars, "more": scalars}
) | st.fixed_dictionaries({"$json": json_values}, optional={"more": scalars})
contents = json_values | large | look_alikes


@given(contents)
def test_any_content_comes_back(value: Any) -> None:
    blobs: dict[str, bytes] = {}
    stored = offload(seal(value), blobs)
    # What stands in the log is small, or a reference.
    assert len(orjson.dumps(stored)) <= 2 * INLINE_LIMIT_BYTES
    through = orjson.loads(orjson.dumps(stored))
    assert resolve(through, blobs) == value
    assert unseal(seal(value)) == value
    assert (blob_of(stored) is None) == (not blobs)


@given(contents)
def test_a_reference_goes_on_from_event_to_event_as_it_is(value: Any) -> None:
    blobs: dict[str, bytes] = {}
    stored = offload(seal(value), blobs)
    again: dict[str, bytes] = {}
    assert offload(stored, again) == stored
    assert not again


@pytest.mark.parametrize("name", BODIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_event_of_any_type_comes_back(name: str, data: st.DataObject) -> None:
    body = data.draw(body_of(BODIES[name]))
    original = AgentEvent(
        id=data.draw(ids),
        tenant_id=data.draw(tenants),
        session_id=data.draw(texts.filter(_is_session)),
        task_id=data.draw(ids),
        priority=data.draw(st.sampled_from(["low", "normal", "high", "critical"])),
        source_agent_id="user",
        call_chain=("user", *data.draw(st.lists(agents, max_size=5))),
        parent_event_id=data.draw(st.none() | ids),
        at=data.draw(moments),
        body=body,
        position="7-1",
    )
    blobs: dict[str, bytes] = {}
    # As it travels: packed for Lua, and back as text.
    fields = dict(zip(FIELDS, unpack(pack({"f": encode(original, blobs)}))["f"], strict=True))
    back = decode(original.tenant_id, "7-1", fields)
    assert back.body == resolved(body, back.body, blobs)
    for name in ("id", "tenant_id", "session_id", "task_id", "priority", "call_chain", "parent_event_id", "at", "type"):
        assert getattr(back, name) == getattr(original, name)
    # Stored once more, it is the same entry.
    assert encode(back, {}) == encode(decode(original.tenant_id, "7-1", fields), {})
    assert [v if isinstance(v, str) else v.decode() for v in encode(back, {})] == list(fields.values())


moments = st.datetimes(
    datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC) | st.just(timezone(timedelta(hours=-7)))
)


def _is_session(text: str) -> bool:
    try:
        check_session_id(text)
    except InvalidInputError:
        return False
    return True


LIMITS = ("ge", "le", "min_length", "pattern")
BY_VALIDATOR = {check_agent_id: agents, check_tenant_id: tenants}


def body_of(kind: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Models of a kind with any values that it allows. Contents are sealed, as they are where they enter."""
    hints = get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{name: values_of(hints[name]) for name in kind.model_fields})


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Any values of a field's type, within the limits that are part of the type."""
    if annotation is Any:
        return contents.map(seal)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _limited(arguments[0], arguments[1:])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, UnionType):
        return st.one_of(*map(values_of, arguments))
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(texts, values_of(arguments[1]), max_size=3)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return body_of(annotation)
    return PLAIN[annotation]


PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: texts,
    int: st.integers(-(2**53), 2**53),
    bool: st.booleans(),
    float: st.floats(allow_nan=False),
    datetime: moments,
    type(None): st.none(),
}


def _limited(annotation: Any, metadata: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    found: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, AfterValidator):
            return BY_VALIDATOR[item.func]  # type: ignore[index]  # only ids have validators of their own
        for limit in getattr(item, "metadata", ()):
            found |= {
                name: getattr(limit, name) for name in ("ge", "le", "min_length", "pattern") if hasattr(limit, name)
            }
    if annotation is int:
        return st.integers(found["ge"], found["le"])
    if annotation is float:
        return st.floats(found["ge"], found["le"])
    if found.get("pattern"):
        return st.from_regex(found["pattern"].removeprefix("^").removesuffix("$"), fullmatch=True)
    return texts.filter(lambda text: len(text) >= found.get("min_length", 0))


def resolved(body: EventBody, back: EventBody, blobs: dict[str, bytes]) -> EventBody:
    """`body`, with references where `back` has them, each checked to lead to what was there."""
    changes: dict[str, Any] = {}
    for path in body.contents:
        name, _, key = path.partition(".")
        was, now = getattr(body, name), getattr(back, name)
        if not key:
            changes[name] = _same_content(was, now, blobs)
        elif isinstance(was, BaseModel):
            changes[name] = was.model_copy(update={key: _same_content(getattr(was, key), getattr(now, key), blobs)})
        elif was is not None:
            changes[name] = {k: _same_content(v, now[k], blobs) for k, v in was.items()}
    return body.model_copy(update=changes)


def _same_content(was: Any, now: Any, blobs: dict[str, bytes]) -> Any:
    if blob_of(now) is None:
        return was
    assert resolve(now, blobs) == unseal(was)
    return now


# Also tenants who are called what a shard's own keys are called.
named = tenants | st.sampled_from(["ready", "bell", "leases", "turn", "log"])
READERS = ("decider", "projector", "worker", "agent:log", "agent:writer")


@given(named, named, st.integers(1, 300), st.text(string.hexdigits, min_size=64, max_size=64))
def test_no_two_tenants_share_a_key_and_all_of_a_tenant_are_on_one_node(
    one: str, other: str, shards: int, sha: str
) -> None:
    keys = Keys(shards)

    def all_of(tenant: str) -> list[str]:
        made = [keys.log, keys.readers, keys.parked, keys.done]
        return [*(key(tenant) for key in made), keys.blob(tenant, sha)]

    slots = {key_slot(key.encode()) for key in (*all_of(one), keys.leases(keys.shard_of(one)))}
    assert len(slots) == 1
    assert all(key.startswith(keys.prefixes[keys.shard_of(one)] + ":") for key in all_of(one))
    assert all(key.startswith(keys.prefix(one) + ":") for key in all_of(one))
    of_shards = {
        *(keys.ready(n, reader) for n in range(shards) for reader in READERS),
        *(keys.bell(n, reader) for n in range(shards) for reader in READERS),
        *(keys.leases(n) for n in range(shards)),
    }
    assert not set(all_of(one)) & of_shards
    if one != other:
        assert not set(all_of(one)) & set(all_of(other))
        # Nor does one tenant's name reach into the other's keys.
        assert not any(key.startswith(keys.prefix(one) + ":") for key in all_of(other))


@given(st.text(max_size=70))
def test_a_tenant_id_is_taken_or_refused_and_never_changed(text: str) -> None:
    try:
        assert check_tenant_id(text) == text
    except InvalidInputError:
        return
    assert text.isascii()
    assert text == text.lower()
    assert not set(text) & set("{}:|>*?[]\\ \t\n\r\x00")
    assert Keys(16).log(text).count(":") == 3
    assert Keys(16).log(text).count("{") == 1


@given(st.lists(texts | st.integers(), max_size=5), st.lists(texts | st.integers(), max_size=5))
def test_different_causes_give_different_ids(one: list[Any], other: list[Any]) -> None:
    assume([str(part) for part in one] != [str(part) for part in other])
    # The separator of causes is a control character; ids, numbers and names have none.
    assume("\x1f" not in "".join(map(str, one + other)))
    assume(any(map(str, one)) and any(map(str, other)))
    assert derived_id(*one) != derived_id(*other)


counts = st.integers(0, 2**53)


@given(st.builds(TokenCounts, **dict.fromkeys(TokenCounts.model_fields, counts)), st.decimals(0, 1, places=18))
def test_money_is_printed_without_loss(tokens: TokenCounts, rate: Decimal) -> None:
    cost = rate * tokens.total
    assert Decimal(plain(cost)) == cost
    assert "E" not in plain(cost)


@given(texts, texts, json_values)
def test_what_a_new_task_takes_can_be_stored(session: str, text: str, value: Any) -> None:
    try:
        task = NewTask(tenant="acme", session=session, text=text, data={"value": value})
    except ValidationError:
        assume(False)
    event = AgentEvent(
        id="e",
        tenant_id=task.tenant,
        session_id=task.session,
        task_id="t",
        source_agent_id="user",
        call_chain=("user",),
        at=datetime.now(UTC),
        body=TaskSubmitted(task_type=task.type, text=task.text, data=seal(task.data)),
    )
    blobs: dict[str, bytes] = {}
    fields = dict(zip(FIELDS, unpack(pack({"f": encode(event, blobs)}))["f"], strict=True))
    back = decode("acme", "1-1", fields).body
    assert isinstance(back, TaskSubmitted)
    assert resolve(back.text, blobs) == task.text
    assert resolve(back.data, blobs) == task.data
