"""The pages of docs/ that are made from the code: `make docs`. A test compares them, so that they stay true."""

import sys
from collections.abc import Iterable
from pathlib import Path

import orjson
import typer
from typer.cli import get_docs_for_click

from headwater.cli import app
from headwater.docs_replay import replay_page
from headwater.settings import Settings, variable_of
from projections.metric_names import METRICS, PROCESS_METRICS, MetricName
from schemas.export import event_catalogue, event_schemas

DOCS = Path("docs")


def pages() -> dict[str, str]:
    """File name → text, for every generated page."""
    return {
        "events.md": event_catalogue(),
        "events.schema.json": orjson.dumps(event_schemas(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode()
        + "\n",
        "settings.md": settings_page(),
        "metrics.md": metrics_page(),
        "cli.md": cli_page(),
        "replay.md": replay_page(),
    }


def settings_page() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Environment variables, read once at the start. Options of a command go before them. Made by `make docs`.",
        "",
        "| variable | default | what it is |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `{variable_of(name)}` | {_default(field.default)} | {field.description or ''} |")
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    if value is None or value == "":
        return "not set"
    return f"`{','.join(map(str, value))}`" if isinstance(value, tuple) else f"`{value}`"


def metrics_page() -> str:
    """docs/metrics.md."""
    return "\n".join(
        [
            "# Metrics",
            "",
            "Served at `/metrics`. Made by `make docs`.",
            "",
            "Projected from the log, so no restart sets them back. A tenant's key sees its own part of these.",
            "",
            *_table(METRICS.values()),
            "",
            "Of the running process, and of what waits in Redis and PostgreSQL at that moment. An operator sees them.",
            "",
            *_table(PROCESS_METRICS.values()),
            "",
        ]
    )


def _table(metrics: Iterable[MetricName]) -> list[str]:
    lines = ["| metric | kind | labels | what it counts |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return lines


def cli_page() -> str:
    """docs/cli.md."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="headwater")
    text = get_docs_for_click(obj=command, ctx=context, name="headwater", title="Command line")
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip() + "\n"


def main() -> None:
    """Write the pages, or with --check say which are out of date (exit 1)."""
    check = "--check" in sys.argv[1:]
    made = pages()
    stale = [name for name, text in made.items() if not _is(DOCS / name, text)]
    for name in stale:
        if not check:
            (DOCS / name).write_text(made[name])
        sys.stderr.write(f"{'out of date' if check else 'written'}: {DOCS / name}\n")
    sys.exit(1 if check and stale else 0)


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    main()
