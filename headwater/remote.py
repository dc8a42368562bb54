"""A Headwater behind a URL, with the same methods as the one on this machine (`--url`, `--key`)."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import quote

import httpx
import orjson

from projections.costs import CostKey, CostRow, DecisionCosts
from projections.history import SeenEntry
from projections.projection import START, Position, format_position, parse_position
from schemas.errors import (
    AccessDeniedError,
    ConfigurationError,
    HeadwaterError,
    IdempotencyConflictError,
    InvalidInputError,
    NotFoundError,
    SettingError,
    UnavailableError,
)
from schemas.event import FIELDS
from schemas.task import Accepted, NewTask, TaskOutcome
from streams.parked import DeadLetter

PROBLEM = "application/problem+json"
WAIT_S = 30.0
READ_TIMEOUT_S = 90.0
STREAM_TIMEOUT_S = 45.0
"""Three heartbeats of the stream."""
RECONNECT_S = 1.0
MAX_RECONNECTS = 60
PAGE = 1000
MAX_CONNECTIONS = 64
_ERRORS: dict[int, type[HeadwaterError]] = {
    400: InvalidInputError,
    401: AccessDeniedError,
    403: AccessDeniedError,
    404: NotFoundError,
    408: UnavailableError,
    413: InvalidInputError,
    422: InvalidInputError,
    503: UnavailableError,
}


class RemoteHeadwater:
    """`async with RemoteHeadwater("https://headwater.example", key) as hw: await hw.submit(NewTask(…))`.

    Raises `SettingError` if the URL or the key is none. Every method may raise `UnavailableError` (nobody answers),
    `AccessDeniedError` (the key is not good, or not for this tenant) and `ConfigurationError` (what answers is no
    Headwater).
    """

    def __init__(self, url: str, key: str | None) -> None:
        parts = httpx.URL(url) if url.isascii() and url.isprintable() else httpx.URL()
        if parts.scheme not in ("http", "https") or not parts.host:
            raise SettingError(f"--url (HEADWATER_URL) {url!r} is not a URL such as https://headwater.example:8080")
        if not key:
            raise SettingError(
                f"{url} needs an API key: set HEADWATER_KEY or --key; 'headwater keys create' makes one, over there"
            )
        if not (key.isascii() and key.isprintable()):
            raise SettingError("the API key has characters that no key has: set HEADWATER_KEY again")
        self._url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=10, pool=None),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
        )

    async def __aenter__(self) -> "RemoteHeadwater":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    @property
    def dead_letters(self) -> "RemoteDeadLetters":
        """What could not be handled, of all tenants; every question names its tenant."""
        return RemoteDeadLetters(self)

    async def submit(self, task: NewTask) -> Accepted:
        """Accept a task. Raises `IdempotencyConflictError` when its key was used for another one."""
        body = task.model_dump(exclude_none=True)
        response = await self.request("POST", "/v1/tasks", task.tenant, json=body)
        return accepted_of(response.json())

    async def wait(self, accepted: Accepted) -> TaskOutcome:
        """Wait for the outcome of a task; bound it with `asyncio.timeout`."""
        while True:
            found = await self.task(accepted.tenant_id, accepted.task_id, wait_s=WAIT_S)
            if found is None:
                raise NotFoundError(f"tenant {accepted.tenant_id!r} has no task {accepted.task_id!r}")
            if found["status"] in ("completed", "failed", "cancelled"):
                kept = ("status", "result", "error", "call_chain", "routed_by", "decomposed", "agent_results")
                return TaskOutcome(
                    tenant_id=found["tenant"], task_id=found["task"], **{name: found[name] for name in kept}
                )

    async def task(self, tenant_id: str, task_id: str, *, wait_s: float = 0.0) -> dict[str, Any] | None:
        """A task as it stands, or None."""
        return await self._found(path_of("tasks", task_id), tenant_id, wait=wait_s or None)

    async def forks(self, tenant_id: str, task_id: str) -> dict[str, Any] | None:
        """The forks of a task with their costs and its own, or None."""
        return await self._found(path_of("tasks", task_id, "forks"), tenant_id)

    async def cancel(self, tenant_id: str, task_id: str, reason: str = "") -> str:
        """Ask for a task to be cancelled. Returns how it stood. Raises `NotFoundError` for an unknown one."""
        where = path_of("tasks", task_id, "cancel")
        response = await self.request("POST", where, tenant_id, json={"reason": reason}, accept=(409,))
        answer = response.json()
        return str(answer["task_status"] if response.status_code == 409 else answer["status"])

    async def session(self, tenant_id: str, session_id: str) -> dict[str, Any] | None:
        """A session, or None."""
        return await self._found(path_of("sessions", session_id), tenant_id)

    async def clear_session(self, tenant_id: str, session_id: str, *, reason: str = "") -> str:
        """Clear a session. Returns the event's position. Raises `NotFoundError` for an unknown one."""
        where = path_of("sessions", session_id)
        response = await self.request("DELETE", where, tenant_id, params={"reason": reason})
        return str(response.json()["position"])

    async def costs(
        self,
        *,
        by: CostKey,
        tenant_id: str | None = None,
        agent_id: str | None = None,
        days: int = 30,
        limit: int | None = None,
    ) -> list[CostRow]:
        """What was spent. Without a tenant: of the key's, or with an operator's key of all."""
        params = _given(by=by, agent=agent_id, days=days, limit=limit)
        answer = (await self.request("GET", "/v1/costs", tenant_id, params=params)).json()
        return [_cost_row(answer["by"], row) for row in answer["rows"]]

    async def decision_costs(self, tenant_id: str, event_id: str) -> DecisionCosts:
        """What an event cost with everything under it. Raises `NotFoundError` for an unknown one."""
        found = (await self.request("GET", path_of("costs", "decisions", event_id), tenant_id)).json()
        return DecisionCosts(
            tenant_id=found["tenant"],
            event_id=found["event"],
            type=found["type"],
            task_id=found["task"],
            at=found["at"],
            agents=[_cost_row("agent", row) for row in found["agents"]],
        )

    async def events(
        self,
        tenant_id: str,
        *,
        after: Position = START,
        session_id: str | None = None,
        task_id: str | None = None,
        follow: bool = False,
    ) -> AsyncIterator[SeenEntry]:
        """The tenant's log after a position; with `follow`, new entries as they come, also over broken connections."""
        which = _given(session=session_id, task=task_id)
        more = True
        while more:
            params = which | {"after": format_position(after), "limit": PAGE}
            page = (await self.request("GET", "/v1/events", tenant_id, params=params)).json()
            bad = [SeenEntry(parse_position(e["position"]), {}, e["error"]) for e in page["unreadable"]]
            for entry in sorted([*map(_entry, page["events"]), *bad], key=lambda entry: entry.position):
                yield entry
            after, more = parse_position(page["last"]), page["next"] is not None
        failures = 0
        while follow:
            try:
                async for entry in self._stream(tenant_id, which, after):
                    after, failures = entry.position, 0
                    yield entry
            except UnavailableError:
                failures += 1
                if failures > MAX_RECONNECTS:
                    raise
            await asyncio.sleep(RECONNECT_S)

    async def _stream(self, tenant_id: str, which: dict[str, Any], after: Position) -> AsyncIterator[SeenEntry]:
        headers = {"Headwater-Tenant": tenant_id, "Last-Event-ID": format_position(after)}
        timeout = httpx.Timeout(STREAM_TIMEOUT_S, connect=10)
        try:
            async with self._http.stream(
                "GET", "/v1/events/stream", params=which, headers=headers, timeout=timeout
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    self._refused(response)
                kind, data = "", ""
                async for line in response.aiter_lines():
                    name, _, value = line.partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "data":
                        data = value
                    elif not line and data:
                        yield _entry(orjson.loads(data)) if not kind else _unreadable(orjson.loads(data))
                        kind, data = "", ""
        except httpx.TransportError as error:
            raise self._unavailable(error) from error

    async def _found(self, path: str, tenant_id: str, **params: Any) -> dict[str, Any] | None:
        response = await self.request("GET", path, tenant_id, params=_given(**params), accept=(404,))
        if response.status_code == 404:
            return None
        found: dict[str, Any] = response.json()
        return found

    async def request(
        self, method: str, path: str, tenant_id: str | None, *, accept: tuple[int, ...] = (), **more: Any
    ) -> httpx.Response:
        """Ask, and return the answer if it is a success or one of `accept`; else raise what it says."""
        headers = {} if tenant_id is None else {"Headwater-Tenant": tenant_id}
        try:
            response = await self._http.request(method, path, headers=headers, **more)
        except httpx.TransportError as error:
            raise self._unavailable(error) from error
        is_ours = response.headers.get("content-type", "").partition(";")[0] in (PROBLEM, "application/json")
        if not is_ours or not (response.is_success or response.status_code in accept):
            self._refused(response)
        return response

    def _refused(self, response: httpx.Response) -> NoReturn:
        kind = response.headers.get("content-type", "nothing").partition(";")[0]
        if kind != PROBLEM:
            raise ConfigurationError(
                f"{self._url} answered {response.status_code} with {kind}, which is not what a Headwater says: "
                "is --url (HEADWATER_URL) right?"
            )
        problem = response.json()
        detail = str(problem["detail"])
        if problem["type"].endswith(":idempotency-conflict"):
            raise IdempotencyConflictError(detail)
        raise _ERRORS.get(response.status_code, HeadwaterError)(detail)

    def _unavailable(self, error: httpx.TransportError) -> UnavailableError:
        return UnavailableError(
            f"no Headwater answers at {self._url} ({str(error) or type(error).__name__}): is it running there, and is "
            "--url (HEADWATER_URL) right?"
        )


class RemoteDeadLetters:
    """Dead letters behind a URL; as `streams.parked.DeadLetters`."""

    def __init__(self, remote: RemoteHeadwater) -> None:
        self._request = remote.request

    async def page(self, tenant_id: str, *, after: str = "0-0", limit: int = 100) -> list[DeadLetter]:
        """Up to `limit` after an id, oldest first."""
        params = {"after": after, "limit": limit}
        answer = (await self._request("GET", "/v1/dead-letters", tenant_id, params=params)).json()
        return [_letter(value) for value in answer["dead_letters"]]

    async def show(self, tenant_id: str, parked_id: str) -> DeadLetter:
        """One of them. Raises `NotFoundError` if it is not there (any more)."""
        return await self._one("GET", tenant_id, parked_id)

    async def redrive(self, tenant_id: str, parked_id: str) -> DeadLetter:
        """Have it handled again. Raises `NotFoundError` if somebody else did, or dropped it."""
        return await self._one("POST", tenant_id, parked_id, "redrive")

    async def drop(self, tenant_id: str, parked_id: str, *, reason: str = "") -> DeadLetter:
        """Give it up. Raises `NotFoundError` if somebody else did, or had it redriven."""
        return await self._one("DELETE", tenant_id, parked_id, params={"reason": reason})

    async def _one(self, method: str, tenant_id: str, parked_id: str, *what: str, **more: Any) -> DeadLetter:
        where = path_of("dead-letters", parked_id, *what)
        return _letter((await self._request(method, where, tenant_id, **more)).json())


def _letter(value: dict[str, Any]) -> DeadLetter:
    ids = {f"{name}_id": value.pop(name) for name in ("tenant", "event", "session", "task", "call")}
    return DeadLetter(**value | ids | {"parked_at": datetime.fromisoformat(value["parked_at"])})


def accepted_of(value: dict[str, Any]) -> Accepted:
    """From what `POST /v1/tasks` and the forking of a task answer."""
    ids = {f"{name}_id": value[name] for name in ("tenant", "session", "task")}
    return Accepted(**ids, position=value["position"], duplicate=value["duplicate"])


def path_of(*parts: str) -> str:
    """The path under /v1 of these parts, whatever is in them."""
    # A dot alone would be taken for a folder.
    return "/v1/" + "/".join(quote(part, safe="").replace(".", "%2E") for part in parts)


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _entry(event: dict[str, Any]) -> SeenEntry:
    fields = {name: str(event[name]) for name in FIELDS if name != "body"}
    return SeenEntry(parse_position(event["position"]), {**fields, "body": orjson.dumps(event["body"]).decode()})


def _unreadable(entry: dict[str, Any]) -> SeenEntry:
    return SeenEntry(parse_position(entry["position"]), {}, str(entry["error"]))


def _cost_row(by: str, row: dict[str, Any]) -> CostRow:
    counts = {name: row[name] for name in ("attempts", "failed", "unpriced", "unknown")}
    return CostRow(key=str(row[by]), cost_usd=Decimal(row["cost_usd"]), **counts, **row["tokens_by_type"])
