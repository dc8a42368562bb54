"""`python -m headwater.simulator PORT`, with the configuration as JSON on standard input. Prints its URL."""

import sys

from headwater.simulator.config import SimulatorConfig
from headwater.simulator.server import serve
from schemas.errors import ConfigurationError


def _ready(url: str) -> None:
    sys.stdout.write(url + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    config = SimulatorConfig.model_validate_json(sys.stdin.read())
    try:
        serve(config, port=int(sys.argv[1]), ready=_ready)
    except (ConfigurationError, OSError) as error:
        sys.exit(f"simulator: {error}")
