"""What a process is given to start with and cannot use: one clear line that names it, and nothing is left running."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from headwater.embedded import EmbeddedServerError, EmbeddedServers
from headwater.node import running_node

ROOT = Path(__file__).parents[2]
TEAM = "examples.support_desk.agents:team"


def start(data: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """`headwater ARGUMENTS` to its end: it is expected to give up at once. It starts in `PWD`, if that is given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_") and not k.endswith("_URL")}
    return subprocess.run(
        [sys.executable, "-m", "headwater", *arguments],
        env=kept | {"HEADWATER_DATA": str(data), "NO_COLOR": "1", "COLUMNS": "200", "HEADWATER_PORT": "0"} | settings,
        cwd=settings.get("PWD", ROOT),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for part in (tmp_path, *list(tmp_path.parents)[:2]):
        part.chmod(0o711)
    return tmp_path / "data"


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """Files that are wrong, by what is wrong with them."""
    for name, text in {
        "no_json.json": "[",
        "a_list.json": "[]",
        "words.json": '{"openai/sim-fast": {"input_cost_per_token": "cheap", "output_cost_per_token": 1}}',
        "negative.json": '{"openai/sim-fast": {"input_cost_per_token": -1, "output_cost_per_token": 1}}',
        "broken_team.py": "def team(:",
        "raising_team.py": "raise RuntimeError('no team today')",
        "exiting_team.py": "import sys; sys.exit('no team today')",
        "twice_team.py": "from examples.minimal_agent import *",
        "taken_team.py": (
            "from headwater import *\n"
            "class A(BaseAgent):\n"
            "    registration = AgentRegistration(agent_id='a', name='a', description='a')\n"
            "    async def execute(self, task, context): ...\n"
            "team = Team(agents=[A(), A()])\n"
        ),
        "function_team.py": "def team(): ...",
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing.json", "nothing.json cannot be read"),
        ("no_json.json", "no_json.json is not a JSON object"),
        ("a_list.json", "a_list.json is not a JSON object"),
        ("words.json", "model 'openai/sim-fast': input_cost_per_token is no number of 0 or more"),
        ("negative.json", "model 'openai/sim-fast': input_cost_per_token is no number of 0 or more"),
    ],
)
def test_a_wrong_price_file(data: Path, wrong: Path, name: str, said: str) -> None:
    _gives_up(start(data, "up", "--agents", TEAM, HEADWATER_PRICES=str(wrong / name)), said, status=2)
    assert running_node(data) is None


@pytest.mark.parametrize(
    ("status", "spec", "said"),
    [
        (2, "nowhere:team", "importing nowhere failed: ModuleNotFoundError"),
        (1, "broken_team:team", "importing broken_team failed: SyntaxError"),
        (1, "raising_team:team", "RuntimeError: no team today"),
        (1, "exiting_team:team", "SystemExit: no team today"),
        (1, "taken_team:team", "agent 'a' is registered already"),
        (2, "function_team:team", "not a headwater.Team"),
        (2, "function_team:nothing", "'nothing'"),
        (2, "function_team", "module:object"),
        (2, ":team", "module:object"),
        (2, "..:team", "module:object"),
    ],
)
def test_a_wrong_agents_module(data: Path, wrong: Path, status: int, spec: str, said: str) -> None:
    _gives_up(start(data, "up", "--agents", spec, PYTHONPATH=f"{ROOT}{os.pathsep}{wrong}"), said, status=status)


def test_a_worker_that_is_started_alone_says_the_same(data: Path, wrong: Path) -> None:
    servers = {"REDIS_URL": "redis://127.0.0.1:1", "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    path = f"{ROOT}{os.pathsep}{wrong}"
    _gives_up(start(data, "worker", "--agents", "broken_team:team", PYTHONPATH=path, **servers), "SyntaxError")
    _gives_up(start(data, "worker", "--agents", TEAM, **servers), "Redis cannot be reached")
    _gives_up(start(data, "projector", **servers), "Redis cannot be reached")


@pytest.mark.parametrize(
    ("status", "settings", "said"),
    [
        (2, {"REDIS_URL": "nonsense"}, "REDIS_URL 'nonsense' cannot be used"),
        (2, {"REDIS_URL": "redis://127.0.0.1:port"}, "REDIS_URL"),
        (1, {"REDIS_URL": "redis://127.0.0.1:1"}, "Redis cannot be reached at redis://127.0.0.1:1"),
        (1, {"REDIS_URL": "unix:///nowhere.sock"}, "Redis cannot be reached"),
        (1, {"REDIS_URL": "redis://user:s3cret@127.0.0.1:1"}, "…@127.0.0.1:1"),
        (2, {"DATABASE_URL": "nonsense"}, "DATABASE_URL is not a PostgreSQL URL"),
        (1, {"DATABASE_URL": "postgresql://127.0.0.1:1/x"}, "PostgreSQL cannot be reached"),
        (1, {"DATABASE_URL": "postgresql://user:s3cret@127.0.0.1:1/x"}, "PostgreSQL cannot be reached"),
        (2, {"HEADWATER_REDIS_BINARY": "/nowhere"}, "HEADWATER_REDIS_BINARY='/nowhere'"),
        (
            2,
            {"HEADWATER_LOG_LEVEL": "loud"},
            "HEADWATER_LOG_LEVEL 'loud' cannot be used: it must be 'debug', 'info', 'warning' or 'error'",
        ),
        (2, {"HEADWATER_FSYNC": "never"}, "HEADWATER_FSYNC 'never'"),
        (2, {"HEADWATER_SHARDS": "0"}, "HEADWATER_SHARDS '0' cannot be used: it must be 1 or more"),
        (2, {"HEADWATER_FAST_MODELS": ""}, "HEADWATER_FAST_MODELS"),
        (2, {"HEADWATER_PORT": "99999"}, "HEADWATER_PORT '99999' cannot be used: it must be 65535 or less"),
        (1, {"HEADWATER_HOST": "256.256.256.256"}, "256.256.256.256"),
    ],
)
def test_wrong_settings_and_servers_that_are_not_there(
    data: Path, status: int, settings: dict[str, str], said: str
) -> None:
    _gives_up(start(data, "up", "--agents", TEAM, **settings), said, status=status)
    assert running_node(data) is None


@pytest.mark.parametrize("name", ["handlers", "projections", "schemas", "streams"])
def test_a_module_of_the_users_in_the_place_of_ours_is_named(tmp_path: Path, name: str) -> None:
    for number, form in enumerate((f"{name}.py", f"{name}/__init__.py")):
        file = tmp_path / str(number) / form
        file.parent.mkdir(parents=True)
        file.write_text("")
        first = os.pathsep.join((str(tmp_path / str(number)), str(ROOT)))
        done = start(tmp_path / "data", "costs", PWD=str(tmp_path), PYTHONPATH=first)
        _gives_up(done, f"{file} bears the name of Headwater's own package {name!r}", status=2)


def test_an_option_that_cannot_be_used_is_named(data: Path) -> None:
    for arguments, said in (
        (("up", "--workers", "-1"), "--workers '-1' cannot be used: it must be 1 or more"),
        (("up", "--port", "99999"), "--port '99999' cannot be used: it must be 65535 or less"),
        (("api", "--port", "-2"), "--port '-2' cannot be used: it must be 0 or more"),
        (("costs", "--url", "nonsense", "--key", "hw_x"), "--url (HEADWATER_URL) 'nonsense' is not a URL"),
        (("costs", "--url", "http://127.0.0.1:1"), "needs an API key: set HEADWATER_KEY or --key"),
        (("simulator", "--script", "nowhere.json"), "script nowhere.json cannot be read"),
    ):
        _gives_up(start(data, *arguments), said, status=2)


def test_a_data_directory_that_cannot_be_used_is_named(data: Path) -> None:
    data.write_text("a file, where a directory should be")
    said = f"data directory {data} cannot be used by user {os.geteuid()}: File exists"
    _gives_up(start(data, "up"), said)
    # With servers of the user's, too: the logs of the processes go there.
    _gives_up(start(data, "up", REDIS_URL="redis://127.0.0.1:1", DATABASE_URL="postgresql://127.0.0.1:1/x"), said)


def test_without_a_temporary_directory_there_is_no_place_for_sockets(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a container with a read-only file system that nothing is mounted in.
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    with pytest.raises(EmbeddedServerError, match="mount a tmpfs on /tmp"):
        EmbeddedServers(data)


def test_another_number_of_shards_is_refused(data: Path) -> None:
    # The log's number is fixed at its first start, so it is the other settings that are wrong.
    first = start(data, "up", "--agents", TEAM, HEADWATER_SHARDS="4", HEADWATER_HOST="256.256.256.256")
    assert first.returncode == 1
    _gives_up(start(data, "up", "--agents", TEAM, HEADWATER_SHARDS="8"), "set HEADWATER_SHARDS=4")


def _gives_up(done: "subprocess.CompletedProcess[str]", said: str, *, status: int = 1) -> None:
    assert done.returncode == status, (done.returncode, done.stderr)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr + done.stdout
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
