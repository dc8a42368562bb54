"""`headwater --help` as a new user reads it, and what the shell completes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from headwater.cli import PANELS, app
from headwater.cli.help import arrange, help_of


def commands() -> Iterator[tuple[str, Any]]:
    """Each command by its words."""
    stack: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    while stack:
        words, one = stack.pop()
        if isinstance(one, TyperGroup):
            stack += [(f"{words} {name}".strip(), command) for name, command in one.commands.items()]
        else:
            yield words, one


def said(*arguments: str, **more: str) -> str:
    env = os.environ | {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"} | more
    command = [sys.executable, "-m", "headwater", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_commands_stand_under_headings_in_the_order_in_which_they_are_met() -> None:
    shown = said("--help")
    assert "Usage: headwater " in shown
    places = [shown.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)
    for names in PANELS.values():
        for name in names:
            assert f"│ {name} " in shown
    assert said("--version").split()[0] == "headwater"


def test_every_command_and_option_says_what_it_is() -> None:
    found = dict(commands())
    assert len(found) > 25
    for words, command in found.items():
        assert command.help, words
        assert len(command.get_short_help_str()) <= 70, (words, command.get_short_help_str())
        for paragraph in command.help.split("\n\n"):
            assert "\n" not in paragraph, "the terminal breaks the lines"
        for parameter in command.params:
            text = getattr(parameter, "help", None)
            assert text, (words, parameter.name)
            # rich would take it for markup, and show nothing.
            assert "[default" not in text, (words, parameter.name)


def test_defaults_are_shown() -> None:
    shown = " ".join(said("up", "--help").split())
    for default in ("HEADWATER_DATA, or .headwater", "HEADWATER_PORT, or 8080", "HEADWATER_WORKERS, or 2"):
        assert default in shown


def test_a_command_without_a_heading_is_a_mistake() -> None:
    lonely = typer.Typer()
    lonely.command("alone")(lambda: None)
    lonely.command("listed")(lambda: None)
    with pytest.raises(ValueError, match="alone"):
        arrange(lonely, {"Run": ("listed",)})


def test_help_is_a_docstring_whose_lines_are_joined() -> None:
    def command() -> None:
        """Do it. With care,
        and [twice].

        Then rest
        a while.
        """

    assert help_of(command) == ("Do it. With care, and \\[twice].\n\nThen rest a while.", "Do it")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("headwater re", ["replay", "reprice", "rebuild"]),
        ("headwater dead-letters re", ["redrive"]),
        ("headwater costs --by o", ["outcome"]),
        ("headwater rebuild m", ["memories", "metrics"]),
        ("headwater submit --priority c", ["critical"]),
        ("headwater fork --co", ["--cohort"]),
    ],
)
def test_the_shell_completes(typed: str, words: list[str]) -> None:
    completed = said(
        _HEADWATER_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(typed.split()) - 1)
    ).split()
    assert sorted(completed) == sorted(words)
