"""Many tasks run again: which, how far they are, and how the forks compare with their origins.

Every fork has an idempotency key that follows from the cohort, the options and its origin. So a run that was
interrupted goes on where it stopped when it is started again: what exists is waited for, the rest is submitted.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from headwater.client import Headwater
from headwater.replay.compare import differences
from headwater.replay.fork import ForkOptions, fork_id_of, fork_task
from projections import queries
from projections.cohorts import Standing, members, standing
from schemas.errors import InvalidInputError
from schemas.ids import derived_id
from schemas.money import exact_sum, plain

AT_ONCE = 32
LOOK_S = 0.5
STATUSES = ("completed", "failed", "cancelled")
_AGO = re.compile(r"(\d{1,6})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}

Progress = Callable[[int, int, Decimal], None]
"""(forks that have ended, of how many, US dollars that the forks have cost so far)"""


@dataclass(frozen=True, slots=True)
class Cohort:
    """What the tasks of a cohort have in common. Forks never belong to one, nor tasks that have not ended."""

    text: str
    task_type: str | None = None
    since: datetime | None = None
    status: str | None = None
    session_id: str | None = None

    @classmethod
    def parse(cls, text: str, now: datetime | None = None) -> "Cohort":
        """From words such as `type=refund since=7d status=completed session=s1`; `since` may be a time, too.

        Raises:
            InvalidInputError: a word is none of these.
        """
        given: dict[str, str] = {}
        for word in text.split():
            name, equals, value = word.partition("=")
            if not (equals and value) or name not in ("type", "since", "status", "session") or name in given:
                raise InvalidInputError(
                    f"--cohort: {word!r} is not one of type=…, since=7d, status=…, session=…, each once"
                )
            given[name] = value
        status = given.get("status")
        if status is not None and status not in STATUSES:
            raise InvalidInputError(f"--cohort: status {status!r} is not one of {', '.join(STATUSES)}")
        since = _since(given["since"], now or datetime.now(UTC)) if "since" in given else None
        return cls(" ".join(sorted(text.split())), given.get("type"), since, status, given.get("session"))

    def lane(self, options: ForkOptions) -> str:
        """Where another team is served, for its forks."""
        return derived_id("lane", self.text, options.fingerprint)

    def key(self, options: ForkOptions, origin_id: str) -> str:
        """The idempotency key of the fork of one of its tasks."""
        return f"cohort.{derived_id('cohort', self.text, options.fingerprint, origin_id)}"


def _since(text: str, now: datetime) -> datetime:
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInputError(f"--cohort: since={text!r} is neither such as 7d, 12h or 30m nor a time") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Pair:
    """A task and its fork."""

    origin_id: str
    fork_id: str


async def choose(
    hw: Headwater, tenant_id: str, cohort: Cohort, options: ForkOptions, *, sample: int, seed: int = 0
) -> list[Pair]:
    """Up to `sample` tasks of the cohort with their forks' ids: those that were forked already, then by chance.

    Chance is a hash of the task's id and `seed`, so that the same call chooses the same.
    """
    found = await members(
        hw.pool,
        tenant_id,
        task_type=cohort.task_type,
        since=cohort.since,
        status=cohort.status,
        session_id=cohort.session_id,
    )
    pairs = [Pair(task_id, fork_id_of(tenant_id, cohort.key(options, task_id))) for task_id in found]
    known = await standing(hw.pool, tenant_id, [pair.fork_id for pair in pairs])

    def chance(pair: Pair) -> str:
        return derived_id(str(seed), pair.origin_id)

    chosen = sorted(pairs, key=lambda pair: (pair.fork_id not in known, chance(pair)))[:sample]
    # In one order, whichever of them existed before.
    return sorted(chosen, key=chance)


async def run(
    hw: Headwater,
    tenant_id: str,
    cohort: Cohort,
    options: ForkOptions,
    *,
    sample: int,
    seed: int = 0,
    progress: Progress = lambda ended, all_, cost: None,
) -> dict[str, Any]:
    """Fork a sample of a cohort, wait for the forks' ends, and say how they compare, as JSON.

    Bound it with `asyncio.timeout`; the forks go on, and a second call with the same arguments goes on with them.
    """
    await hw.caught_up(tenant_id)
    pairs = await choose(hw, tenant_id, cohort, options, sample=sample, seed=seed)
    known = await standing(hw.pool, tenant_id, [pair.fork_id for pair in pairs])
    places = asyncio.Semaphore(AT_ONCE)
    problems: dict[str, str] = {}

    async def submit(pair: Pair) -> None:
        async with places:
            try:
                await fork_task(hw, tenant_id, pair.origin_id, options, key=cohort.key(options, pair.origin_id))
            except InvalidInputError as error:
                problems[pair.origin_id] = str(error)

    submitting = asyncio.gather(*(submit(pair) for pair in pairs if pair.fork_id not in known))
    try:
        while True:
            forks = [pair.fork_id for pair in pairs if pair.origin_id not in problems]
            now = await standing(hw.pool, tenant_id, forks)
            ended = sum(one.duration_us is not None for one in now.values())
            progress(ended, len(forks), exact_sum(one.cost_usd for one in now.values()))
            if submitting.done():
                await submitting
                if ended == len(forks):
                    break
            await asyncio.sleep(LOOK_S)
    finally:
        submitting.cancel()
    await hw.caught_up(tenant_id)
    pairs = [pair for pair in pairs if pair.origin_id not in problems]
    return await _report(hw, tenant_id, cohort, pairs, len(known), problems)


async def _report(
    hw: Headwater, tenant_id: str, cohort: Cohort, pairs: list[Pair], known: int, problems: dict[str, str]
) -> dict[str, Any]:
    origins = await standing(hw.pool, tenant_id, [pair.origin_id for pair in pairs])
    forks = await standing(hw.pool, tenant_id, [pair.fork_id for pair in pairs])
    compared = []
    for pair in pairs:
        was = await queries.task(hw.pool, tenant_id, pair.origin_id)
        now = await queries.task(hw.pool, tenant_id, pair.fork_id)
        assert was is not None, f"{pair.origin_id} was chosen from the tasks"
        assert now is not None, f"{pair.fork_id} has ended"
        places = [one["pointer"] for one in differences(was["result"], now["result"])]
        compared.append(
            {
                "origin": pair.origin_id,
                "fork": pair.fork_id,
                "status": [was["status"], now["status"]],
                "cost_usd": [was["cost_usd"], now["cost_usd"]],
                "differs_at": places if places or was["status"] == now["status"] else [""],
            }
        )
    return {
        "tenant": tenant_id,
        "cohort": cohort.text,
        "tasks": len(pairs),
        "known_before": known,
        "origin": _distribution(list(origins.values())),
        "fork": _distribution(list(forks.values())),
        "different": sum(bool(pair["differs_at"]) for pair in compared),
        "pairs": compared,
        "problems": [{"task": task_id, "error": text} for task_id, text in sorted(problems.items())],
    }


def _distribution(tasks: Sequence[Standing]) -> dict[str, Any]:
    costs = sorted(one.cost_usd for one in tasks)
    took = sorted(one.duration_us for one in tasks if one.duration_us is not None)
    return {
        "completed": sum(one.status == "completed" for one in tasks),
        "failed": sum(one.status == "failed" for one in tasks),
        "cancelled": sum(one.status == "cancelled" for one in tasks),
        "total_usd": plain(exact_sum(costs)),
        "cost_usd": {name: plain(value) for name, value in quantiles(costs).items()},
        "duration_ms": {name: value / 1000 for name, value in quantiles(took).items()},
    }


def quantiles(ordered: Sequence[Any]) -> dict[str, Any]:
    """p50, p90 and max of ascending values: each is one of them (nearest rank). Empty without values."""
    if not ordered:
        return {}
    count = len(ordered)
    return {"p50": ordered[-(-count // 2) - 1], "p90": ordered[-(-count * 9 // 10) - 1], "max": ordered[-1]}
