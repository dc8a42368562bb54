"""Prometheus' rules and Grafana's dashboard ask only for what the code exports: names, labels, values (row F4)."""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from projections.metric_names import METRICS, PROCESS_METRICS
from streams.backlog import READERS
from tests.promql import GROUPING, SERIES, problems_of, split_labels

DEPLOY = Path(__file__).parents[2] / "deploy"


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/headwater.json").read_text())
    return value


def queries() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel, target


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("max(no_such_metric)", "no such metric: no_such_metric"),
        ('parked_entries{agent_id="a"}', "has no label agent_id"),
        ("sum by (agent_id) (parked_entries)", "no metric here has the label agent_id"),
        ('pending_calls{state="waiting"}', "never 'waiting'"),
        ("max(parked_entries", "unbalanced ()"),
        ("supervisor_tasks_total > 3", "is a counter"),
        ("rate(parked_entries[5m])", "is a gauge"),
        ("agent_invocation_duration_seconds", "no such metric"),
    ],
)
def test_the_check_finds_what_is_wrong(expression: str, says: str) -> None:
    assert any(says in problem for problem in problems_of(expression)), problems_of(expression)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_a_rule_can_fire_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert problems_of(rule["expr"]) == []
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "action"}
    told = " ".join(rule["annotations"].values())
    # What the text names must have survived the expression's grouping.
    outer = GROUPING.search(rule["expr"])
    kept = set(outer[1].replace(" ", "").split(",")) if outer else set()
    assert set(re.findall(r"\$labels\.(\w+)", told)) <= kept


def test_rules_cover_what_can_go_wrong() -> None:
    asked = " ".join(rule["expr"] for rule in rules())
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for name in ("up", "consumer_lag_seconds", "projection_lag_seconds", "pending_calls", "parked_entries"):
        assert re.search(rf"\b{name}\b", asked), name
    for name in ("supervisor_tasks_total", "llm_requests_total", "llm_cost_usd_total", "llm_unpriced_attempts_total"):
        assert re.search(rf"\b{name}\b", asked), name
    for name in ("log_entries_unreadable_total", "langfuse_export_lag_seconds", "log_memory_used_bytes"):
        assert re.search(rf"\b{name}\b", asked), name


def test_the_dashboard_asks_for_what_there_is() -> None:
    for panel, target in queries():
        assert problems_of(target["expr"]) == [], (panel["title"], target["expr"])
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            kept = split_labels(re.findall(r"\bby\s*\(([^)]*)\)", target["expr"]))
            assert label in kept, (panel["title"], label)
    asked = {name for name in SERIES for _, target in queries() if re.search(rf"\b{name}\b", target["expr"])}
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    assert set(METRICS | PROCESS_METRICS) <= shown, "a metric that nobody sees"


def test_the_dashboard_is_well_formed() -> None:
    board = dashboard()
    ids = Counter(panel["id"] for panel in board["panels"])
    assert set(ids.values()) == {1}
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, f"{panel['title']} lies on another panel"
        cells |= taken
        refs = Counter(target["refId"] for target in panel.get("targets", ()))
        assert set(refs.values()) <= {1}, panel["title"]
    titles = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert titles == ["Overview", "Cost", "Budgets", "Tasks", "Latency", "Lag"]
    (variable,) = board["templating"]["list"]
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
    assert asked is not None
    assert asked[2] in SERIES[asked[1]]


def test_the_data_source_is_the_one_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    used = set(re.findall(r'"uid": "([^"]+)"', json.dumps(dashboard()))) - {dashboard()["uid"]}
    assert used == {source["uid"]}
    compose = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/headwater.yml").read_text())["providers"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in compose["grafana"]["volumes"]


def test_prometheus_scrapes_the_metrics_port_of_every_api() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert all((DEPLOY / "prometheus" / name).exists() for name in config["rule_files"])
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "headwater")
    (found,) = job["dns_sd_configs"]
    compose = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())["services"]
    (name,) = found["names"]
    assert str(found["port"]) == compose[name]["environment"]["HEADWATER_METRICS_PORT"]
    assert set(compose["prometheus"]["networks"]) & set(compose[name]["networks"])


def test_promtool_agrees_where_it_is_installed() -> None:
    promtool = shutil.which("promtool")
    for words in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ):
        if promtool is not None:
            done = subprocess.run(
                [promtool, *words], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == 0, done.stdout + done.stderr
    tested = yaml.safe_load((DEPLOY / "prometheus/rules_test.yml").read_text())["tests"]
    named = {case["alertname"] for test in tested for case in test["alert_rule_test"]}
    assert named <= {rule["alert"] for rule in rules()}
    fed = {item["series"].split("{")[0] for test in tested for item in test["input_series"]}
    assert fed <= set(SERIES)


def test_readers_that_a_text_names_exist() -> None:
    (told,) = (rule["annotations"]["action"] for rule in rules() if rule["alert"] == "HeadwaterReaderBehind")
    assert set(re.findall(r"(\w+):", told)) == set(READERS)
