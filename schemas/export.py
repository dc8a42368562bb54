"""The catalogue of events, made from the types: JSON Schema, and a page of Markdown."""

import inspect
from typing import Any

from schemas.bodies import BODIES, EventBody


def event_schemas() -> dict[str, dict[str, Any]]:
    """Event type → JSON Schema of its body."""
    return {name: body.model_json_schema() for name, body in sorted(BODIES.items())}


def event_catalogue() -> str:
    """docs/events.md."""
    lines = [
        "# Events",
        "",
        "Every entry of a tenant's log is one of these. The envelope's fields are `id`, `type`, `v` (version),",
        "`session`, `task`, `priority`, `source`, `chain` (agent ids joined with `>`), `parent` (the id of the event",
        "that caused it), `at` and `body` (JSON). A *decision* is written by the supervisor; deciding again over the",
        "log gives the same one. The JSON Schemas are in `events.schema.json`.",
        "",
        "This page is made from `schemas/bodies/` by `make docs`.",
    ]
    for name, body in BODIES.items():
        lines += ["", f"## `{name}`", "", _about(body), "", inspect.cleandoc(body.__doc__ or ""), ""]
        lines += ["| field | type | required |", "|---|---|---|"]
        schema = body.model_json_schema()
        for field, spec in schema["properties"].items():
            required = "yes" if field in schema.get("required", ()) else "no"
            lines.append(f"| `{field}` | {_type(spec)} | {required} |")
    return "\n".join(lines) + "\n"


def _about(body: type[EventBody]) -> str:
    kinds = [f"version {body.version}"]
    kinds += ["decision"] if body.decision else []
    kinds += ["ends the task"] if body.terminal else []
    return f"*{', '.join(kinds)}*"


def _type(spec: dict[str, Any]) -> str:
    if "$ref" in spec:
        return f"`{spec['$ref'].rpartition('/')[2]}`"
    if "enum" in spec:
        return ", ".join(f"`{value}`" for value in spec["enum"])
    if "const" in spec:
        return f"`{spec['const']}`"
    if "anyOf" in spec:
        return " or ".join(_type(option) for option in spec["anyOf"])
    if spec.get("type") == "array":
        return f"list of {_type(spec.get('items', {}))}"
    kind = spec.get("type")
    return f"`{kind}`" + (f" ({spec['format']})" if "format" in spec else "") if kind else "any JSON"
