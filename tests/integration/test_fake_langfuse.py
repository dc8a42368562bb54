"""The fake Langfuse understands the real SDK, and the SDK's client understands the fake."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from langfuse import Langfuse, propagate_attributes
from langfuse.api import LangfuseAPI
from langfuse.api.core.api_error import ApiError
from opentelemetry.sdk.trace import TracerProvider

from tests.fake_langfuse import PUBLIC_KEY, SECRET_KEY, FakeLangfuse


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeLangfuse]:
    """A running fake; the SDK keeps one client a process for a key, so the tests share it."""
    with FakeLangfuse(tmp_path_factory.mktemp("langfuse") / "spans.jsonl") as fake:
        yield fake


@pytest.fixture(scope="module")
def client(fake: FakeLangfuse) -> Iterator[LangfuseAPI]:
    """The SDK's client of the read interfaces."""
    with httpx.Client(trust_env=False) as http:
        yield LangfuseAPI(base_url=fake.url, username=PUBLIC_KEY, password=SECRET_KEY, httpx_client=http)


@pytest.fixture(scope="module")
def sdk(fake: FakeLangfuse) -> Iterator[Langfuse]:
    """The SDK, as a user's own code has it."""
    with httpx.Client(trust_env=False) as http:
        langfuse = Langfuse(
            public_key=PUBLIC_KEY,
            secret_key=SECRET_KEY,
            base_url=fake.url,
            tracer_provider=TracerProvider(),
            httpx_client=http,
            timeout=5,
        )
        yield langfuse
        langfuse.shutdown()


def send(sdk: Langfuse, tenant: str, agent: str, cost: float, tokens: int) -> None:
    """One generation, by the SDK."""
    with (
        propagate_attributes(user_id=tenant, session_id="s1", tags=[f"agent:{agent}", f"tenant:{tenant}"]),
        sdk.start_as_current_observation(name=agent, as_type="generation", model="m") as generation,
    ):
        generation.update(
            usage_details={"input": tokens, "output": 1, "total": tokens + 1},
            cost_details={"total": cost},
            metadata={"agent_id": agent, "n": 1},
        )
    sdk.flush()


def query(tenant: str, *dimensions: str) -> str:
    """Costs of a tenant's generations."""
    now = datetime.now(UTC)
    return json.dumps(
        {
            "view": "observations",
            "dimensions": [{"field": name} for name in dimensions],
            "metrics": [
                {"measure": "totalCost", "aggregation": "sum"},
                {"measure": "totalTokens", "aggregation": "sum"},
                {"measure": "count", "aggregation": "count"},
            ],
            "filters": [
                {"column": "userId", "operator": "=", "value": tenant, "type": "string"},
                {"column": "type", "operator": "=", "value": "GENERATION", "type": "string"},
            ],
            "fromTimestamp": (now - timedelta(days=1)).isoformat(),
            "toTimestamp": (now + timedelta(minutes=1)).isoformat(),
        }
    )


def rows(client: LangfuseAPI, text: str) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = client.metrics.metrics(query=text).data
    return data


def test_what_the_sdk_sends_is_decoded_and_answered(fake: FakeLangfuse, client: LangfuseAPI, sdk: Langfuse) -> None:
    send(sdk, "acme", "billing", 0.25, 10)
    send(sdk, "acme", "billing", 0.5, 20)
    send(sdk, "acme", "refunds", 1.0, 30)
    send(sdk, "globex", "billing", 4.0, 40)

    assert rows(client, query("acme", "name")) == [
        {"name": "billing", "sum_totalCost": 0.75, "sum_totalTokens": "32", "count_count": "2"},
        {"name": "refunds", "sum_totalCost": 1.0, "sum_totalTokens": "31", "count_count": "1"},
    ]
    assert rows(client, query("globex")) == [{"sum_totalCost": 4.0, "sum_totalTokens": "41", "count_count": "1"}]

    span = fake.spans()[0]
    assert (span.user_id, span.session_id, span.type, span.model) == ("acme", "s1", "GENERATION", "m")
    assert (span.metadata, sorted(span.tags)) == ({"agent_id": "billing", "n": 1}, ["agent:billing", "tenant:acme"])
    found = client.observations.get_many(trace_id=span.trace_id, fields="core,basic,usage").data
    assert [(o.id, o.name, o.user_id, o.total_cost) for o in found] == [(span.id, "billing", "acme", 0.25)]


def test_pages_and_restarts_lose_nothing(fake: FakeLangfuse, client: LangfuseAPI, sdk: Langfuse) -> None:
    for n in range(3):
        send(sdk, "initech", f"a{n}", 1.0, n)
    first = client.observations.get_many(user_id="initech", limit=2)
    second = client.observations.get_many(user_id="initech", limit=2, cursor=first.meta.cursor)
    assert len({o.id for o in [*first.data, *second.data]}) == 3
    assert second.meta.cursor is None
    before = fake.spans()
    fake.kill()
    fake.start()
    assert fake.spans() == before


def test_wrong_keys_and_high_cardinality_are_refused(fake: FakeLangfuse, client: LangfuseAPI) -> None:
    with httpx.Client(trust_env=False, base_url=fake.url, auth=(PUBLIC_KEY, "wrong")) as http:
        assert http.post("/api/public/otel/v1/traces", content=b"").status_code == 401
        assert http.get("/api/public/v2/observations").status_code == 401
    with pytest.raises(ApiError) as refused:
        rows(client, query("acme", "userId"))
    assert refused.value.status_code == 400
