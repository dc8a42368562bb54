"""Dashboard and rules against a real scrape: every metric, label and value that they ask for is there (row F4).

Where Prometheus is installed, it scrapes too, and answers every panel.
"""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.datastructures import State

from headwater.api.metrics_port import metrics_port
from headwater.process_metrics import HttpMetrics
from headwater.settings import Settings
from projections.db import Pool
from projections.metric_names import METRICS, PROCESS_METRICS
from projections.runner import Runner
from streams.connection import Streams
from tests.logbook import apply_in_cuts
from tests.metric_logs import log_of_everything, log_of_the_rest
from tests.processes import until
from tests.promql import ADDED, OWN, problems_of, selected

DEPLOY = Path(__file__).parents[2] / "deploy"
PANELS = json.loads((DEPLOY / "grafana/dashboards/headwater.json").read_text())["panels"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel.get("targets", ())]
RULES = [
    (rule["alert"], rule["expr"])
    for group in yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
MAY_BE_EMPTY = {"max by (node) (log_memory_limit_bytes) > 0"}
"""A Redis without a limit has none."""
PROMETHEUS = shutil.which("prometheus")
_LISTENS = re.compile(r'msg="Listening on" address=(\S+)')


@dataclass
class Child:
    """A child process, as `headwater up` has them."""

    name: str
    restarts: int = 1
    is_running: bool = True


@pytest.fixture
async def url(settings: Settings, streams: Streams, pool: Pool) -> AsyncIterator[str]:
    """Where all metrics of an application are served that has seen everything, of three tenants."""
    books = [log_of_everything("acme"), log_of_everything("globex"), log_of_the_rest("initech")]
    await apply_in_cuts(Runner(pool, streams.log), books, [])
    keys = {"langfuse_public_key": "pk", "langfuse_secret_key": "sk", "langfuse_host": "http://127.0.0.1:9"}
    http = HttpMetrics()
    for status in (200, 503):
        http.count({"type": "http", "method": "GET", "route": None}, status, 0.01)
    parts: dict[str, Any] = {"streams": streams, "pool": pool, "http_metrics": http, "children": (Child("worker-1"),)}
    state = State(parts | {"settings": settings.model_copy(update=keys)})
    async with metrics_port(state, "127.0.0.1", 0) as url:
        yield url


async def scraped(url: str) -> dict[str, list[dict[str, str]]]:
    """Sample → the labels of each of its series."""
    async with httpx.AsyncClient(timeout=30) as client:
        text = (await client.get(url)).text
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def asked() -> Iterator[tuple[str, str]]:
    yield from QUERIES
    yield from RULES


async def test_panels_and_rules_ask_for_what_a_scrape_has(url: str) -> None:
    samples = await scraped(url)
    series = OWN | {name: ADDED.union(*labels) for name, labels in samples.items()}
    for title, expression in asked():
        assert problems_of(expression, series) == [], (title, expression)
        for metric, label, value in selected(expression):
            there = {labels[label] for labels in samples.get(metric, ()) if label in labels}
            assert metric in OWN or value in there, f"{title}: no {metric} has {label}={value!r}, but {sorted(there)}"
    # What is declared is what is exported: the unit tests' check and this one cannot part.
    for declared in (METRICS | PROCESS_METRICS).values():
        name = f"{declared.name}_sum" if declared.kind == "histogram" else declared.name
        assert series[name] == set(declared.labels) | ADDED, name


async def test_the_check_finds_what_a_scrape_has_not(url: str) -> None:
    samples = await scraped(url)
    without = {name: ADDED.union(*labels) for name, labels in samples.items() if name != "budget_exceeded_total"}
    without["parked_entries"] = ADDED
    found = {problem for _, expression in QUERIES for problem in problems_of(expression, OWN | without)}
    assert "no such metric: budget_exceeded_total" in found
    assert "parked_entries has no label tenant_id" in found


@asynccontextmanager
async def prometheus(binary: str, target: str, home: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A Prometheus that scrapes `target` every half second, with our rules."""
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(DEPLOY / "prometheus/rules.yml")],
        "scrape_configs": [{"job_name": "headwater", "static_configs": [{"targets": [target]}]}],
    }
    (home / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = home / "prometheus.log"
    with log.open("wb") as out:
        options = [f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data"]
        options.append("--web.listen-address=127.0.0.1:0")
        process = await asyncio.create_subprocess_exec(binary, *options, stdout=out, stderr=out)
    try:

        async def listens() -> bool:
            assert process.returncode is None, log.read_text()
            return _LISTENS.search(log.read_text()) is not None

        await until(listens, "Prometheus listens")
        found = _LISTENS.search(log.read_text())
        assert found is not None
        async with httpx.AsyncClient(base_url=f"http://{found[1]}/api/v1", timeout=30) as client:
            yield client
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


async def answers(client: httpx.AsyncClient, expression: str) -> list[dict[str, Any]]:
    """The series that an expression gives now, with Grafana's variables filled in."""
    for variable, value in (("$tenant", ".*"), ("$__rate_interval", "20s"), ("$__range", "20s")):
        expression = expression.replace(variable, value)
    answer = (await client.get("/query", params={"query": expression})).json()
    assert answer["status"] == "success", (expression, answer)
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


@pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus is installed: the tests above hold without it")
async def test_prometheus_answers_every_panel_and_evaluates_every_rule(url: str, tmp_path: Path) -> None:
    assert PROMETHEUS is not None
    target = httpx.URL(url).netloc.decode()
    async with prometheus(PROMETHEUS, target, tmp_path) as client:

        async def was_scraped() -> bool:
            counted = await answers(client, "count_over_time(up[20s])")
            return bool(counted) and int(counted[0]["value"][1]) >= 4

        await until(was_scraped, "Prometheus scraped a few times")
        for title, expression in QUERIES:
            assert await answers(client, expression) or expression in MAY_BE_EMPTY, (title, expression)

        async def evaluated() -> dict[str, dict[str, Any]]:
            groups = (await client.get("/rules")).json()["data"]["groups"]
            return {rule["name"]: rule for group in groups for rule in group["rules"]}

        async def all_healthy() -> bool:
            rules = (await evaluated()).values()
            assert not [rule["lastError"] for rule in rules if rule.get("lastError")]
            return all(rule["health"] == "ok" for rule in rules)

        await until(all_healthy, "every rule was evaluated")
        rules = await evaluated()
        assert set(rules) == {name for name, _ in RULES}
        fires = {
            (name, *(alert["labels"].get(label, "") for label in ("tenant_id", "reason")))
            for name, rule in rules.items()
            for alert in rule["alerts"]
        }
        assert ("HeadwaterUnreadable", "initech", "no_task") in fires
        assert ("HeadwaterParked", "acme", "") in fires
        assert not [name for name, *_ in fires if name in ("HeadwaterDown", "HeadwaterBacklogUnknown")]
