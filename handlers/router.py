"""Which agent gets a task (contract row A3, the deterministic part)."""

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field

from schemas.ids import AgentId
from schemas.task import Task

logger = structlog.get_logger(__name__)

Rule = Callable[[Task], str | None]
"""A plain function that names the agent for a task, or None. It must depend on nothing but the task (I5)."""


class RoutingDecision(BaseModel):
    """Who gets the task, how that was found, how sure it is, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_id: AgentId
    routed_by: Literal["rules", "llm"]
    confidence: Annotated[float, Field(ge=0, le=1)]
    reasoning: str


class HybridRouter:
    """Rules in the order they were added; the first that names an agent wins, with confidence 1.0."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = list(rules)

    def add_rule(self, rule: Rule) -> None:
        """Add a rule behind the others."""
        self.rules.append(rule)

    def match(self, task: Task) -> RoutingDecision | None:
        """The first rule's decision, or None if no rule names an agent. A rule that raises is logged and skipped."""
        for rule in self.rules:
            name = getattr(rule, "__name__", type(rule).__name__)
            try:
                agent_id = rule(task)
                if agent_id is not None:
                    return _by_rule(rule, name, agent_id)
            except Exception as error:
                # Also when it names what cannot be an agent's id.
                logger.warning("rule_failed", rule=name, task=task.task_id, error=f"{type(error).__name__}: {error}")
        return None


def _by_rule(rule: Rule, name: str, agent_id: str) -> RoutingDecision:
    why = (inspect.getdoc(rule) or "").split("\n", 1)[0]
    reasoning = f"rule {name}: {why}" if why else f"rule {name}"
    return RoutingDecision(agent_id=agent_id, routed_by="rules", confidence=1.0, reasoning=reasoning)
