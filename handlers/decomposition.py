"""Which tasks are split into steps, and whether a split makes sense (contract row A4). Pure."""

import re
from collections.abc import Callable, Mapping, Sequence

from schemas.bodies import Subtask
from schemas.task import Task

MAX_SUBTASKS = 20
MIN_NUMBERED_STEPS = 2
MIN_BULLETS = 3
LONG_WORDS = 80
MIN_ACTIONS = 3

Decomposes = Callable[[Task], bool]
"""Decides from the task alone whether it is to be split. It must depend on nothing else (I5)."""

_NUMBERED = re.compile(r"^\s*(?:step\s+)?\d{1,2}\s*[.):]\s+\S", re.IGNORECASE | re.MULTILINE)
_BULLET = re.compile(r"^\s*[-*•]\s+\S", re.MULTILINE)
_ACTION = re.compile(
    r"\b(?:first|firstly|then|next|after that|afterwards|finally|lastly|secondly|thirdly|once (?:that|this) is done|"
    r"in addition|as a last step)\b",
    re.IGNORECASE,
)


def is_complex(task: Task) -> bool:
    """Has the task several steps? Conservative: in doubt it has not, and one agent gets all of it.

    Two numbered steps, three bullets, or a text of over 80 words that orders at least three actions ("first … then …
    finally").
    """
    text = task.text
    if len(_NUMBERED.findall(text)) >= MIN_NUMBERED_STEPS or len(_BULLET.findall(text)) >= MIN_BULLETS:
        return True
    return len(text.split()) > LONG_WORDS and len(_ACTION.findall(text)) >= MIN_ACTIONS


def never(task: Task) -> bool:
    """Split no task."""
    return False


def problems_of(subtasks: Sequence[Subtask]) -> list[str]:
    """What is wrong with a split: unknown indices and cycles, each named; empty if it can be worked off."""
    if not subtasks:
        return ["there are no subtasks"]
    if len(subtasks) > MAX_SUBTASKS:
        return [f"{len(subtasks)} subtasks are more than the {MAX_SUBTASKS} allowed"]
    unknown = [
        f"subtask {index} depends on subtask {needed}, which does not exist (there are 0 to {len(subtasks) - 1})"
        for index, subtask in enumerate(subtasks)
        for needed in subtask.depends_on
        if needed >= len(subtasks)
    ]
    if unknown:
        return unknown
    cycle = _cycle(subtasks)
    return [f"subtasks depend on each other in a cycle: {' → '.join(map(str, cycle))}"] if cycle else []


def _cycle(subtasks: Sequence[Subtask]) -> list[int]:
    """The indices of a dependency cycle, the first one repeated at the end, or nothing."""
    left = {index: set(subtask.depends_on) for index, subtask in enumerate(subtasks)}
    while free := [index for index, needed in left.items() if not needed & left.keys()]:
        for index in free:
            del left[index]
    if not left:
        return []
    path = [min(left)]
    while True:
        following = min(left[path[-1]] & left.keys())
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)


def ready(subtasks: Sequence[Subtask], done: Mapping[int, object], started: Mapping[int, object]) -> list[int]:
    """The subtasks that can start now: not started, and everything they depend on is done."""
    return [
        index
        for index, subtask in enumerate(subtasks)
        if index not in done and index not in started and all(needed in done for needed in subtask.depends_on)
    ]
