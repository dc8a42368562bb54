"""LLM requests outside any call, such as the embedding of what a person searches for: recorded and billed, too."""

from decimal import Decimal

from handlers.journal import NOTHING, Journal
from schemas.call import Call
from schemas.event import AgentEvent
from schemas.ids import new_id
from streams.bus import USER, TenantEventBus
from streams.connection import Streams
from streams.functions import Delivery
from streams.subscriber import TakenCall


class DetachedJournal(Journal):
    """Records facts of no task, under a call id of its own. There is no lease to lose, and nothing is given back."""

    def __init__(self, streams: Streams, tenant_id: str, session_id: str) -> None:
        call = Call(
            call_id=new_id(),
            kind="route",
            ordered_by="",
            agent_id=USER,
            tenant_id=tenant_id,
            session_id=session_id,
            task_id="",
            priority="normal",
            call_chain=(USER,),
            task_type="",
            text="",
        )
        delivery = Delivery(0, tenant_id, USER, call.call_id, 1, USER, "", {})
        super().__init__(streams, TakenCall(delivery, call), lease_ms=0)
        self._bus = TenantEventBus(streams, tenant_id)

    async def record(self, key: str, event: AgentEvent, *, spent_usd: Decimal = NOTHING) -> None:
        """Append a fact to the tenant's log."""
        for fact in self.final([event]):
            self.given.append(await self._bus.publish(fact))
