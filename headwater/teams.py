"""Finding the team that `--agents module:object` names."""

import importlib
import os
import sys

from handlers.team import Team
from schemas.errors import ConfigurationError

_OURS = frozenset({"handlers", "headwater", "projections", "schemas", "streams"})


def load_team(spec: str | None) -> Team:
    """The team in `module:object`, looked up from the working directory; an empty team for None.

    Raises:
        ConfigurationError: the module or object is missing, fails to import, or is no Team.
    """
    if spec is None:
        return Team()
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(f"--agents {spec!r} is not of the form module:object, such as my_team.agents:team")
    if module_name.partition(".")[0] in _OURS:
        raise ConfigurationError(f"--agents {spec!r}: {module_name!r} is a module of Headwater's own: rename yours")
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
