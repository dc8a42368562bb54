"""Finding the user's team: what stands in the way is named."""

from pathlib import Path

import pytest

from headwater.teams import load_team
from schemas.errors import ConfigurationError

TEAM = "from headwater import Team\n\nteam = Team()\n"


@pytest.mark.parametrize("name", ["handlers", "headwater", "projections", "schemas", "streams"])
@pytest.mark.parametrize("form", ["{}.py", "{}/__init__.py"])
def test_a_module_beside_the_team_with_the_name_of_one_of_our_packages_is_refused(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "team_beside.py").write_text(TEAM)
    shadow = tmp_path / form.format(name)
    shadow.parent.mkdir(exist_ok=True)
    shadow.write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=rf"{name}.*would be imported in its place: rename it"):
        load_team("team_beside:team")


def test_a_module_of_the_users_that_fails_to_import_is_named_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "team_raising.py").write_text("raise RuntimeError('no database')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigurationError, match="importing team_raising failed: RuntimeError: no database"):
        load_team("team_raising:team")
