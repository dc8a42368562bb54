"""HEADWATER_METRICS_PORT: the metrics of all tenants without a key, on a port of their own (rows E4 and F1)."""

import httpx
import pytest
from starlette.datastructures import State

from headwater.api.metrics_port import metrics_port
from headwater.process_metrics import HttpMetrics
from headwater.settings import Settings
from projections.db import Pool
from schemas.errors import ConfigurationError
from streams.connection import Streams
from tests.deciding import submit
from tests.projecting import project


async def test_metrics_on_a_port_of_their_own(settings: Settings, streams: Streams, pool: Pool) -> None:
    for tenant in ("acme", "globex"):
        await submit(streams, tenant, "t")
    await project(streams, pool)
    state = State(
        {"settings": settings, "streams": streams, "pool": pool, "http_metrics": HttpMetrics(), "children": ()}
    )
    async with metrics_port(state, "127.0.0.1", 0) as url, httpx.AsyncClient(timeout=20) as client:
        answer = await client.get(url)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")
        assert "# TYPE llm_requests_total counter" in answer.text
        assert (await client.get(url.removesuffix("metrics") + "v1/events")).status_code == 404
        port = httpx.URL(url).port
        assert port is not None
        with pytest.raises(ConfigurationError, match=f"HEADWATER_METRICS_PORT {port}"):
            async with metrics_port(state, "127.0.0.1", port):
                pass
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient() as client:
            await client.get(url)
