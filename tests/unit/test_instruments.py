"""`track_agent_invocation` and `track_llm_call`: what they count, and how what they track can end."""

import asyncio
from decimal import Decimal

import pytest

import headwater
from headwater.instruments import MAX_TENANTS, Instruments
from schemas.money import TokenCounts


@pytest.fixture
def instruments() -> Instruments:
    return Instruments()


def value(instruments: Instruments, name: str, **labels: str) -> float | None:
    return instruments.registry.get_sample_value(name, labels)


async def test_a_run_ends_ok_in_an_error_or_cancelled(instruments: Instruments) -> None:
    async with instruments.track_agent_invocation("writer", "acme"):
        pass
    with pytest.raises(RuntimeError, match="boom"):
        async with instruments.track_agent_invocation("writer", "acme"):
            raise RuntimeError("boom")

    async def run() -> None:
        async with instruments.track_agent_invocation("writer", "acme"):
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for status in ("ok", "error", "cancelled"):
        labels = {"agent_id": "writer", "tenant_id": "acme", "status": status}
        assert value(instruments, "agent_invocations_total", **labels) == 1, status
    assert value(instruments, "agent_invocation_duration_seconds_count", agent_id="writer", tenant_id="acme") == 3


async def test_a_call_counts_its_tokens_and_its_cost(instruments: Instruments) -> None:
    async with instruments.track_llm_call("m", "acme", agent_id="writer") as call:
        call.answered(tokens=TokenCounts(input_uncached=12, output_text=3), cost_usd=Decimal("0.25"))
    with pytest.raises(TimeoutError):
        async with instruments.track_llm_call("m", "acme"):
            raise TimeoutError
    assert value(instruments, "llm_requests_total", model="m", tenant_id="acme", status="ok") == 1
    assert value(instruments, "llm_requests_total", model="m", tenant_id="acme", status="error") == 1
    assert value(instruments, "llm_request_duration_seconds_count", model="m", tenant_id="acme") == 2
    tokens = [
        value(instruments, "llm_tokens_used_total", model="m", tenant_id="acme", token_type=kind)
        for kind in ("input_uncached", "output_text", "cache_read")
    ]
    assert tokens == [12, 3, 0]
    assert value(instruments, "llm_cost_usd_total", model="m", tenant_id="acme", agent_id="writer") == 0.25


async def test_labels_are_bounded(instruments: Instruments) -> None:
    for n in range(MAX_TENANTS + 5):
        async with instruments.track_agent_invocation("writer", f"tenant-{n}"):
            pass
    rest = {"agent_id": "writer", "tenant_id": "_other", "status": "ok"}
    assert value(instruments, "agent_invocations_total", **rest) == 5


async def test_the_public_ones_share_the_registry_of_the_process() -> None:
    labels = {"agent_id": "public", "tenant_id": "acme", "status": "ok"}
    async with (
        headwater.track_agent_invocation("public", "acme"),
        headwater.track_llm_call("public-model", "acme") as call,
    ):
        call.answered(cost_usd=Decimal(1))
    registry = headwater.process_registry()
    assert registry.get_sample_value("agent_invocations_total", labels) == 1
    cost = {"model": "public-model", "tenant_id": "acme", "agent_id": "_none"}
    assert registry.get_sample_value("llm_cost_usd_total", cost) == 1
