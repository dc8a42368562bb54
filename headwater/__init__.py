"""Headwater: an event-sourced stream processor for multi-tenant teams of LLM agents.

Producers and authors of agents import from here. Names are looked up when they are first used, so that importing
`headwater` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handlers.agents import AgentCapability, AgentRegistration, AgentStatus, BaseAgent
    from handlers.compiler import CompiledContext, WorkingContextCompiler
    from handlers.context import HandOver, TaskContext
    from handlers.context_manager import ContextManager
    from handlers.decomposition import is_complex, never
    from handlers.llm import Completion
    from handlers.llm_stream import LlmStream
    from handlers.protocol import HandoffProtocol, HandoffResult
    from handlers.registry import AgentRegistry, get_agent_registry
    from handlers.router import HybridRouter, RoutingDecision
    from handlers.semantic import SemanticValidator
    from handlers.strictness import FailPolicy, StrictnessConfig, ValidationStrictness
    from handlers.team import Team
    from headwater.app import create_app
    from headwater.client import Headwater
    from headwater.embedded import EmbeddedServers
    from headwater.instruments import process_registry, track_agent_invocation, track_llm_call
    from headwater.long_term_memory import LongTermMemory
    from headwater.node import find_endpoints
    from headwater.orchestrator import SupervisorOrchestrator
    from headwater.remote import RemoteHeadwater
    from headwater.settings import Settings, get_settings
    from headwater.tracing import AgentTracer, init_langfuse
    from projections.cost_tracker import CostTracker
    from projections.session_store import SessionStore
    from schemas.errors import (
        HandoffRejectedError,
        HeadwaterError,
        ProviderError,
        StructuredOutputError,
        TaskFailedError,
    )
    from schemas.event import AgentEvent
    from schemas.handoff import HandoffPayload
    from schemas.memory import MemoryEntry
    from schemas.session import Session
    from schemas.task import Accepted, NewTask, Task, TaskOutcome
    from streams.bus import TenantEventBus

_HOMES = {
    "Accepted": "schemas.task",
    "AgentCapability": "handlers.agents",
    "AgentEvent": "schemas.event",
    "AgentRegistration": "handlers.agents",
    "AgentRegistry": "handlers.registry",
    "AgentStatus": "handlers.agents",
    "AgentTracer": "headwater.tracing",
    "BaseAgent": "handlers.agents",
    "CompiledContext": "handlers.compiler",
    "Completion": "handlers.llm",
    "ContextManager": "handlers.context_manager",
    "CostTracker": "projections.cost_tracker",
    "EmbeddedServers": "headwater.embedded",
    "FailPolicy": "handlers.strictness",
    "HandOver": "handlers.context",
    "HandoffPayload": "schemas.handoff",
    "HandoffProtocol": "handlers.protocol",
    "HandoffRejectedError": "schemas.errors",
    "HandoffResult": "handlers.protocol",
    "Headwater": "headwater.client",
    "HeadwaterError": "schemas.errors",
    "HybridRouter": "handlers.router",
    "LlmStream": "handlers.llm_stream",
    "LongTermMemory": "headwater.long_term_memory",
    "MemoryEntry": "schemas.memory",
    "NewTask": "schemas.task",
    "ProviderError": "schemas.errors",
    "RemoteHeadwater": "headwater.remote",
    "RoutingDecision": "handlers.router",
    "SemanticValidator": "handlers.semantic",
    "Session": "schemas.session",
    "SessionStore": "projections.session_store",
    "Settings": "headwater.settings",
    "StrictnessConfig": "handlers.strictness",
    "StructuredOutputError": "schemas.errors",
    "SupervisorOrchestrator": "headwater.orchestrator",
    "Task": "schemas.task",
    "TaskContext": "handlers.context",
    "TaskFailedError": "schemas.errors",
    "TaskOutcome": "schemas.task",
    "Team": "handlers.team",
    "TenantMismatchError": "schemas.errors",
    "TenantEventBus": "streams.bus",
    "ValidationStrictness": "handlers.strictness",
    "WorkingContextCompiler": "handlers.compiler",
    "create_app": "headwater.app",
    "find_endpoints": "headwater.node",
    "get_agent_registry": "handlers.registry",
    "get_settings": "headwater.settings",
    "init_langfuse": "headwater.tracing",
    "is_complex": "handlers.decomposition",
    "never": "handlers.decomposition",
    "process_registry": "headwater.instruments",
    "track_agent_invocation": "headwater.instruments",
    "track_llm_call": "headwater.instruments",
}

__all__ = [
    "Accepted",
    "AgentCapability",
    "AgentEvent",
    "AgentRegistration",
    "AgentRegistry",
    "AgentStatus",
    "AgentTracer",
    "BaseAgent",
    "CompiledContext",
    "Completion",
    "ContextManager",
    "CostTracker",
    "EmbeddedServers",
    "FailPolicy",
    "HandOver",
    "HandoffPayload",
    "HandoffProtocol",
    "HandoffRejectedError",
    "HandoffResult",
    "Headwater",
    "HeadwaterError",
    "HybridRouter",
    "LlmStream",
    "LongTermMemory",
    "MemoryEntry",
    "NewTask",
    "ProviderError",
    "RemoteHeadwater",
    "RoutingDecision",
    "SemanticValidator",
    "Session",
    "SessionStore",
    "Settings",
    "StrictnessConfig",
    "StructuredOutputError",
    "SupervisorOrchestrator",
    "Task",
    "TaskContext",
    "TaskFailedError",
    "TaskOutcome",
    "Team",
    "TenantEventBus",
    "TenantMismatchError",
    "ValidationStrictness",
    "WorkingContextCompiler",
    "create_app",
    "find_endpoints",
    "get_agent_registry",
    "get_settings",
    "init_langfuse",
    "is_complex",
    "never",
    "process_registry",
    "track_agent_invocation",
    "track_llm_call",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
