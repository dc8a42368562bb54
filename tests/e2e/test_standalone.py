"""`uvicorn --factory headwater:create_app` with no configuration: the lifespan brings up everything (row F1)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from headwater.node import running_node

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90.0


def test_the_application_alone_brings_up_everything_and_takes_it_down(tmp_path: Path) -> None:
    for part in (tmp_path, *list(tmp_path.parents)[:2]):
        # Servers that run as another user must get through to their data.
        part.chmod(0o711)
    data, socket, log = tmp_path / "data", tmp_path / "http.sock", tmp_path / "log"
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")}
    for name in ("REDIS_URL", "DATABASE_URL"):
        env.pop(name, None)
    env |= {"HEADWATER_DATA": str(data), "HEADWATER_AGENTS": "tests.serving:team", "HEADWATER_WORKERS": "1"}
    command = [sys.executable, "-m", "uvicorn", "--factory", "headwater:create_app", "--uds", str(socket)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=env, cwd=ROOT, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while running_node(data) is None or not socket.exists():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        # The commands find it by its data directory, so a key can be made.
        keys = [sys.executable, "-m", "headwater", "keys", "create", "-t", "acme", "--scope", "admin", "--json"]
        made = subprocess.run(keys, env=env, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        key = json.loads(made.stdout)["key"]
        with httpx.Client(
            base_url="http://localhost",
            headers={"Authorization": f"Bearer {key}"},
            transport=httpx.HTTPTransport(uds=str(socket)),
            timeout=DEADLINE_S,
        ) as client:
            assert client.get("/readyz").json()["status"] == "ready"
            accepted = client.post("/v1/tasks", json={"session": "s", "text": "hello"})
            done = client.get(accepted.headers["location"], params={"wait": 60}).json()
            assert (done["status"], done["result"]["echo"]) == ("completed", "hello")
        family = psutil.Process(server.pid).children(recursive=True)
        commands = [" ".join(child.cmdline()) for child in family]
        assert any("headwater worker" in line for line in commands), commands
        assert any("headwater projector" in line for line in commands), commands
        server.send_signal(signal.SIGTERM)
        server.wait(DEADLINE_S)
        gone, alive = psutil.wait_procs(family, timeout=DEADLINE_S)
        assert len(gone) == len(family)
        assert not alive
        assert running_node(data) is None
        assert "Traceback" not in log.read_text()
    finally:
        server.kill()
        server.wait()
