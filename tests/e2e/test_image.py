"""What the Dockerfile does, without Docker: what it copies exists, is pinned, and runs when unpacked (row F4)."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES = ("headwater", "handlers", "projections", "schemas", "streams")


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments), continuation lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines() if line.strip())
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines)]


def pins(name: str) -> dict[str, str]:
    """The requirements of a file: name → everything after it."""
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([\w.-]+)==(.*?(?:\\\n.*?)*)$", text, re.MULTILINE))


def test_what_it_copies_exists_and_is_let_in() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[1] == "*", "everything stays out that is not named: no .env, no data"
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    copied = set()
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            copied |= set(rest.split()[:-1])
    assert copied == let_in
    assert all((ROOT / path).exists() for path in copied)
    assert set(PACKAGES) <= copied


def test_it_installs_hashed_pins_and_names_no_registry() -> None:
    installs = [
        part for word, rest in instructions() if word == "RUN" for part in rest.split("&&") if " install " in part
    ]
    pip = [part for part in installs if re.search(r"\bpip\b", part)]
    assert len(pip) == 3
    for part in pip:
        assert "--require-hashes" in part or "--no-deps --no-index" in part, part
    for name in ("Dockerfile", "requirements/runtime.txt", "requirements/build.txt"):
        assert not re.search(r"--(extra-)?index-url|--find-links|https?://(?!127\.0\.0\.1)", (ROOT / name).read_text())
    for name in ("runtime.txt", "build.txt"):
        found = pins(name)
        assert found
        assert all("--hash=sha256:" in rest for rest in found.values())
        assert found.items() <= pins("dev.txt").items(), f"{name} is not what the tests run with: requirements/lock.sh"
    assert "hatchling" in pins("build.txt")


@pytest.mark.parametrize("name", ["runtime.txt", "build.txt"])
def test_what_a_pin_needs_is_pinned_beside_it(name: str) -> None:
    """With `--require-hashes`, pip refuses a file from which a dependency of one of its packages is missing."""
    text = (ROOT / "requirements" / name).read_text()
    pinned = {canonicalize_name(pin) for pin in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}
    to_do, missing = [(pin, "") for pin in pinned], set()
    for pin, extra in to_do:  # it grows by the extras that are asked for
        for requirement in needs(pin, extra):
            needed = canonicalize_name(requirement.name)
            if needed not in pinned:
                missing.add(f"{pin} needs {needed}")
            to_do += [more for part in requirement.extras if (more := (needed, part)) not in to_do]
    assert not missing, "requirements/lock.sh writes it anew"


def needs(package: str, extra: str) -> list[Requirement]:
    """What a package asks for here; nothing if it is for other systems only."""
    try:
        asked = [Requirement(text) for text in metadata.requires(package) or ()]
    except metadata.PackageNotFoundError:
        return []
    return [one for one in asked if one.marker is None or one.marker.evaluate({"extra": extra})]


def test_it_runs_as_an_ordinary_user_and_says_how_it_is() -> None:
    told = dict(instructions())
    stages = [rest for word, rest in instructions() if word == "FROM"]
    assert len(stages) == 2
    assert stages[0].endswith(" AS build")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", told["USER"])
    assert [word for word, _ in instructions()].index("USER") > [word for word, _ in instructions()].index("FROM")
    assert told["ENTRYPOINT"] == '["headwater"]'
    assert "127.0.0.1:8080/readyz" in told["HEALTHCHECK"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    (found,) = directory.glob("*.whl")
    return found


def test_the_wheel_has_everything_that_the_packages_have(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # From an archive of the sources there is no list: then what is there counts.
    files = set(tracked.stdout.split()) or {
        str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.*")
    }
    files = {name for name in files if "__pycache__" not in name and (ROOT / name).is_file()}
    assert files - inside == set()
    assert {
        "streams/headwater.lua",
        "headwater/simulator/prices.json",
        "projections/migrations/0001_read_models.sql",
    } <= inside
    assert {name.partition("/")[0] for name in inside if not name.startswith("headwater-")} == set(PACKAGES)


def test_the_unpacked_wheel_runs_without_the_sources(wheel: Path, tmp_path: Path) -> None:
    """Settings, the Redis functions, the migrations and the prices are found in it, and nothing beside it."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.argv[1:] = ['--help']\n"
        # The environment that runs the tests may have the sources installed in editable form: those must not count.
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]\n"
        "import headwater, projections.db, streams.functions\n"
        "from handlers.prices import PriceTable\n"
        "from headwater.simulator import load_prices\n"
        "from importlib import resources\n"
        "assert PriceTable.load(None) and load_prices(None)\n"
        "assert list(resources.files('projections').joinpath('migrations').iterdir())\n"
        "assert resources.files('streams').joinpath('headwater.lua').read_text()\n"
        "print(headwater.__file__)\n"
        "from headwater.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(site)],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "COLUMNS": "120", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(site / "headwater" / "__init__.py")
    for command in ("api", "worker", "projector", "simulator", "up"):
        assert re.search(rf"\b{command}\b", done.stdout)
