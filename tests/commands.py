"""`python -m tests.commands`: several `headwater` commands in one process, as a user would type one after the other.

Reads a JSON list of argument lists on stdin and writes a JSON list of [exit status, stdout] on stdout. It saves the
seconds that each process needs to start; each command connects and disconnects for itself. A fixture's stand-ins, which
are salted by chance, have the same salt every time here, so that two fixtures can be compared.
"""

import asyncio
import contextlib
import io
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Mapping, Sequence
from unittest.mock import patch

from headwater.cli import main
from headwater.replay.sanitise import Sanitiser


def one(arguments: Sequence[str]) -> tuple[int, str]:
    """Run a command. Returns its exit status and what it printed."""
    sys.argv = ["headwater", *arguments]
    printed = io.StringIO()
    status: object = 0
    same_salt = patch.object(Sanitiser.__init__, "__kwdefaults__", {"salt": b"test"})
    with contextlib.redirect_stdout(printed), same_salt:
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    return int(str(status or 0)), printed.getvalue()


async def run(env: Mapping[str, str], commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Run the commands with this environment. Returns exit status and stdout of each."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=dict(env)
    )
    out, err = await process.communicate(json.dumps(commands).encode())
    assert process.returncode == 0, err.decode()
    return [(status, text) for status, text in json.loads(out)]


if __name__ == "__main__":
    json.dump([one(arguments) for arguments in json.load(sys.stdin)], sys.stdout)
