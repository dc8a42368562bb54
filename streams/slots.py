"""How many runs of each agent this worker may have at once (contract row A1, `max_concurrent_tasks`).

An agent's limit holds over all worker processes and shards. It is lent out in slots: a worker says how many it wants in
all, gets what is free, no more than an even share when others want some too, and keeps them as long as it says so
again. The slots of a worker that died, or that was stopped for longer than its lease, go to others; such a worker knows
by its own clock that it has none. Unused slots are given back.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from streams.functions import Functions

GIVE_BACK_AFTER_S = 0.02
"""Slots without a run are kept this long, so that a steady trickle of calls does not ask for each one anew."""
ASK_AGAIN_S = 0.05
"""Where all slots are in use elsewhere, a worker with something to run asks again this often."""


class Slots:
    """This worker's slots. Its statements to the server are made one after the other, so that the last one counts."""

    def __init__(self, functions: Functions, worker: str, limits: Mapping[str, int], *, lease_ms: int) -> None:
        self._functions = functions
        self._worker = worker
        self._limits = dict(limits)
        self._lease_ms = lease_ms
        self._held = dict.fromkeys(limits, 0)
        self._busy = dict.fromkeys(limits, 0)
        self._step = dict.fromkeys(limits, 1)
        self._left = dict.fromkeys(limits, False)
        self._good_until = dict.fromkeys(limits, 0.0)
        self._ask_at = dict.fromkeys(limits, 0.0)
        self._used_at = dict.fromkeys(limits, 0.0)
        self._saying = asyncio.Lock()

    def free(self, agent_id: str) -> int:
        """How many more runs of the agent may start now."""
        if time.monotonic() >= self._good_until[agent_id]:
            return 0
        return self._held[agent_id] - self._busy[agent_id]

    def taken_up(self) -> set[str]:
        """The agents of which no other worker could get a slot, as far as is known."""
        return {agent for agent, left in self._left.items() if not left}

    def take(self, agent_id: str, count: int) -> None:
        """`count` free slots are about to be used: runs may begin under them, so they cannot be given back."""
        self._busy[agent_id] += count
        self._used_at[agent_id] = time.monotonic()

    def end(self, agent_id: str, count: int = 1) -> None:
        """So many runs ended, or did not come about."""
        self._busy[agent_id] -= count

    def ask_again_in_s(self, agents: Iterable[str]) -> float:
        """How long until `get` asks again for one of `agents`, which have no free slot. Those at their limit do not."""
        asked = [self._ask_at[agent] for agent in agents if self._busy[agent] < self._limits[agent]]
        return max(0.0, min(asked) - time.monotonic()) if asked else float("inf")

    async def get(self, agents: Iterable[str]) -> None:
        """Try to have a free slot for each of `agents`: first one, then twice as many each time more are needed."""
        now = time.monotonic()
        lacking = []
        for agent in agents:
            if self.free(agent) <= 0 and self._ask_at[agent] <= now and self._busy[agent] < self._limits[agent]:
                self._ask_at[agent] = now + ASK_AGAIN_S
                lacking.append(agent)
        await self._say(lacking, lambda agent: min(self._limits[agent], self._busy[agent] + self._step[agent]))
        for agent in lacking:
            if self.free(agent) > 0:
                self._ask_at[agent] = 0.0
                self._step[agent] = min(self._step[agent] * 2, self._limits[agent])

    async def renew(self) -> None:
        """Keep what is held, for another lease."""
        held = [agent for agent in self._limits if self._held[agent] or self._busy[agent]]
        await self._say(held, lambda agent: self._held[agent])

    async def give_back(self, agents: Iterable[str]) -> bool:
        """Give back the slots of `agents` that were not used lately. Returns whether some follow later."""
        now = time.monotonic()
        unused = [agent for agent in agents if self._held[agent] > self._busy[agent]]
        due = [agent for agent in unused if now - self._used_at[agent] >= GIVE_BACK_AFTER_S]
        for agent in due:
            self._step[agent] = 1
        await self._say(due, lambda agent: self._busy[agent])
        return len(due) < len(unused)

    async def close(self) -> None:
        """Give back everything that is not used."""
        await self._say([agent for agent, held in self._held.items() if held], lambda agent: self._busy[agent])

    async def _say(self, agents: Sequence[str], wanted: Callable[[str], int]) -> None:
        """State how many slots are wanted in all, for each of `agents`."""
        if not agents:
            return
        async with self._saying:
            sent_at = time.monotonic()
            asked = [(a, self._busy[a], max(wanted(a), self._busy[a]), self._limits[a]) for a in agents]
            for agent, busy, _, _ in asked:
                # Until the answer is there, what does not run yet may be given to somebody else.
                self._held[agent] = busy
            granted = await self._functions.slots(self._worker, asked, lease_ms=self._lease_ms)
            for (agent, *_), (count, left) in zip(asked, granted, strict=True):
                self._held[agent] = count
                self._left[agent] = left > 0
                # Counted from before it was sent: the server's lease ends later than that.
                self._good_until[agent] = sent_at + self._lease_ms / 1000
