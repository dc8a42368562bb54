"""Headwater: an event-sourced stream processor for multi-tenant teams of LLM agents.

Producers and authors of agents import from here. Names are looked up when they are first used, so that importing
`headwater` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handlers.agents import AgentCapability, AgentRegistration, AgentStatus, BaseAgent
    from handlers.context import HandOver, TaskContext
    from handlers.llm import Completion
    from handlers.registry import AgentRegistry
    from handlers.router import HybridRouter, RoutingDecision
    from handlers.strictness import StrictnessConfig, ValidationStrictness
    from handlers.team import Team
    from headwater.app import create_app
    from headwater.client import Headwater
    from headwater.embedded import EmbeddedServers
    from headwater.settings import Settings, get_settings
    from schemas.errors import HeadwaterError
    from schemas.event import AgentEvent
    from schemas.handoff import HandoffPayload
    from schemas.task import Accepted, NewTask, Task, TaskOutcome
    from streams.bus import TenantEventBus

_HOMES = {
    "Accepted": "schemas.task",
    "AgentCapability": "handlers.agents",
    "AgentEvent": "schemas.event",
    "AgentRegistration": "handlers.agents",
    "AgentRegistry": "handlers.registry",
    "AgentStatus": "handlers.agents",
    "BaseAgent": "handlers.agents",
    "Completion": "handlers.llm",
    "EmbeddedServers": "headwater.embedded",
    "HandOver": "handlers.context",
    "HandoffPayload": "schemas.handoff",
    "Headwater": "headwater.client",
    "HeadwaterError": "schemas.errors",
    "HybridRouter": "handlers.router",
    "NewTask": "schemas.task",
    "RoutingDecision": "handlers.router",
    "Settings": "headwater.settings",
    "StrictnessConfig": "handlers.strictness",
    "Task": "schemas.task",
    "TaskContext": "handlers.context",
    "TaskOutcome": "schemas.task",
    "Team": "handlers.team",
    "TenantEventBus": "streams.bus",
    "ValidationStrictness": "handlers.strictness",
    "create_app": "headwater.app",
    "get_settings": "headwater.settings",
}

__all__ = [
    "Accepted",
    "AgentCapability",
    "AgentEvent",
    "AgentRegistration",
    "AgentRegistry",
    "AgentStatus",
    "BaseAgent",
    "Completion",
    "EmbeddedServers",
    "HandOver",
    "HandoffPayload",
    "Headwater",
    "HeadwaterError",
    "HybridRouter",
    "NewTask",
    "RoutingDecision",
    "Settings",
    "StrictnessConfig",
    "Task",
    "TaskContext",
    "TaskOutcome",
    "Team",
    "TenantEventBus",
    "ValidationStrictness",
    "create_app",
    "get_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
