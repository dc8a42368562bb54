"""The projected metrics on a real PostgreSQL: every name and label, exact, continued, bounded, one tenant's or all."""

import random
from decimal import Decimal

import pytest

from projections.db import Pool, connect
from projections.exposition import snapshot, tenant_snapshot
from projections.metric_names import METRICS
from projections.rebuild import rebuild
from projections.runner import Runner
from schemas.bodies import HandoffRejected
from streams.connection import Streams
from tests.logbook import RATE, Logbook, apply_in_cuts, digest_of, forget
from tests.metric_logs import HANDOFF, exposed, log_of_everything, log_of_the_rest, value


@pytest.fixture
def runner(pool: Pool, streams: Streams) -> Runner:
    return Runner(pool, streams.log)


async def test_every_name_has_its_labels_and_values(pool: Pool, runner: Runner) -> None:
    books = [log_of_everything("acme"), log_of_everything("other"), log_of_the_rest("third")]
    await apply_in_cuts(runner, books, [])
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
    assert judged == {"accepted": 2, "unverified": 2, "rejected": 4}, "of all tenants, which are no label here"
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
    assert acme("supervisor_tasks_accepted_total") == 8
    assert acme("supervisor_tasks_open") == 8 - sum(ended.values()) == 3
    assert value(series, "supervisor_tasks_open", tenant_id="third") == 1, "forks are tasks"
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
    books = [log_of_everything("acme"), log_of_everything("other"), log_of_the_rest("third")]
    length = max(map(len, books))
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
        book.add_raw({"data": "somebody else's"})
    again = await connect(database_url)
    await Runner(again, streams.log).apply([book.batch(len(book) - 2) for book in books])
    after = exposed(await snapshot(again, tenant_labels=100))
    await again.close()
    grown = {key for key in after if after[key] != shown.get(key)}
    assert grown, "the new attempts are counted"
    assert all(after[key] > shown.get(key, 0) for key in grown), "no counter went back"
    assert set(shown) <= set(after)


async def test_only_so_many_tenants_have_labels_and_nothing_is_lost(pool: Pool, runner: Runner) -> None:
    for n in range(6):
        await apply_in_cuts(runner, [log_of_everything(f"tenant-{n}")], [])
        await apply_in_cuts(runner, [log_of_the_rest(f"tenant-{n}-too")], [])
    everything = exposed(await snapshot(pool, tenant_labels=100))
    bounded = exposed(await snapshot(pool, tenant_labels=2))
    tenants = {dict(labels).get("tenant_id") for _, labels in bounded} - {None}
    assert tenants == {"tenant-0", "tenant-0-too", "_other"}, "the first that ever appeared keep their labels"
    for name in {name for name, _ in everything}:
        assert value(bounded, name) == pytest.approx(value(everything, name)), name
    assert value(bounded, "budgeted_tasks_open", tenant_id="_other") == 5
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
    books = [log_of_everything("acme"), log_of_everything("other"), log_of_the_rest("third")]
    await apply_in_cuts(runner, books, [])
    series = exposed(await tenant_snapshot(pool, "acme"))
    assert {dict(labels)["tenant_id"] for _, labels in series if "tenant_id" in dict(labels)} == {"acme"}
    assert value(series, "handoff_validations_total") == 4, "those of the other tenant are not in it"
    alone = exposed(await snapshot(pool, tenant_labels=100))
    assert value(series, "llm_cost_usd_total") == value(alone, "llm_cost_usd_total", tenant_id="acme")
