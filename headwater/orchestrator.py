"""Publishing a task and waiting for what becomes of it, in one call (contract row A4)."""

import asyncio
from typing import Any

from headwater.client import Headwater
from schemas.errors import TaskFailedError
from schemas.task import NewTask

TIMEOUT_S = 300.0


class SupervisorOrchestrator:
    """`await SupervisorOrchestrator(hw).execute_task("Compare …", tenant_id="acme", session_id="s1")`.

    The supervisor itself runs in the workers: this publishes the task and waits for its outcome.
    """

    def __init__(self, headwater: Headwater) -> None:
        self._headwater = headwater

    async def execute_task(
        self,
        task: str | dict[str, Any],
        tenant_id: str,
        session_id: str,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> dict[str, Any]:
        """Have a task done. `task` is its text, or an object with `text` and any of `type`, `data`, `priority` and
        `idempotency_key`.

        Returns {"result", "call_chain", "routed_by", "decomposed", "agent_results"}; `call_chain` begins with "user"
        and "supervisor".

        Raises:
            TaskFailedError: the task failed or was cancelled; the text has the reason, `.outcome` all there is.
            TimeoutError: it did not end within `timeout_s` seconds; it goes on.
        """
        fields = {"text": task} if isinstance(task, str) else task
        new = NewTask.model_validate({**fields, "tenant": tenant_id, "session": session_id})
        async with asyncio.timeout(timeout_s):
            outcome = await self._headwater.run(new)
        if outcome.status != "completed":
            raise TaskFailedError(f"task {outcome.task_id} {outcome.status}: {outcome.error}", outcome)
        return {
            "result": outcome.result,
            "call_chain": list(outcome.call_chain),
            "routed_by": outcome.routed_by,
            "decomposed": outcome.decomposed,
            "agent_results": outcome.agent_results,
        }
