"""`python -m headwater.simulator PORT`, with the configuration as JSON on standard input. Prints its URL."""

import sys

from headwater.simulator.config import SimulatorConfig
from headwater.simulator.server import serve


def _ready(url: str) -> None:
    sys.stdout.write(url + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(SimulatorConfig.model_validate_json(sys.stdin.read()), host="127.0.0.1", port=int(sys.argv[1]), ready=_ready)
