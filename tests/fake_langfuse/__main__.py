"""`python -m tests.fake_langfuse FILE PORT PUBLIC_KEY SECRET_KEY`. Prints its URL."""

import asyncio
import sys
from pathlib import Path

from tests.fake_langfuse.server import serve


def _ready(url: str) -> None:
    sys.stdout.write(url + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    file, port, public_key, secret_key = sys.argv[1:]
    asyncio.run(serve(Path(file), int(port), public_key, secret_key, _ready))
