"""The yardstick: the same function calls, driven by a bare loop over redis-py.

Each task is what the measured team makes of it: a submission, a route, two runs with one LLM attempt each, a handoff,
an end. Eleven facts of the same sizes go through the same append, lease, commit, take, record and settle. What is left
out is everything between the calls: no FastStream, no pydantic, no supervisor, no agents, no waiter. The ids are put
into prepared facts by string replacement.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgpack

from bench.team import ANSWER, TEXT
from handlers.supervisor import WANTED
from schemas.bodies import (
    AgentCompleted,
    AgentStarted,
    EventBody,
    HandoffAccepted,
    HandoffProposed,
    LlmAttempted,
    TaskCompleted,
    TaskRouted,
    TaskSubmitted,
)
from schemas.event import AgentEvent, encode
from schemas.handoff import HandoffProposal
from schemas.money import TokenCounts
from streams.connection import Streams
from streams.wire import MAX_ITEMS_PER_CALL, MAX_LEASES_PER_CALL

WORKER = "yardstick-1-abcdef"
_CALL = "c" * 24
_CHAIN = ("user", "supervisor", "researcher")
_AT = datetime(2026, 1, 1, tzinfo=UTC)
_NUMBERS = itertools.count(time.time_ns())

Fact = list[str | bytes]


def _proposal() -> HandoffProposal:
    return HandoffProposal(
        source_agent_id="researcher",
        target_agent_id="writer",
        tenant_id="acme",
        payload_type="research_result",
        content={"facts": ANSWER},
        confidence=1.0,
        call_chain=_CHAIN,
    )


def _attempted(agent: str, prompt: str) -> LlmAttempted:
    return LlmAttempted(
        call_id=_CALL,
        ordinal=0,
        attempt=1,
        delivery=1,
        agent_id=agent,
        tier="fast",
        requested_model="openai/gpt-4o-mini",
        answered_model="openai/gpt-4o-mini",
        params={"temperature": 0},
        request_hash=_CALL,
        request={"messages": [{"role": "system", "content": "Find the facts."}, {"role": "user", "content": prompt}]},
        response={"text": ANSWER, "finish_reason": "stop"},
        status="ok",
        provider_response_id=f"chatcmpl-{_CALL}",
        http_status=200,
        started_at=_AT,
        ended_at=_AT,
        duration_us=120,
        tokens=TokenCounts(input_uncached=32, cache_read=16, output_text=28, output_reasoning=8),
        tokens_source="provider",
        rates=dict.fromkeys(
            ("input_uncached", "cache_read", "cache_write", "output_text", "output_reasoning"), "0.00000015"
        ),
        price_table="0" * 64,
        cost_usd="0.0000276",
        cost_status="priced",
        reported_cost_usd="0.00002",
    )


def _fact(body: EventBody, source: str) -> Fact:
    event = AgentEvent(
        id=_CALL,
        tenant_id="acme",
        session_id="session-1",
        task_id=_CALL,
        source_agent_id=source,
        call_chain=(*_CHAIN, source),
        parent_event_id=_CALL,
        at=_AT,
        body=body,
    )
    return encode(event, {})


def _run_facts(agent: str, prompt: str, ends: Sequence[EventBody]) -> list[Fact]:
    started = AgentStarted(agent_id=agent, call_id=_CALL, delivery=1, worker=WORKER)
    return [_fact(body, agent) for body in (started, _attempted(agent, prompt), *ends)]


def _completed(agent: str, *, handed_over: bool) -> AgentCompleted:
    result = None if handed_over else {"reply": ANSWER}
    return AgentCompleted(
        agent_id=agent, call_id=_CALL, delivery=1, result=result, handed_over=handed_over, duration_us=900
    )


class _Script:
    """The facts of one task, ready to have their ids put in."""

    submitted = _fact(TaskSubmitted(task_type="task", text=TEXT), "user")
    routed = _fact(
        TaskRouted(agent_id="researcher", call_id=_CALL, routed_by="rules", confidence=1.0, reasoning="rule to_a"),
        "supervisor",
    )
    proposed = HandoffProposed(call_id=_CALL, payload=_proposal(), given=("1760000000000-0",))
    runs = {
        "researcher": _run_facts("researcher", TEXT, [_completed("researcher", handed_over=True), proposed]),
        "writer": _run_facts("writer", ANSWER, [_completed("writer", handed_over=False)]),
    }
    accepted = _fact(
        HandoffAccepted(
            source_agent_id="researcher",
            target_agent_id="writer",
            payload_type="research_result",
            strictness="strict",
            checks=("structural",),
            call_id=_CALL,
        ),
        "supervisor",
    )
    done = _fact(
        TaskCompleted(
            result={"reply": ANSWER},
            routed_by="rules",
            agent_results={"researcher": {"facts": ANSWER}, "writer": {"reply": ANSWER}},
        ),
        "supervisor",
    )
    call = _proposal().model_dump_json().encode() + TEXT.encode()
    state = 2 * _proposal().model_dump_json().encode() + TEXT.encode()


def _filled(fact: Fact, task: str, call: str, ordinal: int) -> Fact:
    filled = list(fact)
    filled[0] = f"{task[:-2]}{ordinal:02x}"
    filled[4] = task
    filled[8] = filled[0] if ordinal else ""
    body = filled[10]
    assert isinstance(body, bytes)
    filled[10] = body.replace(_CALL.encode(), call.encode())
    return filled


class Yardstick:
    """Runs tasks of `tenants` on a log that nobody else works on, in two lanes: one prepares while Redis serves the
    other."""

    LANES = 2

    def __init__(self, streams: Streams, tenants: Sequence[str]) -> None:
        self._redis = streams.redis
        self._keys = streams.keys
        self._tenants: list[list[str]] = [[] for _ in range(self.LANES)]
        for tenant in tenants:
            self._tenants[self._keys.shard_of(tenant) % self.LANES].append(tenant)
        self._shards = [range(lane, self._keys.shards, self.LANES) for lane in range(self.LANES)]
        self.done = 0

    async def run(self, *, in_flight: int, seconds: float = 1e9, tasks: int = 10**9) -> float:
        """Tasks a second, with `in_flight` at once, for so long or so many."""
        self.done = 0
        clock = time.perf_counter()
        lanes = [lane for lane in range(self.LANES) if self._tenants[lane]]
        share = max(1, in_flight // len(lanes))
        await asyncio.gather(*(self._lane(n, share, clock + seconds, tasks // len(lanes)) for n in lanes))
        return self.done / (time.perf_counter() - clock)

    async def _lane(self, lane: int, in_flight: int, until: float, tasks: int) -> None:
        tenants = itertools.cycle(self._tenants[lane])
        open_tasks, started = 0, 0
        while True:
            new = 0 if time.perf_counter() > until else min(in_flight - open_tasks, tasks - started)
            if new == 0 and open_tasks == 0:
                return
            await self._append([next(tenants) for _ in range(new)])
            ended = await self._decide(lane)
            await self._work(lane)
            started += new
            open_tasks += new - ended
            self.done += ended

    async def _append(self, tenants: Sequence[str]) -> None:
        items: dict[int, list[Any]] = {}
        for tenant in tenants:
            task = f"{next(_NUMBERS):022x}00"
            item = {"tenant": tenant, "key": f"e.{task}", "fingerprint": "-", "ttl_ms": 86_400_000, "task": task,
                    "fact": _filled(_Script.submitted, task, task, 0), "blobs": []}  # fmt: skip
            items.setdefault(self._keys.shard_of(tenant), []).append(item)
        await self._send("append", items)

    async def _decide(self, lane: int) -> int:
        item = {"reader": "decider", "lease_ms": 10_000, "max_tenants": 64, "max_entries": 500, "states": True,
                "types": dict.fromkeys(WANTED, True)}  # fmt: skip
        leased = await self._send("lease", {shard: [item] for shard in self._shards[lane]})
        commits: dict[int, list[Any]] = {}
        ended = 0
        for shard, [reply] in leased.items():
            for tenant, epoch, start, end, entries, *_ in reply[0]:
                commit: dict[str, Any] = {"reader": "decider", "tenant": tenant, "epoch": epoch, "from": start,
                                          "to": end, "facts": [], "calls": [], "states": [], "ended": [],
                                          "notify": []}  # fmt: skip
                for _, fields in entries:
                    ended += _decided(commit, fields[3], fields[9], fields[13])
                commits.setdefault(shard, []).append(commit)
        await self._send("commit", commits)
        return ended

    async def _work(self, lane: int) -> None:
        wants = {"worker": WORKER, "lease_ms": 10_000, "wants": [("researcher", 32), ("writer", 32)]}
        taken = await self._send("take", {shard: [wants] for shard in self._shards[lane]})
        records: dict[int, list[Any]] = {}
        settles: dict[int, list[Any]] = {}
        for shard, [reply] in taken.items():
            for tenant, agent, call, delivery, *_ in reply[0]:
                task, first = f"{call[:-2]}00", 2 if agent == "researcher" else 7
                facts = [_filled(fact, task, call, first + n) for n, fact in enumerate(_Script.runs[agent])]
                token = {"tenant": tenant, "call": call, "worker": WORKER, "delivery": delivery}
                record = {"lease_ms": 10_000, "key": "0.1@1", "facts": facts[:2], "blobs": []}
                records.setdefault(shard, []).append(token | record)
                settles.setdefault(shard, []).append(token | {"facts": facts[2:], "blobs": []})
        await self._send("record", records)
        await self._send("settle", settles)

    async def _send(self, name: str, items: dict[int, list[Any]]) -> dict[int, list[Any]]:
        if not items:
            return {}
        sent = [(shard, item | {"at": self._keys.prefixes[shard]}) for shard, group in items.items() for item in group]
        most = MAX_LEASES_PER_CALL if name == "lease" else MAX_ITEMS_PER_CALL
        pipeline = self._redis.pipeline(transaction=False)
        for i in range(0, len(sent), most):
            packed = msgpack.packb([item for _, item in sent[i : i + most]], use_bin_type=False)
            pipeline.execute_command("FCALL", f"hw_{name}", 1, self._keys.prefixes[0], packed)
        replies = [value for reply in await pipeline.execute() for value in msgpack.unpackb(reply)]
        refused = [value for value in replies if isinstance(value, list) and value[:1] == ["error"]]
        if refused:
            raise RuntimeError(f"hw_{name} refused an item: {refused[0][1]}")
        by_shard: dict[int, list[Any]] = {shard: [] for shard in items}
        for (shard, _), value in zip(sent, replies, strict=True):
            by_shard[shard].append(value)
        return by_shard


def _decided(commit: dict[str, Any], kind: str, task: str, source: str) -> int:
    """Put what follows from an entry into `commit`. Returns 1 if it ends the task."""
    if kind == "task.submitted":
        call = f"{task[:-2]}a0"
        commit["facts"].append(_filled(_Script.routed, task, call, 1))
        commit["calls"].append((call, "researcher", 2, _Script.call))
        commit["states"].append((task, _Script.state))
    elif kind == "handoff.proposed":
        call = f"{task[:-2]}b0"
        commit["facts"].append(_filled(_Script.accepted, task, call, 6))
        commit["calls"].append((call, "writer", 2, _Script.call))
        commit["states"].append((task, _Script.state))
    elif kind == "agent.completed" and source == "writer":
        commit["facts"].append(_filled(_Script.done, task, task, 10))
        commit["notify"].append((task, len(commit["facts"])))
        commit["ended"].append(task)
        return 1
    return 0
