"""The log of a Headwater behind a URL, as a recording: what replay reads, and what that Headwater says of it itself."""

from collections.abc import AsyncIterator, Collection
from typing import Any

from headwater.remote import RemoteHeadwater, path_of
from headwater.replay.recording import Fields
from headwater.replay.verify import Difference, Report
from projections.history import Spent
from projections.projection import START, Position, format_position
from schemas.errors import InvalidInputError


class RemoteHistory:
    """Reads a tenant's log over HTTP; as `headwater.history.History` and `headwater.replay.recording.FileRecording`.

    Entries that are no events are left out: over HTTP their fields are not told.
    """

    def __init__(self, remote: RemoteHeadwater) -> None:
        self._remote = remote

    async def tenants(self) -> list[str]:
        """Raises `InvalidInputError`: over HTTP, a question names its tenant."""
        raise InvalidInputError("name the tenant with --tenant: over a URL, a log is read one tenant at a time")

    async def entries(
        self,
        tenant_id: str,
        *,
        task_id: str | None = None,
        session_id: str | None = None,
        types: Collection[str] | None = None,
        after: Position = START,
    ) -> AsyncIterator[tuple[str, Fields]]:
        """(position, fields) of a tenant's entries in log order, a page at a time."""
        async for entry in self._remote.events(tenant_id, after=after, session_id=session_id, task_id=task_id):
            if entry.error is None and (types is None or entry.fields["type"] in types):
                yield format_position(entry.position), entry.fields

    async def blob(self, tenant_id: str, sha256: str) -> bytes:
        """A large content. Raises `NotFoundError`."""
        return (await self._remote.request("GET", path_of("blobs", sha256), tenant_id)).content

    async def spent_to(self, tenant_id: str, upto: Position) -> tuple[dict[str, Spent], Position]:
        """Nothing is known without the log: `moment` asks the one who has the ledger."""
        return {}, START

    async def moment(self, tenant_id: str, task_id: str, at: str) -> dict[str, Any]:
        """How things stood, as `headwater.replay.moments.moment` says it. Raises `NotFoundError`."""
        response = await self._remote.request("GET", path_of("tasks", task_id, "story"), tenant_id, params={"at": at})
        found: dict[str, Any] = response.json()
        return found

    async def verify(self, tenant_id: str, task_id: str) -> Report:
        """What the team over there would decide now, as `headwater.replay.verify.verify` says it."""
        found = (await self._remote.request("GET", path_of("tasks", task_id, "verify"), tenant_id)).json()
        differences = [
            Difference(
                tenant_id=one["tenant"],
                task_id=one["task"],
                event_id=one["event"],
                cause_id=one["cause"],
                **{name: one[name] for name in ("position", "pointer", "recorded", "now")},
            )
            for one in found.pop("differences")
        ]
        return Report(**found, differences=differences)
