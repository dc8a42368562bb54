"""The public surface: what `headwater` exports, what importing it does, and what it does not."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import headwater

ROOT = Path(__file__).parents[2]
CONTRACT = {
    *("BaseAgent", "AgentRegistration", "AgentCapability", "AgentStatus", "AgentRegistry", "get_agent_registry"),
    *("HybridRouter", "RoutingDecision", "SupervisorOrchestrator", "AgentEvent", "TenantEventBus", "HandoffPayload"),
    *("StrictnessConfig", "ValidationStrictness", "HandoffProtocol", "HandoffResult", "HandoffRejectedError"),
    *("SemanticValidator", "create_app", "Settings", "get_settings"),
}


@pytest.mark.parametrize("name", headwater.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    found = getattr(headwater, name)
    assert found is getattr(headwater, name)
    if inspect.isclass(found) or inspect.isfunction(found):
        assert inspect.getdoc(found), f"{name} has no docstring"
        assert found.__name__ == name
        assert found.__module__.startswith(headwater._HOMES[name].partition(".")[0])


def test_the_public_names_are_sorted_and_all_there() -> None:
    assert list(headwater.__all__) == sorted(headwater.__all__)
    assert set(headwater.__all__) == set(headwater._HOMES)
    assert set(headwater.__all__) >= CONTRACT
    assert set(dir(headwater)) >= set(headwater.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'headwater' has no attribute 'Nonsense'"):
        headwater.Nonsense  # noqa: B018  # looking it up is what is tested


WATCHED = """
import os, sys, socket, threading, builtins, subprocess
read = []
class Environment(dict):
    def __getitem__(self, key): read.append(key); return super().__getitem__(key)
    def get(self, key, default=None): read.append(key); return super().get(key, default)
    def __contains__(self, key): read.append(key); return super().__contains__(key)
before, threads = set(sys.modules), threading.active_count()
os.environ = Environment(os.environ)
os.getenv = lambda key, default=None: os.environ.get(key, default)
def forbidden(*args, **kwargs): raise AssertionError("importing does this")
socket.socket.connect = forbidden
subprocess.Popen = forbidden
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.splitlines()


def test_importing_headwater_does_nothing() -> None:
    modules, rest = run(f"""{WATCHED}
import headwater
print(*sorted(set(sys.modules) - before))
print(read, threading.active_count() - threads)
""")
    assert rest == "[] 0"
    assert {name.partition(".")[0] for name in modules.split()} <= {"headwater", *sys.stdlib_module_names}


def test_the_names_of_an_agents_author_bring_no_server_and_no_provider() -> None:
    # An agents module is imported by every worker, and by tests: it must not wait for LiteLLM.
    names = "BaseAgent, AgentRegistration, HybridRouter, Team, TaskContext, NewTask, Settings"
    modules, rest = run(
        f"{WATCHED}\nfrom headwater import {names}\nprint(*sys.modules)\nprint([k for k in read if 'HEADWATER' in k])"
    )
    assert rest == "[]"
    assert not {"litellm", "asyncpg", "fastapi", "langfuse"} & set(modules.split())


def test_no_module_of_ours_reads_the_environment_or_fetches_litellm_when_imported() -> None:
    packages = "schemas, streams, handlers, projections, headwater"
    code = f"""{WATCHED}
import importlib, pkgutil
import {packages}
for package in ({packages}):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
print(*sys.modules)
print([k for k in read if "HEADWATER" in k or k.endswith("_URL") and k in ("REDIS_URL", "DATABASE_URL")])
"""
    modules, rest = run(code)
    assert rest == "[]"
    assert "headwater.app" in modules.split()
    assert "litellm" not in modules.split()
