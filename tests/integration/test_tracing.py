"""`init_langfuse` and `AgentTracer` (row E1): what they bind, and that without keys they do nothing."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from langfuse import get_client

from headwater import AgentTracer, Settings, init_langfuse
from schemas.trace_ids import call_span_id, trace_id
from tests.fake_langfuse import SECRET_KEY, FakeLangfuse

KEY = "pk-lf-tracing"


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeLangfuse]:
    """A running fake; the SDK keeps one client a process for a key."""
    with FakeLangfuse(tmp_path_factory.mktemp("langfuse") / "spans.jsonl", public_key=KEY) as fake:
        yield fake


@pytest.fixture(scope="module")
def tracer(fake: FakeLangfuse) -> Iterator[AgentTracer]:
    """A tracer with keys."""
    yield init_langfuse(Settings(langfuse_public_key=KEY, langfuse_secret_key=SECRET_KEY, langfuse_host=fake.url))
    get_client(public_key=KEY).shutdown()


def test_spans_and_logs_inside_a_run_have_its_tenant_session_and_agent(tracer: AgentTracer, fake: FakeLangfuse) -> None:
    sdk = get_client(public_key=KEY)
    for tenant in ("acme", "globex"):
        with tracer.trace_agent_execution("billing", tenant, "s1"):
            assert structlog.contextvars.get_contextvars() == {"agent": "billing", "tenant": tenant, "session": "s1"}
            with (
                sdk.start_as_current_observation(name=f"outer {tenant}"),
                sdk.start_as_current_observation(name=f"inner {tenant}"),
            ):
                pass
        assert structlog.contextvars.get_contextvars() == {}
    with sdk.start_as_current_observation(name="outside"):
        pass
    tracer.flush()
    spans = {span.name: span for span in fake.spans()}
    for tenant in ("acme", "globex"):
        for name in ("outer", "inner"):
            span = spans[f"{name} {tenant}"]
            assert (span.user_id, span.session_id) == (tenant, "s1")
            assert sorted(span.tags) == ["agent:billing", f"tenant:{tenant}"]
        assert spans[f"inner {tenant}"].parent_id == spans[f"outer {tenant}"].id
    assert (spans["outside"].user_id, spans["outside"].tags) == (None, [])


def test_with_the_task_and_call_spans_stand_under_the_exported_run(tracer: AgentTracer, fake: FakeLangfuse) -> None:
    with tracer.trace_agent_execution("billing", "acme", "s1", task_id="t1", call_id="c1"):
        assert structlog.contextvars.get_contextvars()["task"] == "t1"
        with get_client(public_key=KEY).start_as_current_observation(name="under the run"):
            pass
    tracer.flush()
    (span,) = [span for span in fake.spans() if span.name == "under the run"]
    assert (span.trace_id, span.parent_id) == (trace_id("acme", "t1"), call_span_id("acme", "c1"))


def test_an_error_inside_passes_through_and_unbinds(tracer: AgentTracer) -> None:
    with pytest.raises(ValueError, match="mine"), tracer.trace_agent_execution("billing", "acme", "s1"):
        raise ValueError("mine")
    assert structlog.contextvars.get_contextvars() == {}


def test_a_handoff_is_traced_with_its_verdict(tracer: AgentTracer, fake: FakeLangfuse) -> None:
    tracer.trace_handoff("reader", "writer", "acme", True)
    with tracer.trace_agent_execution("reader", "acme", "s9"):
        tracer.trace_handoff("reader", "nobody", "acme", False)
    tracer.flush()
    found = {span.name: span for span in fake.spans() if span.type == "EVENT"}
    accepted, rejected = found["handoff.accepted"], found["handoff.rejected"]
    assert (accepted.level, accepted.user_id, accepted.metadata["valid"]) == ("DEFAULT", "acme", True)
    assert (rejected.level, rejected.session_id, rejected.metadata["target_agent"]) == ("WARNING", "s9", "nobody")
    assert set(rejected.tags) == {"agent:reader", "tenant:acme"}


def test_without_keys_all_is_a_no_op_with_one_log_line() -> None:
    """In a process of its own, because this one has long imported the SDK."""
    program = """
import sys
from headwater import Settings, init_langfuse
tracer = init_langfuse(Settings(langfuse_public_key="", langfuse_secret_key="", langfuse_host=""))
with tracer.trace_agent_execution("billing", "acme", "s1", task_id="t1", call_id="c1"):
    tracer.trace_handoff("a", "b", "acme", True)
tracer.flush()
assert not tracer.enabled
assert "langfuse" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "langfuse_off" in line


def test_keys_without_a_host_are_a_warning() -> None:
    with structlog.testing.capture_logs() as logs:
        tracer = init_langfuse(Settings(langfuse_public_key="pk", langfuse_secret_key="sk", langfuse_host=None))
    assert not tracer.enabled
    assert [(log["event"], log["log_level"], log["missing"]) for log in logs] == [
        ("langfuse_off", "warning", ["LANGFUSE_HOST"])
    ]
