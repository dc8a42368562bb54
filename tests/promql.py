"""PromQL as far as a dashboard needs it: does an expression ask for what the code exports?"""

import re
from collections.abc import Iterable, Iterator, Mapping

from projections.metric_names import METRICS, PROCESS_METRICS

ADDED = {"job", "instance"}
"""Labels that Prometheus adds."""
OWN = {"up": ADDED, "ALERTS": {"alertname", "alertstate"}}
"""Series that Prometheus makes."""
# By label, or by metric and label where the same label means another thing elsewhere.
VALUES = {
    "status": {"completed", "failed", "cancelled", "ok", "error", "unknown", "5.."},
    "pending_calls.state": {"queued", "running"},
    "langfuse_export_pending_events.state": {"waiting", "in_flight"},
    "cost_status": {"unpriced", "unknown"},
    "alertstate": {"firing"},
    "job": {"headwater"},
    "tenant_id": {"$tenant"},
    "exceeded": {"true", "false"},
}
WORDS = frozenset(
    {
        "sum",
        "max",
        "min",
        "by",
        "without",
        "on",
        "and",
        "or",
        "rate",
        "increase",
        "histogram_quantile",
        "max_over_time",
        "offset",
        "unless",
        "absent",
        "vector",
    }
)
GROUPING = re.compile(r"\b(?:by|without|on)\s*\(([^)]*)\)")
_STRING = re.compile(r'"[^"]*"')
_SELECTOR = re.compile(r"\b([a-zA-Z_:]\w*)\s*\{([^}]*)\}")
_MATCHER = re.compile(r'\s*(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"\s*')


def _series() -> dict[str, set[str]]:
    found = dict(OWN)
    for metric in (METRICS | PROCESS_METRICS).values():
        labels = set(metric.labels) | ADDED
        if metric.kind == "histogram":
            found |= {f"{metric.name}_{part}": labels for part in ("sum", "count")}
            found[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            found[metric.name] = labels
    return found


SERIES = _series()
"""Every series that a scrape can have, and its labels."""


def split_labels(texts: Iterable[str]) -> set[str]:
    """The labels in lists such as `le, route`."""
    return {label.strip() for text in texts for label in text.split(",") if label.strip()}


def problems_of(expression: str, series: Mapping[str, set[str]] = SERIES) -> list[str]:
    """What is wrong with a PromQL expression; nothing, if it can have an answer from these series."""
    bare = _STRING.sub('""', expression)
    names = _names(bare)
    problems = [f"unbalanced {pair}" for pair in ("()", "[]", "{}") if not _balanced(bare, pair)]
    problems += [f"no such metric: {name}" for name in names if name not in series]
    known = {"le", *ADDED}.union(*(series.get(name, set()) for name in names))
    grouped = split_labels(GROUPING.findall(bare))
    problems += [f"no metric here has the label {label}" for label in sorted(grouped - known)]
    return problems + _selector_problems(expression, series) + _kind_problems(bare)


def _balanced(text: str, pair: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == pair[0]) - (character == pair[1])
        if depth < 0:
            return False
    return depth == 0


def _names(bare: str) -> list[str]:
    rest = GROUPING.sub(" ", re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare))
    return [word for word in re.findall(r"(?<![\w$.])[a-zA-Z_]\w*", rest) if word not in WORDS]


def selected(expression: str) -> Iterator[tuple[str, str, str]]:
    """What an expression picks out by equality: (metric, label, value)."""
    for name, matchers in _SELECTOR.findall(expression):
        for label, value in re.findall(r'(\w+)\s*=\s*"([^"]*)"', matchers):
            yield name, label, value


def _selector_problems(expression: str, series: Mapping[str, set[str]]) -> list[str]:
    problems = []
    for name, matchers in _SELECTOR.findall(expression):
        for part in filter(str.strip, matchers.split(",")):
            matched = _MATCHER.fullmatch(part)
            if matched is None:
                problems.append(f"cannot read {part!r}")
                continue
            label, value = matched.groups()
            if label not in series.get(name, set()):
                problems.append(f"{name} has no label {label}")
            if value not in VALUES.get(f"{name}.{label}", VALUES.get(label, {value})):
                problems.append(f"{label} is never {value!r}")
    return problems


def _kind_problems(bare: str) -> list[str]:
    problems = []
    for name, window in re.findall(r"\b(\w+)(?:\{[^}]*\})?(\[)?", bare):
        metric = (METRICS | PROCESS_METRICS).get(name)
        if metric and metric.kind == "counter" and not window:
            problems.append(f"{name} is a counter, of which only the rate says something")
        if metric and metric.kind == "gauge" and window:
            problems.append(f"{name} is a gauge, of which a rate says nothing")
    return problems
