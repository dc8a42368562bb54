"""Finding the team that `--agents module:object` names."""

import importlib
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from handlers.team import Team
from schemas.errors import ConfigurationError

_OURS = frozenset({"handlers", "headwater", "projections", "schemas", "streams"})
_HOME = Path(__file__).resolve().parent.parent


def load_team(spec: str | None) -> Team:
    """The team in `module:object`, looked up from the working directory; an empty team for None.

    Raises:
        ConfigurationError: the module or object is missing, fails to import, or is no Team; or a module in the
            working directory bears the name of one of our packages.
    """
    if spec is None:
        return Team()
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(f"--agents {spec!r} is not of the form module:object, such as my_team.agents:team")
    if module_name.partition(".")[0] in _OURS:
        raise ConfigurationError(f"--agents {spec!r}: {module_name!r} is a module of Headwater's own: rename yours")
    _refuse_shadows(os.getcwd())
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"--agents {spec!r}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    team = getattr(module, attribute, None)
    if not isinstance(team, Team):
        raise ConfigurationError(f"--agents {spec!r}: {attribute!r} in {module_name} is {team!r}, not a headwater.Team")
    return team


def _refuse_shadows(directory: str) -> None:
    """Python looks into the working directory first, so a `schemas.py` there would be imported in place of ours."""
    for name in sorted(_OURS):
        spec = PathFinder.find_spec(name, [directory])
        if spec is not None and spec.origin is not None and Path(spec.origin).resolve().parent != _HOME / name:
            raise ConfigurationError(
                f"{spec.origin} bears the name of Headwater's own package {name!r}, and would be imported in its"
                " place: rename it, or start in another directory"
            )
