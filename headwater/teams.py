"""Finding the team that `--agents module:object` names."""

import importlib
import os
import sys

from handlers.team import Team
from headwater.shadows import PACKAGES, shadow
from schemas.errors import ConfigurationError, SettingError


def load_team(spec: str | None) -> Team:
    """The team in `module:object`, looked up from the working directory; an empty team for None.

    Raises:
        SettingError: there is no such module or object, or it is no Team; or a module in the working directory bears
            the name of one of our packages.
        ConfigurationError: the module is there, and fails to import.
    """
    if spec is None:
        return Team()
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise SettingError(
            f"--agents (HEADWATER_AGENTS) {spec!r} is not of the form module:object, such as my_team.agents:team"
        )
    if module_name.partition(".")[0] in PACKAGES:
        raise SettingError(f"--agents {spec!r}: {module_name!r} is a module of Headwater's own: rename yours")
    # Python is about to look into the working directory first.
    if (wrong := shadow([os.getcwd()])) is not None:
        raise SettingError(wrong)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        raise (SettingError if absent else ConfigurationError)(
            f"--agents {spec!r}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    team = getattr(module, attribute, None)
    if not isinstance(team, Team):
        raise SettingError(f"--agents {spec!r}: {attribute!r} in {module_name} is {team!r}, not a headwater.Team")
    return team
