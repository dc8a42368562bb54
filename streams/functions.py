"""The typed face of the function library `headwater.lua`: one method a function."""

import asyncio
import math
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog

from schemas.errors import StaleLeaseError, UnavailableError
from streams.keys import AGENTS
from streams.pipe import RedisClient
from streams.wire import FunctionCalls, FunctionError, all_of

__all__ = [
    "Commit",
    "Delivery",
    "Fields",
    "FunctionError",
    "Functions",
    "NewCall",
    "RedisClient",
    "Retry",
    "ShardBatches",
    "TenantBatch",
]

log = structlog.get_logger(__name__)

RETRY_S = 0.2
"""While Redis is away, what a call has to say is tried again this often, until its lease ends."""

Fields = list[str | bytes]
"""The values of one log entry, in the order of `schemas.event.FIELDS`."""


@dataclass(slots=True)
class TenantBatch:
    """What a log reader leased of one tenant: entries after `start`, up to and including `end`."""

    shard: int
    tenant_id: str
    epoch: int
    start: str
    end: str
    entries: list[tuple[str, list[str]]]
    """(position, flat list of field names and values) per entry."""
    states: dict[str, str]
    behind: list[tuple[str, str]] = field(default_factory=list)
    """(task, position) of entries that are not in the batch: they wait behind deferred ones of their task."""
    tried: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Task → (attempts so far, number of its entries here). Not empty: the batch is of deferred entries."""


class ShardBatches(list[TenantBatch]):
    """What was leased on one shard."""

    due_in_ms: int | None = None
    """When something deferred is due on the shard, None if nothing is deferred."""


@dataclass(slots=True)
class Retry:
    """An entry that could not be handled: tried again after `delay_ms`, or with None when a person says so."""

    task_id: str
    attempts: int
    delay_ms: int | None
    position: str


@dataclass(slots=True)
class NewCall:
    """A call to put on a tenant's queue for `agent_id`; `rank` 0 goes first."""

    call_id: str
    agent_id: str
    rank: int
    body: bytes


@dataclass(slots=True)
class Commit:
    """Everything a log reader makes of one batch. `states` maps an open task to its new state."""

    facts: list[Fields] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    calls: list[NewCall] = field(default_factory=list)
    states: dict[str, bytes] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    parked: list[Fields] = field(default_factory=list)
    notify: list[tuple[str, int]] = field(default_factory=list)
    """(task, 0-based index of its terminal fact in `facts`)"""
    cancels: list[str] = field(default_factory=list)
    """Calls that are not wanted any more: one that waits is dropped, one that runs is told."""
    retries: list[Retry] = field(default_factory=list)
    behind: list[tuple[str, str]] = field(default_factory=list)
    """(task, position) of entries that follow in the batch on one in `retries`."""
    tried: dict[str, int] = field(default_factory=dict)
    """For a batch of deferred entries: task → how many are done with, when it is not all of them."""
    back_to: str | None = None
    """Where the reader is to go on after, if not after the batch: it lacks what stands before it."""

    def add(self, more: "Commit") -> None:
        """Take over what was made of one more event."""
        self.notify += [(task, index + len(self.facts)) for task, index in more.notify]
        self.facts += more.facts
        self.blobs |= more.blobs
        self.calls += more.calls
        self.cancels += more.cancels


@dataclass(slots=True)
class Delivery:
    """One delivery of a call to a worker; with `delivery`, the fencing token of all it writes."""

    shard: int
    tenant_id: str
    agent_id: str
    call_id: str
    delivery: int
    worker: str
    body: str
    steps: dict[str, str]
    """Step key → position in the log of what an earlier delivery recorded."""
    cancelled: bool = False
    """Its task has ended: what runs is to stop, and to settle what it knows."""
    lease_ends_at: float = math.inf
    """Monotonic seconds until which the lease is held for certain, reckoned from when it was asked for."""

    settling: bool = False
    """Its settle is on its way, and decides itself whether the lease still held."""

    def lease_over(self) -> bool:
        """Is it unsure whether the lease is still held? Then nothing new may be begun."""
        return time.monotonic() >= self.lease_ends_at


class Functions(FunctionCalls):
    """Calls the function library. One per process; safe to share between tasks of one event loop."""

    async def append(
        self,
        tenant_id: str,
        *,
        key: str,
        fingerprint: str,
        ttl_ms: int,
        task_id: str,
        fact: Fields,
        blobs: dict[str, bytes],
    ) -> tuple[str, str, str]:
        """Append a producer's fact once per `key`. Returns ("new" | "duplicate" | "conflict", position, task id)."""
        item = {
            "tenant": tenant_id,
            "key": key,
            "fingerprint": fingerprint,
            "ttl_ms": ttl_ms,
            "task": task_id,
            "fact": fact,
            "blobs": list(blobs.items()),
        }
        outcome, position, task = await self._call("append", self.keys.shard_of(tenant_id), item)
        return outcome, position, task

    async def lease(
        self,
        shards: Sequence[int],
        reader: str,
        *,
        lease_ms: int,
        max_tenants: int,
        max_entries: int,
        types: Iterable[str] | None = None,
        states: bool = False,
    ) -> list[ShardBatches]:
        """For each shard, its next ready tenants for `reader`, each with a batch to commit within `lease_ms`."""
        item: dict[str, Any] = {
            "reader": reader,
            "lease_ms": lease_ms,
            "max_tenants": max_tenants,
            "max_entries": max_entries,
            "states": states,
        }
        if types is not None:
            item["types"] = dict.fromkeys(types, True)
        replies = await all_of([self._submit("lease", shard, item) for shard in shards])
        leased = []
        for shard, (batches, damaged, due_in_ms) in zip(shards, replies, strict=True):
            _report(reader, damaged)
            leased.append(found := ShardBatches(_batch(shard, batch) for batch in batches))
            found.due_in_ms = None if due_in_ms < 0 else due_in_ms
        return leased

    async def commit(self, reader: str, commits: Sequence[tuple[TenantBatch, Commit]]) -> list[bool]:
        """Write what came of each batch and move the reader past it. False: the lease was lost, nothing written.

        Raises:
            FunctionError: a batch was refused, because of a damaged key or a defect, and wrote nothing. Each one is
                logged; the other batches are written.
        """
        futures = [
            self._submit("commit", batch.shard, {
                "reader": reader, "tenant": batch.tenant_id, "epoch": batch.epoch, "from": batch.start,
                "to": commit.back_to or batch.end, "facts": commit.facts, "blobs": list(commit.blobs.items()),
                "calls": [(c.call_id, c.agent_id, c.rank, c.body) for c in commit.calls],
                "states": list(commit.states.items()), "ended": commit.ended, "parked": commit.parked,
                "notify": [(task, index + 1) for task, index in commit.notify], "cancels": commit.cancels,
                "tried": [(task, commit.tried.get(task, count)) for task, (_, count) in batch.tried.items()],
                "retries": [(r.task_id, r.attempts, -1 if r.delay_ms is None else r.delay_ms, r.position)
                            for r in commit.retries],
                "behind": batch.behind + commit.behind,
            })
            for batch, commit in commits
        ]  # fmt: skip
        await asyncio.gather(*futures, return_exceptions=True)
        for (batch, _), future in zip(commits, futures, strict=True):
            if isinstance(error := future.exception(), FunctionError):
                log.error("commit_refused", reader=reader, tenant=batch.tenant_id, error=str(error))
        return [future.result() == 1 for future in futures]

    async def take(
        self,
        wants: Sequence[tuple[int, Sequence[tuple[str, int]]]],
        worker: str,
        *,
        lease_ms: int,
        taken_up: Collection[str] = (),
    ) -> list[list[Delivery]]:
        """For each (shard, [(agent, count), …]), up to `count` calls for each agent, in fair order over tenants.

        Another worker is woken for what is left, but not for agents in `taken_up`, which nobody can take more for.
        """
        lease_ends_at = _from_now(lease_ms)
        futures = [
            self._submit("take", shard, {
                "worker": worker, "lease_ms": lease_ms,
                "wants": [(agent, count, int(agent not in taken_up)) for agent, count in agents],
            })
            for shard, agents in wants
        ]  # fmt: skip
        replies = await all_of(futures)
        for _, damaged in replies:
            _report("worker", damaged)
        return [
            [
                Delivery(
                    shard,
                    tenant,
                    agent,
                    call,
                    number,
                    worker,
                    body,
                    dict(zip(steps[::2], steps[1::2], strict=True)),
                    cancelled == 1,
                    lease_ends_at,
                )
                for tenant, agent, call, number, body, steps, cancelled in taken
            ]
            for (shard, _), (taken, _) in zip(wants, replies, strict=True)
        ]

    async def record(
        self,
        delivery: Delivery,
        *,
        lease_ms: int,
        key: str,
        facts: list[Fields],
        blobs: dict[str, bytes],
        spent: tuple[str, int] | None = None,
    ) -> str:
        """Append facts of a running call under a step key, once; the last fact is the step's. Renews the lease.

        `spent` (task, picodollars) is what the step cost, for a task with a budget.
        Returns the position of the step's fact.

        Raises:
            StaleLeaseError: the call was given to another worker, or the lease ended. Nothing was written.
        """
        item = self._token(delivery) | {"lease_ms": lease_ms, "key": key, "facts": facts, "blobs": list(blobs.items())}
        if spent is not None:
            # As text: Lua's numbers are exact up to 2^53 only.
            item["spent"] = (spent[0], str(spent[1]))
        lease_ends_at = _from_now(lease_ms)
        _, position = await self._fenced("record", delivery, item)
        delivery.lease_ends_at = max(delivery.lease_ends_at, lease_ends_at)
        return str(position)

    async def settle(
        self, delivery: Delivery, *, facts: list[Fields], blobs: dict[str, bytes], parked: Sequence[Fields] = ()
    ) -> None:
        """End a call with its last facts. Raises `StaleLeaseError`: another worker has it, nothing was written."""
        delivery.settling = True
        item = self._token(delivery) | {"facts": facts, "blobs": list(blobs.items()), "parked": parked}
        await self._fenced("settle", delivery, item)

    async def renew(self, deliveries: Sequence[Delivery], *, lease_ms: int) -> list[bool]:
        """Keep calls for another `lease_ms`. False: that lease was lost. Marks those that were cancelled."""
        lease_ends_at = _from_now(lease_ms)
        futures = [self._submit("renew", d.shard, self._token(d) | {"lease_ms": lease_ms}) for d in deliveries]
        replies = await all_of(futures)
        for delivery, reply in zip(deliveries, replies, strict=True):
            delivery.cancelled = delivery.cancelled or reply == ["cancelled"]
            delivery.lease_ends_at = -math.inf if reply == ["stale"] else max(delivery.lease_ends_at, lease_ends_at)
        return [reply != ["stale"] for reply in replies]

    async def reclaim(self, shards: Sequence[int], *, max_calls: int = 100) -> int:
        """Put calls whose lease ended back into their queues, up to `max_calls` a shard. Returns how many."""
        replies = await all_of([self._submit("reclaim", shard, {"max": max_calls}) for shard in shards])
        return sum(count for count, _ in replies)

    async def sweep(self, shards: Sequence[int], agents: Sequence[str], *, max_calls: int = 100) -> list[list[str]]:
        """`reclaim`, and for each shard those of `agents` that calls are waiting for."""
        item = {"max": max_calls, "agents": agents}
        return [waiting for _, waiting in await all_of([self._submit("reclaim", shard, item) for shard in shards])]

    async def slots(
        self, worker: str, wanted: Sequence[tuple[str, int, int, int]], *, lease_ms: int
    ) -> list[tuple[int, int]]:
        """Say for each (agent, busy, wanted, limit) how many runs at once `worker` wants to have in all.

        Returns for each (granted in all, left for others). The loan ends after `lease_ms` unless it is said again.
        """
        item = {"worker": worker, "lease_ms": lease_ms, "agents": wanted}
        (reply,) = await all_of([self._submit_to("slots", AGENTS, item)])
        return [(granted, left) for granted, left in reply]

    async def resolve(
        self, tenant_id: str, parked_id: str, how: Literal["redrive", "drop"], *, fact: Fields, blobs: dict[str, bytes]
    ) -> bool:
        """Redrive or drop a dead letter and append the fact of it. False: it is not there (any more)."""
        item = {"tenant": tenant_id, "id": parked_id, "how": how, "facts": [fact], "blobs": list(blobs.items())}
        return bool(await self._call("resolve", self.keys.shard_of(tenant_id), item) == 1)

    async def trim(
        self, tenant_id: str, *, upto: str, max_entries: int = 5_000, max_blobs: int = 1_000
    ) -> tuple[int, str, list[str]]:
        """Remove the oldest entries before position `upto` that no reader, deferred entry or open call needs.

        For who knows that they are archived. Returns how many were removed (0: there are no more), the position before
        which entries may be removed, and hashes of contents that no entry since then has brought along.
        """
        item = {"tenant": tenant_id, "upto": upto, "max": max_entries, "max_blobs": max_blobs}
        removed, bound, unused = await self._call("trim", self.keys.shard_of(tenant_id), item)
        return removed, bound, unused

    async def rewind(self, tenant_id: str, reader: str, *, start: str, back_to: str) -> bool:
        """Have a reader that stands at `start` read again after `back_to`.

        False: it does not stand there any more, or reads just now.
        """
        item = {"tenant": tenant_id, "reader": reader, "from": start, "to": back_to}
        return bool(await self._call("rewind", self.keys.shard_of(tenant_id), item) == 1)

    async def forget(self, tenant_id: str, hashes: Sequence[str], *, bound: str) -> int:
        """Remove contents, unless an entry since `bound` has brought them along. Returns how many there were."""
        item = {"tenant": tenant_id, "bound": bound, "hashes": hashes}
        return int(await self._call("forget", self.keys.shard_of(tenant_id), item))

    @staticmethod
    def _token(delivery: Delivery) -> dict[str, Any]:
        return {"tenant": delivery.tenant_id, "call": delivery.call_id, "worker": delivery.worker,
                "delivery": delivery.delivery}  # fmt: skip

    async def _fenced(self, name: str, delivery: Delivery, item: dict[str, Any]) -> Any:
        while True:
            try:
                reply = await self._call(name, delivery.shard, item)
                break
            except UnavailableError:
                # Worth a wait: what would be written was done, and perhaps paid for. Written twice, it is one.
                if time.monotonic() + RETRY_S >= delivery.lease_ends_at:
                    raise
                await asyncio.sleep(RETRY_S)
        if reply == ["stale"]:
            raise StaleLeaseError(f"{name} of tenant {item['tenant']!r}: the lease is no longer held; nothing written")
        return reply

    async def _call(self, name: str, shard: int, item: dict[str, Any]) -> Any:
        return await self._submit(name, shard, item)


def _batch(shard: int, reply: Sequence[Any]) -> TenantBatch:
    tenant, epoch, start, end, entries, states, behind, tried = reply
    found = dict(zip(states[::2], states[1::2], strict=True))
    counts = {task: (attempts, count) for task, attempts, count in tried}
    return TenantBatch(shard, tenant, epoch, start, end, entries, found, [(t, p) for t, p in behind], counts)


def _report(reader: str, damaged: Sequence[tuple[str, str]]) -> None:
    for tenant, error in damaged:
        log.error("tenant_damaged", reader=reader, tenant=tenant, error=error)


def _from_now(lease_ms: int) -> float:
    return time.monotonic() + lease_ms / 1000
