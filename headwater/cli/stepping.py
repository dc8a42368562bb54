"""`headwater replay --step`: walk a task event by event. Keys from a terminal, lines from a pipe."""

import difflib
import sys

import click
from rich.markup import escape

from handlers.supervisor import TaskState, evolve
from headwater.cli.common import err, out
from headwater.cli.showing import as_text
from headwater.replay.moments import position_of
from headwater.replay.sentences import tell
from schemas.errors import InvalidInputError
from schemas.event import AgentEvent
from schemas.plurals import counted

HELP = "n next, p previous, g POSITION go to, d what changed in the state, q quit"


def step_through(events: list[AgentEvent]) -> None:
    """Show one event after the other, as the user asks."""
    states: list[TaskState | None] = [None]
    for event in events:
        states.append(evolve(states[-1], event))
    here = 0
    out.print(f"[dim]{counted(len(events), 'event')}; {HELP}[/dim]")
    _show(events, here)
    while (asked := _ask()) is not None:
        command, _, rest = asked.partition(" ")
        match command:
            case "n" if here + 1 < len(events):
                here += 1
            case "p" if here > 0:
                here -= 1
            case "n" | "p":
                err.print(f"that was the {'last' if command == 'n' else 'first'} event")
                continue
            case "g":
                here = _go(events, rest.strip(), here)
            case "d":
                _diff(states[here], states[here + 1])
                continue
            case "q":
                return
            case _:
                err.print(HELP)
                continue
        _show(events, here)


def _show(events: list[AgentEvent], here: int) -> None:
    event = events[here]
    out.print(f"[bold]{here + 1}/{len(events)}[/bold]  {event.position}  [bold]{event.type}[/bold] {event.id}")
    out.print(f"  {escape(tell(event, events[:here]))}", soft_wrap=True)


def _go(events: list[AgentEvent], text: str, here: int) -> int:
    """The newest event at or before a position, an event's id or a time; the present one if that cannot be read."""
    try:
        wanted = position_of(text, events)
    except InvalidInputError as error:
        err.print(str(error))
        return here
    there = [n for n, event in enumerate(events) if position_of(event.position or "0-0", events) <= wanted]
    return there[-1] if there else 0


def _diff(before: TaskState | None, after: TaskState | None) -> None:
    old, new = ("(no open task)" if s is None else as_text(s.model_dump(mode="json")) for s in (before, after))
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), "before", "after", lineterm="", n=1))
    for line in lines or ["the state did not change"]:
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "dim")
        out.print(f"[{colour}]{escape(line)}[/]", soft_wrap=True)


def _ask() -> str | None:
    """The next command, or None at the end of the input. In a terminal one key is enough, but for `g`."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    key = click.getchar()
    if key in ("\x03", "\x04"):
        return None
    return f"g {click.prompt('position')}" if key == "g" else key
