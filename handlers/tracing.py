"""What the runner wants of a tracer; the composition root has one."""

from contextlib import AbstractContextManager
from typing import Protocol


class ExecutionTracer(Protocol):
    """Binds what is known about an agent's run to everything that happens inside it."""

    def trace_agent_execution(
        self, agent_id: str, tenant_id: str, session_id: str, *, task_id: str | None = None, call_id: str | None = None
    ) -> AbstractContextManager[None]:
        """A context manager around one run."""
        ...
