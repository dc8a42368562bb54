"""What the fake answers to readers: observations, and metrics over them."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from tests.fake_langfuse.store import StoredSpan

PAGE = 50
MAX_PAGE = 1000
MAX_ROWS = 1000

_DIMENSIONS: dict[str, Callable[[StoredSpan], Any]] = {
    "type": lambda span: span.type,
    "name": lambda span: span.name,
    "level": lambda span: span.level,
    "traceName": lambda span: span.trace_name,
    # A group is a whole array, not one of its tags.
    "tags": lambda span: tuple(sorted(span.tags)),
    "environment": lambda span: span.environment,
    "version": lambda span: span.attributes.get("langfuse.version"),
    "providedModelName": lambda span: span.model,
}
_COLUMNS = _DIMENSIONS | {
    "id": lambda span: span.id,
    "traceId": lambda span: span.trace_id,
    "userId": lambda span: span.user_id,
    "sessionId": lambda span: span.session_id,
    "parentObservationId": lambda span: span.parent_id,
}
_MEASURES: dict[str, Callable[[StoredSpan], Decimal | int]] = {
    "count": lambda span: 1,
    "inputTokens": lambda span: sum(count for key, count in span.usage.items() if "input" in key),
    "outputTokens": lambda span: sum(count for key, count in span.usage.items() if "output" in key),
    "totalTokens": lambda span: span.usage.get("total", 0),
    "totalCost": lambda span: span.total_cost,
}
_FIELDS: dict[str, Callable[[StoredSpan], dict[str, Any]]] = {
    "core": lambda span: {
        "id": span.id,
        "traceId": span.trace_id,
        "startTime": span.start.isoformat(),
        "endTime": span.end.isoformat(),
        "projectId": "fake",
        "parentObservationId": span.parent_id,
        "type": span.type,
    },
    "basic": lambda span: {
        "name": span.name,
        "level": span.level,
        "statusMessage": span.status_message,
        "environment": span.environment,
        "userId": span.user_id,
        "sessionId": span.session_id,
        "isRootObservation": span.parent_id is None,
    },
    "io": lambda span: {"input": span.input, "output": span.output},
    "metadata": lambda span: {"metadata": span.metadata},
    "model": lambda span: {"model": span.model, "modelParameters": span.model_parameters},
    "usage": lambda span: {
        "usageDetails": span.usage,
        "costDetails": {key: float(cost) for key, cost in span.cost.items()},
        "totalCost": float(span.total_cost),
    },
    "trace_context": lambda span: {"tags": span.tags, "traceName": span.trace_name},
}


class QueryError(ValueError):
    """A query that the real server refuses with 400."""


def observations(spans: Sequence[StoredSpan], params: Mapping[str, str]) -> dict[str, Any]:
    """One page of observations, the newest first, a span that was stored twice as one."""
    for column in ("traceId", "userId", "sessionId", "name", "type", "level"):
        if column in params:
            spans = [span for span in spans if _COLUMNS[column](span) == params[column]]
    once = sorted({span.id: span for span in spans}.values(), key=lambda s: (s.start_ns, s.id), reverse=True)
    groups = ["core", *(params.get("fields") or "core,basic").split(",")]
    if unknown := [group for group in groups if group not in _FIELDS]:
        raise QueryError(f"unknown field group {unknown[0]!r}")
    start, size = int(params.get("cursor", 0)), min(int(params.get("limit", PAGE)), MAX_PAGE)
    data = [{k: v for group in groups for k, v in _FIELDS[group](span).items()} for span in once[start : start + size]]
    return {"data": data, "meta": {"cursor": str(start + size)} if start + size < len(once) else {}}


def metrics(spans: Sequence[StoredSpan], text: str) -> dict[str, Any]:
    """The rows of a v2 metrics query, duplicates counted as often as they were stored."""
    query = json.loads(text)
    if query.get("view") != "observations":
        raise QueryError("this fake has the view 'observations' only")
    dimensions = [dimension["field"] for dimension in query.get("dimensions", [])]
    if refused := [name for name in dimensions if name not in _DIMENSIONS]:
        raise QueryError(f"{refused[0]!r} cannot be a dimension: it is unknown, or of high cardinality")
    start, end = (datetime.fromisoformat(query[key]) for key in ("fromTimestamp", "toTimestamp"))
    if end <= start:
        raise QueryError("toTimestamp must be after fromTimestamp")
    spans = [span for span in spans if start <= span.start < end and all(_passes(span, f) for f in query["filters"])]
    by_day = _by_day(query)
    groups: dict[tuple[Any, ...], list[StoredSpan]] = {}
    for span in spans:
        key = (*(_DIMENSIONS[name](span) for name in dimensions), *([span.start.date().isoformat()] if by_day else []))
        groups.setdefault(key, []).append(span)
    names = [*dimensions, *(["time_dimension"] if by_day else [])]
    rows = [
        {name: list(part) if isinstance(part, tuple) else part for name, part in zip(names, key, strict=True)}
        | {f"{m['aggregation']}_{m['measure']}": _measure(found, m) for m in query["metrics"]}
        for key, found in sorted(groups.items(), key=lambda item: str(item[0]))
    ]
    limit = (query.get("config") or {}).get("row_limit", 100)
    if not 1 <= limit <= MAX_ROWS:
        raise QueryError(f"row_limit must be from 1 to {MAX_ROWS}")
    return {"data": rows[:limit]}


def _by_day(query: Mapping[str, Any]) -> bool:
    granularity = (query.get("timeDimension") or {}).get("granularity")
    if granularity not in (None, "day"):
        raise QueryError("this fake has the granularity 'day' only")
    return granularity == "day"


def _measure(spans: Sequence[StoredSpan], metric: Mapping[str, str]) -> str | float:
    measure, aggregation = metric["measure"], metric["aggregation"]
    if measure not in _MEASURES or aggregation not in ("sum", "count"):
        raise QueryError(f"unknown measure {measure!r} or aggregation {aggregation!r}")
    if aggregation == "count":
        return str(len(spans))
    total = sum((_MEASURES[measure](span) for span in spans), start=Decimal(0))
    return float(total) if measure == "totalCost" else str(total)


def _passes(span: StoredSpan, condition: Mapping[str, Any]) -> bool:
    column, operator, wanted = condition["column"], condition["operator"], condition["value"]
    if column == "metadata":
        value = span.metadata.get(condition["key"])
        value = value if isinstance(value, str) else json.dumps(value)
    elif column in _COLUMNS:
        value = _COLUMNS[column](span)
    else:
        raise QueryError(f"unknown column {column!r}")
    match operator:
        case "=":
            return bool(value == wanted)
        case "any of":
            return bool(set(value) & set(wanted)) if isinstance(value, tuple) else value in wanted
        case "all of":
            return set(wanted) <= set(value)
    raise QueryError(f"unknown operator {operator!r}")
