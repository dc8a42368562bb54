"""The projected metrics on a real PostgreSQL: every name and label, exact, continued, bounded, one tenant's or all."""

import random
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from projections.db import Pool, connect
from projections.exposition import MetricsCollector, Sample, snapshot, tenant_snapshot
from projections.metric_names import METRICS
from projections.rebuild import rebuild
from projections.runner import Runner
from schemas.bodies import (
    AgentCancelled,
    AgentCompleted,
    AgentFailed,
    ContextCompiled,
    EventDropped,
    EventParked,
    EventRedriven,
    HandoffAccepted,
    HandoffRejected,
    Subtask,
    TaskCancelled,
    TaskCompleted,
    TaskDecomposed,
    TaskFailed,
    TaskRouted,
)
from schemas.money import TokenCounts
from streams.connection import Streams
from tests.logbook import RATE, Logbook, apply_in_cuts, digest_of, forget

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def runner(pool: Pool, streams: Streams) -> Runner:
    return Runner(pool, streams.log)


def exposed(samples: Iterable[Sample]) -> Series:
    """What Prometheus reads: (name, labels) → value."""
    registry = CollectorRegistry()
    registry.register(MetricsCollector(samples))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(series: Series, name: str, **labels: str) -> float:
    """The sum over all series of that name with these labels among theirs."""
    return sum(v for (n, have), v in series.items() if n == name and set(labels.items()) <= set(have))


HANDOFF: dict[str, Any] = {"target_agent_id": "checker", "payload_type": "research_result", "strictness": "strict"}


def log_of_everything(tenant: str) -> Logbook:
    """A log from which every metric gets a sample."""
    book = Logbook(tenant)
    who: dict[str, Any] = {"agent_id": "writer", "delivery": 1, "duration_us": 2_000_000}

    def end(task: str, body: TaskCompleted | TaskFailed | TaskCancelled, *, decomposed: bool) -> None:
        if decomposed:
            book.add(TaskDecomposed(subtasks=(Subtask(description="one"),)), task=task)
        book.add(body, task=task)

    book.add(AgentCompleted(call_id="c-1", result=1, **who), task="t-1", source="writer")
    book.add(AgentCompleted(call_id="c-2", result=1, **(who | {"duration_us": 1000})), task="t-1", source="writer")
    book.add(AgentFailed(call_id="c-3", error_class="E", error="no", **who), task="t-2", source="writer")
    book.add(AgentCancelled(call_id="c-4", **(who | {"duration_us": 10**9})), task="t-3", source="writer")
    accepted = HandoffAccepted(source_agent_id="writer", checks=(), call_id="c", **HANDOFF)
    book.add(accepted, task="t-1")
    book.add(accepted.model_copy(update={"verification": "unverified"}), task="t-1")
    rejected = HandoffRejected(source_agent_id="writer", reasons=("no",), returned_to="sender", **HANDOFF)
    book.add(rejected, task="t-1")
    book.add(rejected.model_copy(update={"verification": "unverified"}), task="t-1")
    done = TaskCompleted(result=1, routed_by="rules", agent_results={})
    end("t-1", done, decomposed=False)
    end("t-5", done.model_copy(update={"decomposed": True}), decomposed=True)
    end("t-2", TaskFailed(reason="no"), decomposed=False)
    end("t-6", TaskFailed(reason="no"), decomposed=True)
    end("t-3", TaskCancelled(), decomposed=True)
    compiled = ContextCompiled(
        call_id="c-1",
        ordinal=0,
        delivery=1,
        agent_id="writer",
        tier="reasoning",
        budget_tokens=32_000,
        token_usage={"total": 10},
        token_counter="bytes",
        dropped={},
        context={},
        request_hash="0",
        duration_us=250_000,
    )
    book.add(compiled, task="t-1", source="writer")
    book.attempt(task="t-1", call="c-1", tokens=TokenCounts(input_uncached=60, cache_read=30, output_reasoning=10))
    book.attempt(task="t-1", call="c-1", status="error", tokens=None, cost_usd="0", cost_status="not_billed")
    book.attempt(task="t-1", call="c-1", cost_usd=None, cost_status="unpriced")
    book.attempt(task="t-1", call="c-1", status="cancelled", cost_usd=None, cost_status="unknown", tokens=None)
    book.attempt(task="t-1", call="c-1", status="unknown", cost_usd=None, cost_status="unknown", tokens=None)
    routed = TaskRouted(agent_id="checker", call_id="c", routed_by="rules", confidence=1, reasoning="")
    book.add(routed, task="t-1")
    origin: dict[str, Any] = {"reader": "decider", "position": "1-0", "event_id": "e", "event_type": "task.submitted"}
    for _ in range(4):
        book.add(EventParked(attempts=4, error="no", **origin), task="t-7")
    book.add(EventRedriven(parked_id="1-0", **origin), task="t-7")
    book.add(EventDropped(parked_id="2-0", error="no", **origin), task="t-7")
    return book


async def test_every_name_has_its_labels_and_values(pool: Pool, runner: Runner) -> None:
    await apply_in_cuts(runner, [log_of_everything("acme"), log_of_everything("other")], [])
    series = exposed(await snapshot(pool, tenant_labels=100))
    names = {name for name, _ in series}
    for metric in METRICS.values():
        shown = {name for name in names if name.startswith(metric.name)}
        assert shown, f"{metric.name} has no sample"
        for name, labels in series:
            if name in shown:
                assert {label for label, _ in labels} - {"le"} == set(metric.labels), name

    def acme(name: str, **labels: str) -> float:
        return value(series, name, tenant_id="acme", **labels)

    runs = {s: acme("agent_invocations_total", agent_id="writer", status=s) for s in ("ok", "error", "cancelled")}
    assert runs == {"ok": 2, "error": 1, "cancelled": 1}
    judged = {
        r: value(series, "handoff_validations_total", source_agent="writer", target_agent="checker", result=r)
        for r in ("accepted", "unverified", "rejected")
    }
    assert judged == {"accepted": 2, "unverified": 2, "rejected": 4}, "both tenants', which are no label here"
    ended = {
        (status, split): acme("supervisor_tasks_total", status=status, decomposed=split)
        for status in ("completed", "failed", "cancelled")
        for split in ("true", "false")
    }
    assert ended == {
        ("completed", "true"): 1,
        ("completed", "false"): 1,
        ("failed", "true"): 1,
        ("failed", "false"): 1,
        ("cancelled", "true"): 1,
        ("cancelled", "false"): 0,
    }
    requests = {s: acme("llm_requests_total", status=s) for s in ("ok", "error", "cancelled", "unknown")}
    assert requests == {"ok": 2, "error": 1, "cancelled": 1, "unknown": 1}
    tokens = {t: acme("llm_tokens_used_total", token_type=t) for t in ("input_uncached", "cache_read", "output_text")}
    assert tokens == {"input_uncached": 160, "cache_read": 30, "output_text": 0}
    assert acme("llm_cost_usd_total", agent_id="writer", model="openai/small") == float(RATE * 100)
    counts = {s: acme("llm_unpriced_attempts_total", cost_status=s) for s in ("unpriced", "unknown", "priced")}
    assert counts == {"unpriced": 1, "unknown": 2, "priced": 0}
    assert acme("parked_entries") == 2, "four were parked, one was redriven and one dropped"


async def test_histograms_are_cumulative_and_end_in_the_count(pool: Pool, runner: Runner) -> None:
    await apply_in_cuts(runner, [log_of_everything("acme")], [])
    series = exposed(await snapshot(pool, tenant_labels=100))
    name = "agent_invocation_duration_seconds"
    buckets = {dict(labels)["le"]: v for (n, labels), v in series.items() if n == f"{name}_bucket"}
    assert (buckets["0.001"], buckets["1.0"], buckets["2.5"], buckets["300.0"], buckets["+Inf"]) == (1, 1, 3, 3, 4)
    assert value(series, f"{name}_count") == 4
    assert value(series, f"{name}_sum") == 1004.001
    compiled = "context_compilation_duration_seconds"
    assert value(series, f"{compiled}_sum", tenant_id="acme", model_tier="reasoning") == 0.25
    assert value(series, f"{compiled}_bucket", le="0.25") == 1
    assert value(series, f"{compiled}_bucket", le="0.1") == 0


async def test_cuts_repeats_rebuilds_and_restarts_change_nothing(
    pool: Pool, runner: Runner, database_url: str, streams: Streams
) -> None:
    books = [log_of_everything("acme"), log_of_everything("other")]
    length = len(books[0].events)
    chance = random.Random(7)
    found = set()
    for cuts in ([], list(range(1, length)), sorted(chance.sample(range(1, length), 5))):
        await forget(pool)
        await apply_in_cuts(runner, books, cuts)
        live = await digest_of(pool, "metrics")
        await apply_in_cuts(runner, books, cuts)
        assert await digest_of(pool, "metrics") == live
        shown = exposed(await snapshot(pool, tenant_labels=100))
        await rebuild(pool, ["metrics"])
        assert await digest_of(pool, "metrics") == live
        # What Prometheus sees after a rebuild is what it saw before, histograms too.
        assert exposed(await snapshot(pool, tenant_labels=100)) == shown
        found.add(live)
    assert len(found) == 1
    # Another process goes on where this one stood.
    for book in books:
        book.attempt(task="t-9", call="c-9")
    again = await connect(database_url)
    await Runner(again, streams.log).apply([book.batch(length) for book in books])
    after = exposed(await snapshot(again, tenant_labels=100))
    await again.close()
    grown = {key for key in after if after[key] != shown.get(key)}
    assert grown, "the new attempts are counted"
    assert all(after[key] > shown.get(key, 0) for key in grown), "no counter went back"
    assert set(shown) <= set(after)


async def test_only_so_many_tenants_have_labels_and_nothing_is_lost(pool: Pool, runner: Runner) -> None:
    books = [log_of_everything(f"tenant-{n}") for n in range(6)]
    for book in books:
        await apply_in_cuts(runner, [book], [])
    everything = exposed(await snapshot(pool, tenant_labels=100))
    bounded = exposed(await snapshot(pool, tenant_labels=2))
    tenants = {dict(labels).get("tenant_id") for _, labels in bounded} - {None}
    assert tenants == {"tenant-0", "tenant-1", "_other"}, "the first that ever appeared keep their labels"
    for name in {name for name, _ in everything}:
        assert value(bounded, name) == pytest.approx(value(everything, name)), name
    assert value(bounded, "llm_requests_total", tenant_id="_other") == 4 * 5
    await rebuild(pool, ["metrics"])
    assert exposed(await snapshot(pool, tenant_labels=2)) == bounded


async def test_agents_and_models_are_bounded_and_a_made_up_target_has_no_label(
    pool: Pool, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.exposition.MAX_AGENTS", 2)
    monkeypatch.setattr("projections.exposition.MAX_MODELS", 1)
    book = Logbook("acme")
    for n in range(5):
        book.attempt(task="t", call="c", agent=f"agent-{n}", model=f"model-{n}", spent=1)
        rejected = HandoffRejected(source_agent_id="agent-0", reasons=("unknown",), returned_to="supervisor", **HANDOFF)
        book.add(rejected.model_copy(update={"target_agent_id": f"made-up-{n}"}), task="t")
        await runner.apply([book.batch(2 * n)])
    series = exposed(await snapshot(pool, tenant_labels=10))
    spent = {
        (dict(labels)["agent_id"], dict(labels)["model"]): Decimal(str(v)) / RATE
        for (name, labels), v in series.items()
        if name == "llm_cost_usd_total"
    }
    assert spent == {("agent-0", "model-0"): 1, ("agent-1", "_other"): 1, ("_other", "_other"): 3}
    assert value(series, "handoff_validations_total", source_agent="agent-0", target_agent="_other") == 5
    assert not any("made-up" in str(labels) for _, labels in series)


async def test_a_tenants_metrics_show_nobody_else(pool: Pool, runner: Runner) -> None:
    await apply_in_cuts(runner, [log_of_everything("acme"), log_of_everything("other")], [])
    series = exposed(await tenant_snapshot(pool, "acme"))
    assert {dict(labels)["tenant_id"] for _, labels in series if "tenant_id" in dict(labels)} == {"acme"}
    assert value(series, "handoff_validations_total") == 4, "those of the other tenant are not in it"
    alone = exposed(await snapshot(pool, tenant_labels=100))
    assert value(series, "llm_cost_usd_total") == value(alone, "llm_cost_usd_total", tenant_id="acme")
