"""docker-compose.yml: every name in it exists, in itself, in our settings and in our command line (contract row F4).

Compose reads it too where it is installed; what is checked here does not need it.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from headwater.cli import app
from headwater.settings import Settings
from tests.containers import POSTGRES_IMAGE, REDIS_IMAGE

ROOT = Path(__file__).parents[2]
OURS = ("api", "worker", "projector", "simulator")
LANGFUSE = ("clickhouse", "minio", "postgres", "redis", "web", "worker")
ALWAYS = {"api", "grafana", "postgres", "projector", "prometheus", "redis", "worker"}
PROVIDER_KEYS = {"OPENAI_API_KEY", "ANTHROPIC_API_KEY"}
_VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")
_SECRET = re.compile(r"PASSWORD|SECRET|SALT|ENCRYPTION_KEY|REDIS_AUTH|_KEY$")


@pytest.fixture(scope="module")
def text() -> str:
    return (ROOT / "docker-compose.yml").read_text()


@pytest.fixture(scope="module")
def compose(text: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(text)
    return value


def env_example() -> dict[str, str]:
    """The variables of .env.example; those that are commented out too."""
    lines = re.findall(r"^(?:# )?([A-Z][A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    return dict(lines)


def setting_names() -> set[str]:
    return {str(field.validation_alias or f"HEADWATER_{name.upper()}") for name, field in Settings.model_fields.items()}


def image_volumes() -> list[str]:
    return re.findall(r"^VOLUME (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def image_user() -> str:
    (found,) = re.findall(r"^USER (\d+:\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return str(found)


def command(words: list[str]) -> list[str]:
    """The options of a command line of ours; fails if there is no such command."""
    tree = typer.main.get_command(app)
    found = tree.get_command(None, words[0])  # type: ignore[attr-defined]  # a group; no context is needed
    assert found is not None, f"headwater has no command {words[0]!r}"
    return [option for parameter in found.params for option in parameter.opts]


def test_the_services_and_their_profiles(compose: dict[str, Any]) -> None:
    profiles = {name: tuple(service.get("profiles", ())) for name, service in compose["services"].items()}
    expected: dict[str, tuple[str, ...]] = dict.fromkeys(ALWAYS, ())
    expected |= {"simulator": ("demo",)} | {f"langfuse-{part}": ("langfuse",) for part in LANGFUSE}
    assert profiles == expected


def test_every_service_restarts_is_watched_and_waits_for_what_it_needs(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        check = service["healthcheck"]
        assert check["test"][0] in ("CMD", "CMD-SHELL"), name
        assert len(check["test"]) == 2 if check["test"][0] == "CMD-SHELL" else len(check["test"]) > 1
        assert {"interval", "timeout", "retries"} <= check.keys(), name
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}, (name, other)
            assert set(services[other].get("profiles", ())) <= set(service.get("profiles", ())), (name, other)
            assert set(services[other]["networks"]) & set(service["networks"]), f"{name} cannot reach {other}"
    for name in ("api", "worker", "projector"):
        assert set(services[name]["depends_on"]) == {"redis", "postgres"}
    # A fixed name or a port of the machine would be one too many for the second worker.
    assert not {"container_name", "ports"} & services["worker"].keys()
    assert services["worker"]["deploy"]["replicas"] == "${WORKERS:-2}"


def test_images_have_versions_and_are_those_that_the_tests_use(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        if name in OURS:
            assert (service["build"], service["image"]) == (".", "headwater:${HEADWATER_TAG:-latest}")
        else:
            assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", service["image"]), service["image"]
    assert services["redis"]["image"] == REDIS_IMAGE
    assert services["postgres"]["image"] == POSTGRES_IMAGE
    assert services["langfuse-web"]["image"].split(":")[1] == services["langfuse-worker"]["image"].split(":")[1] == "4"


def test_what_is_mounted_and_joined_exists(compose: dict[str, Any]) -> None:
    volumes, networks = set(), set()
    for name, service in compose["services"].items():
        networks |= set(service["networks"])
        for volume in service.get("volumes", ()):
            source = _VARIABLE.sub(lambda found: found["rest"], volume).split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), (name, source)
                assert volume.endswith(":ro"), f"{name} may not write {source}"
            else:
                volumes.add(source)
    assert volumes == set(compose["volumes"])
    assert networks == set(compose["networks"])
    # What is stored must not be reachable from outside.
    for name in ("redis", "postgres", *(f"langfuse-{part}" for part in ("postgres", "redis", "clickhouse", "minio"))):
        service = compose["services"][name]
        assert "ports" not in service
        assert all(compose["networks"][network]["internal"] for network in service["networks"]), name
        assert service["volumes"], f"{name} would lose what it stores"


def test_ports_are_on_loopback_and_metrics_on_none(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert set(published) == {"api", "grafana", "langfuse-web"}
    for ports in published.values():
        for port in ports:
            assert _VARIABLE.sub(lambda found: found["rest"], port).startswith("127.0.0.1:"), port
    api = compose["services"]["api"]
    assert api["ports"][0].endswith(f":{api['environment']['HEADWATER_PORT']}")
    assert api["environment"]["HEADWATER_METRICS_PORT"] not in str(published)
    # A network without a way out publishes no ports.
    for name in published:
        networks = [compose["networks"][network] or {} for network in compose["services"][name]["networks"]]
        assert any(not network.get("internal") for network in networks), name


def test_our_commands_and_settings_exist(compose: dict[str, Any]) -> None:
    known = setting_names()
    for name in OURS:
        service = compose["services"][name]
        words = service["command"]
        options = command(words)
        assert words[0] == name
        for word in words[1:]:
            assert word.split("=")[0] in options, f"headwater {words[0]} has no option {word}"
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        unknown = set(service.get("environment", {})) - known - PROVIDER_KEYS - {"HOME"}
        assert not unknown, f"{name}: no such settings: {unknown}"
        assert service["init"], f"{name}: nobody waits for what a subprocess leaves behind"
        mounted = [entry.split(":")[0] for entry in service["tmpfs"]]
        mounted += [entry.split(":")[-2] for entry in service.get("volumes", ())]
        assert set(image_volumes()) <= set(mounted), f"every container of {name} would leave a volume without a name"
        owned = [entry for entry in service["tmpfs"] if entry.startswith("/data:")]
        assert owned == ["/data:uid={},gid={}".format(*image_user().split(":"))], "or it cannot be written"
    for name in ("worker", "projector"):
        service = compose["services"][name]
        beat = service["environment"]["HEADWATER_HEARTBEAT"]
        assert beat in service["healthcheck"]["test"][1]
        assert Path(beat).parent == Path(service["tmpfs"][0]), "the only place that can be written"


def test_the_log_is_kept(compose: dict[str, Any]) -> None:
    words = compose["services"]["redis"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendfsync"] == "${REDIS_FSYNC:-everysec}"
    assert "redis:/data" in compose["services"]["redis"]["volumes"]


def test_no_secret_is_written_down(compose: dict[str, Any], text: str) -> None:
    for name, service in compose["services"].items():
        for key, value in (service.get("environment") or {}).items():
            if (
                _SECRET.search(key)
                and key not in PROVIDER_KEYS | {"HEADWATER_LLM_API_KEY"}
                and "ACCESS_KEY_ID" not in key
            ):
                assert value, (name, key)
                assert _VARIABLE.fullmatch(value), f"{name}: {key} is in clear"
    # Without a password nothing may start: such variables have no default, and .env.example none that works.
    example = env_example()
    for found in _VARIABLE.finditer(text):
        assert found["name"] in example or found["name"] == "HEADWATER_TAG", found["name"]
        if found["kind"] == "?":
            assert example[found["name"]].endswith("generate"), found["name"]
        elif _SECRET.search(found["name"]):
            assert found["rest"] == "", found["name"]


def test_variables_of_the_examples_are_used(compose: dict[str, Any], text: str) -> None:
    used = {found["name"] for found in _VARIABLE.finditer(text)}
    for service in compose["services"].values():
        used |= {key for key, value in (service.get("environment") or {}).items() if value is None}
    assert set(env_example()) - {"COMPOSE_PROJECT_NAME"} <= used
    demo = dict(re.findall(r"^(\w+)=(.+)$", (ROOT / "deploy/demo.env").read_text(), re.MULTILINE))
    assert set(demo) <= used
    host = re.fullmatch(r"http://(\w+):(\d+)/v1", demo["HEADWATER_LLM_BASE_URL"])
    assert host is not None
    assert f"--port={host[2]}" in compose["services"][host[1]]["command"]
    assert (ROOT / demo["HEADWATER_PRICES"].removeprefix("/team/")).exists()


def written_env(tmp_path: Path) -> tuple[Path, str]:
    """A copy of what Compose reads, with the .env that deploy/new-env.sh writes there."""
    for name in ("docker-compose.yml", ".env.example"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("deploy", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([tmp_path / "deploy/new-env.sh"], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    return tmp_path, (tmp_path / ".env").read_text()


def test_new_env_writes_secrets_once(tmp_path: Path) -> None:
    directory, text = written_env(tmp_path)
    assert "generate" not in re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    secrets = re.findall(r"^\w+=(?:[ps]k-lf-)?([0-9a-f]{64})$", text, re.MULTILINE)
    assert len(secrets) == len(set(secrets)) == (ROOT / ".env.example").read_text().count("generate\n")
    assert (directory / ".env").stat().st_mode & 0o777 == 0o600
    again = subprocess.run([directory / "deploy/new-env.sh"], capture_output=True, text=True, check=False, timeout=20)
    assert again.returncode == 1
    assert (directory / ".env").read_text() == text


def test_compose_reads_it_where_it_is_installed(tmp_path: Path, compose: dict[str, Any]) -> None:
    directory, _ = written_env(tmp_path)
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]) is None:
            continue
        asked = subprocess.run([*words, "version"], capture_output=True, check=False, timeout=60)
        if asked.returncode == 0:
            run = [*words, "--profile", "demo", "--profile", "langfuse", "config", "--services"]
            done = subprocess.run(run, cwd=directory, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, done.stderr
            assert set(done.stdout.split()) == set(compose["services"])
            (directory / ".env").unlink()
            done = subprocess.run(run, cwd=directory, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode != 0, "it must not start without passwords"
            assert "run deploy/new-env.sh" in done.stderr
