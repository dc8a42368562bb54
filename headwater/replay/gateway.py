"""What the commands ask of forks and comparisons: the same of a Headwater on this machine and of one behind a URL."""

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Protocol

from headwater.client import Headwater
from headwater.gateway import Gateway
from headwater.remote import RemoteHeadwater, accepted_of, path_of
from headwater.replay.compare import compare, side
from headwater.replay.fork import ForkOptions, fork_task
from projections import queries
from schemas.money import exact_sum
from schemas.task import Accepted

AT_ONCE = 16


class Forks(Protocol):
    """Tasks that are run again and laid side by side."""

    async def fork(self, tenant_id: str, task_id: str, options: ForkOptions) -> Accepted:
        """Run a task again."""
        ...

    async def compare(self, tenant_id: str, left: str, right: str) -> dict[str, Any]:
        """Two tasks side by side, as JSON."""
        ...

    async def sides(self, tenant_id: str, origin: str, forks: Sequence[str]) -> list[dict[str, Any]]:
        """Each of them as `compare` shows it: the origin, then its forks."""
        ...

    async def cost_of(self, tenant_id: str, task_ids: Sequence[str]) -> Decimal:
        """What tasks have cost so far, together, in US dollars."""
        ...


class LocalForks:
    """Of a Headwater whose servers are connected."""

    def __init__(self, hw: Headwater) -> None:
        self._hw = hw

    async def fork(self, tenant_id: str, task_id: str, options: ForkOptions) -> Accepted:
        """Run a task again. Raises `NotFoundError` and `InvalidInputError`."""
        return await fork_task(self._hw, tenant_id, task_id, options)

    async def compare(self, tenant_id: str, left: str, right: str) -> dict[str, Any]:
        """Two tasks side by side. Raises `NotFoundError`."""
        await self._hw.caught_up(tenant_id)
        return await compare(self._hw.history, tenant_id, left, right)

    async def sides(self, tenant_id: str, origin: str, forks: Sequence[str]) -> list[dict[str, Any]]:
        """The origin, then its forks. Raises `NotFoundError`."""
        await self._hw.caught_up(tenant_id)
        return [(await side(self._hw.history, tenant_id, task_id)).as_dict() for task_id in (origin, *forks)]

    async def cost_of(self, tenant_id: str, task_ids: Sequence[str]) -> Decimal:
        """From the ledger."""
        return await queries.cost_of_tasks(self._hw.pool, tenant_id, list(task_ids))


class RemoteForks:
    """Of a Headwater behind a URL."""

    def __init__(self, remote: RemoteHeadwater) -> None:
        self._remote = remote

    async def fork(self, tenant_id: str, task_id: str, options: ForkOptions) -> Accepted:
        """Run a task again. Raises `NotFoundError` and `InvalidInputError`."""
        how = {
            "at": options.at,
            "models": {tier: list(names) for tier, names in options.models.items()},
            "data": options.data,
            "budget_usd": options.budget_usd,
        }
        response = await self._remote.request("POST", path_of("tasks", task_id, "fork"), tenant_id, json=how)
        return accepted_of(response.json())

    async def compare(self, tenant_id: str, left: str, right: str) -> dict[str, Any]:
        """Two tasks side by side. Raises `NotFoundError`."""
        path = path_of("tasks", left, "compare", right)
        found: dict[str, Any] = (await self._remote.request("GET", path, tenant_id)).json()
        return found

    async def sides(self, tenant_id: str, origin: str, forks: Sequence[str]) -> list[dict[str, Any]]:
        """The origin, then its forks. Raises `NotFoundError`."""
        places = asyncio.Semaphore(AT_ONCE)

        async def compared(fork: str) -> dict[str, Any]:
            async with places:
                return await self.compare(tenant_id, origin, fork)

        found = await asyncio.gather(*map(compared, forks))
        return [found[0]["left"], *(one["right"] for one in found)]

    async def cost_of(self, tenant_id: str, task_ids: Sequence[str]) -> Decimal:
        """One question a task."""
        places = asyncio.Semaphore(AT_ONCE)

        async def cost(task_id: str) -> Decimal:
            async with places:
                found = await self._remote.task(tenant_id, task_id)
            return Decimal((found or {}).get("cost_usd") or 0)

        return exact_sum(await asyncio.gather(*map(cost, task_ids)))


def forks_of(hw: Gateway) -> Forks:
    """Those of this Headwater."""
    if isinstance(hw, Headwater):
        return LocalForks(hw)
    assert isinstance(hw, RemoteHeadwater), hw
    return RemoteForks(hw)
