"""schemathesis against the running application: no 500, answers as described, nothing of another tenant (row F1).

The seed is fixed and the number of requests bounded, so a run takes about a minute and always asks the same.
"""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok

from headwater.app import create_app
from headwater.embedded import Endpoints
from headwater.settings import Settings
from projections.api_keys import create_key
from projections.db import connect, migrate
from tests.conftest import SHARDS
from tests.serving import DEADLINE_S, echo_team, served, working

SECRET = "swordfish"
PYDANTIC = ("Input should", "Field required", "Extra inputs", "String should", "Value error")
"""Words of a library that mean nothing to who asked."""
SEED = 20_261_125
EXAMPLES = {GenerationMode.POSITIVE: 30, GenerationMode.NEGATIVE: 20}
STREAM = "/v1/events/stream"
ALWAYS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
Operation = Any
"""A schemathesis operation, or case; its classes are generic over the transport."""


@dataclass
class Target:
    """The running application; tenant globex is full of `SECRET`, and acme asks."""

    url: str
    key: str
    task_ids: list[str]
    """Of globex's task, and of one of acme's own."""


async def _serve(endpoints: Endpoints, database_url: str, ready: "asyncio.Queue[Any]", stop: asyncio.Event) -> None:
    config = Settings(shards=SHARDS, lease_ms=5_000, log_level="warning", max_wait_s=0.05)
    there = Endpoints(endpoints.redis_url, database_url)
    async with served(config, there) as url, working(config, there, echo_team()):
        pool = await connect(database_url, max_size=1)
        await migrate(pool)
        keys = {
            tenant: (await create_key(pool, tenant, ["submit", "read", "admin"]))[1] for tenant in ("acme", "globex")
        }
        await pool.close()
        task_ids = []
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_S) as client:
            for tenant, text in (("globex", SECRET), ("acme", "hello")):
                headers = {"Authorization": f"Bearer {keys[tenant]}"}
                body = {"session": f"session of {tenant}", "text": text, "data": {text: text}, "idempotency_key": text}
                task_ids.append((await client.post("/v1/tasks", json=body, headers=headers)).json()["task"])
                done: dict[str, Any] = {"ended_at": None}
                while done["ended_at"] is None:
                    done = (await client.get(f"/v1/tasks/{task_ids[-1]}", headers=headers)).json()
        ready.put_nowait(Target(url, keys["acme"], task_ids))
        await stop.wait()


@pytest.fixture
def target(endpoints: Endpoints, database_url: str, streams: object) -> Iterator[Target]:
    """In a thread, with a loop of its own: schemathesis asks synchronously."""
    found: list[Target] = []
    up = threading.Event()
    handles: list[Any] = []

    async def main() -> None:
        ready: asyncio.Queue[Any] = asyncio.Queue()
        stop = asyncio.Event()
        handles.extend((asyncio.get_running_loop(), stop))
        serving = asyncio.create_task(_serve(endpoints, database_url, ready, stop))
        getting = asyncio.create_task(ready.get())
        await asyncio.wait({serving, getting}, return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            found.append(getting.result())
        getting.cancel()
        up.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert up.wait(60)
        assert found, "the application did not start"
        yield found[0]
    finally:
        handles[0].call_soon_threadsafe(handles[1].set)
        thread.join(60)
        assert not thread.is_alive()


def _operations(document: dict[str, Any]) -> Iterator[Operation]:
    # The key is always sent. That nothing answers without one is tested elsewhere.
    del document["components"]["securitySchemes"]
    for methods in document["paths"].values():
        for operation in methods.values():
            operation.pop("security", None)
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        assert isinstance(result, Ok), result
        yield result.ok()


@pytest.mark.timeout(400)
def test_nothing_that_is_generated_breaks_the_application_or_another_tenants_wall(target: Target) -> None:
    load_all_checks()
    session = requests.Session()
    document = session.get(f"{target.url}/openapi.json", timeout=DEADLINE_S).json()
    asked: dict[str, dict[int, int]] = {}
    for operation in _operations(document):
        label = f"{operation.method.upper()} {operation.path}"
        for mode, examples in EXAMPLES.items():
            statuses = asked.setdefault(label, {})
            _fuzz(target, session, operation, mode, examples, statuses)
    session.close()
    described = create_app(Settings()).openapi()["paths"]
    assert sorted(asked) == sorted(f"{method.upper()} {path}" for path, item in described.items() for method in item)
    # It got through to the handlers, and was also refused: a fuzzer that only ever sees one of them shows nothing.
    assert asked["POST /v1/tasks"].get(202, 0) > 5
    assert asked["POST /v1/tasks"].get(422, 0) > 5
    assert asked["GET /v1/tasks/{task_id}"].get(200, 0) > 2
    assert asked["GET /v1/tasks/{task_id}"].get(404, 0) > 2
    assert asked["GET /v1/events"].get(200, 0) > 5
    assert asked[f"GET {STREAM}"].get(200, 0) > 5
    assert sum(sum(statuses.values()) for statuses in asked.values()) > 400


def _fuzz(
    target: Target,
    session: requests.Session,
    operation: Operation,
    mode: GenerationMode,
    examples: int,
    statuses: dict[int, int],
) -> None:
    if mode is GenerationMode.NEGATIVE and not any(operation.iter_parameters()) and not operation.body:
        return
    names = [*ALWAYS, *(["negative_data_rejection"] if mode is GenerationMode.NEGATIVE else [])]
    checks = CHECKS.get_by_names(names)
    headers = {"Authorization": f"Bearer {target.key}"}
    stream = operation.path == STREAM
    ids = strategies.sampled_from([None, *target.task_ids])

    @seed(SEED)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), task_id=ids)
    def ask(case: Operation, task_id: str | None) -> None:
        if mode is GenerationMode.POSITIVE and task_id and "task_id" in (case.path_parameters or {}):
            case.path_parameters["task_id"] = task_id
        if case.headers:
            # Which tenant is meant is tried elsewhere; here every request is acme's.
            case.headers.pop("Headwater-Tenant", None)
        if stream:
            kwargs = case.as_transport_kwargs(base_url=target.url, headers=headers)
            with session.request(**kwargs, stream=True, timeout=20) as response:
                status, text = response.status_code, next(response.iter_content(4096), b"").decode()
                assert str(status) in operation.definition.raw["responses"], (status, text)
                kind = "text/event-stream" if status == 200 else "application/problem+json"
                assert response.headers["content-type"].partition(";")[0] == kind
        else:
            answer = case.call(base_url=target.url, session=session, headers=headers, timeout=60)
            case.validate_response(answer, checks=checks, headers=headers)
            status, text = answer.status_code, answer.text
        statuses[status] = statuses.get(status, 0) + 1
        assert SECRET not in text
        assert not any(words in text for words in PYDANTIC), text

    ask()
