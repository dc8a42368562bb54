"""The research team with another rule: what a change of the rules looks like to `replay --verify`."""

from examples.research_team.agents import Editor, Researcher, Writer
from headwater import HybridRouter, Task, Team


def everything_to_the_editor(task: Task) -> str | None:
    """Questions go to the editor at once."""
    return "editor" if "?" in task.text or task.subtask is not None else None


team = Team([Researcher(), Writer(), Editor()], HybridRouter([everything_to_the_editor]))
