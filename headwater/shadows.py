"""A user's own `handlers.py` in the place of our package of that name: found before it is imported.

Imports nothing of ours, for it is asked before anything of ours is imported.
"""

from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("handlers", "headwater", "projections", "schemas", "streams")
_HOME = Path(__file__).resolve().parent.parent


def shadow(path: Sequence[str] | None = None) -> str | None:
    """What is wrong, and what to do, if one of our packages would be imported from somewhere else; else None.

    `path` are the directories to look in; None stands for where Python looks.
    """
    for name in PACKAGES:
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.origin is not None and Path(spec.origin).resolve().parent != _HOME / name:
            return (
                f"{spec.origin} bears the name of Headwater's own package {name!r}, and would be imported in its place:"
                " rename it, start in another directory, or take its directory off PYTHONPATH"
            )
    return None
