"""How the commands are listed by `headwater --help`, and how a command's docstring becomes its help."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.markup import escape


def arrange(app: typer.Typer, panels: Mapping[str, Sequence[str]]) -> None:
    """Put the commands of `app` under headings, in this order, and give each its help from its docstring.

    Raises:
        ValueError: a command is under no heading, or a heading names one that there is not.
    """
    found: list[Any] = [*app.registered_commands, *app.registered_groups]
    places = {name: (panel, number) for number, (panel, name) in enumerate(_pairs(panels))}
    if strangers := {one.name for one in found} ^ set(places):
        raise ValueError(f"these commands are registered, or listed, and not both: {sorted(strangers)}")
    for one in found:
        one.rich_help_panel = places[one.name][0]
    parts = [app]
    for group in app.registered_groups:
        if group.typer_instance is not None:
            group.short_help = group.typer_instance.info.help
            parts.append(group.typer_instance)
    for part in parts:
        for command in part.registered_commands:
            command.help, command.short_help = help_of(command.callback)


def _pairs(panels: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    return [(panel, name) for panel, names in panels.items() for name in names]


def help_of(command: object) -> tuple[str, str]:
    """(the whole help, its first sentence), from a docstring whose lines are broken where the code's are."""
    paragraphs = [" ".join(text.split()) for text in (inspect.getdoc(command) or "").split("\n\n")]
    first = re.split(r"(?<=[.:;]) ", paragraphs[0])[0].rstrip(".:;")
    return "\n\n".join(map(escape, paragraphs)), escape(first)
