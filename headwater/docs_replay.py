"""docs/replay.md: each command of replay with what it really prints about a recorded log in examples/."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import orjson

LOG = Path("examples/research_team/recorded.headwater.jsonl")
RERUN = Path("examples/research_team/rerun.json")
TEAM = "examples.research_team.agents:team"
OTHER_TEAM = "tests.e2e.other_team:team"
PRICES = "examples/research_team/prices.json"
COLUMNS = "118"


def replay_page() -> str:
    """The page. Run it from the repository's top directory."""
    task, routed = _of_interest()
    log = f"{LOG} --tenant acme --task {task}"
    return _INTRODUCTION + "\n".join(
        [
            "## Look\n",
            _STORY,
            _shown(f"headwater replay {log}"),
            _AT,
            _shown(f"headwater replay {log} --at {routed}"),
            _STEP,
            _shown(f"headwater replay {log} --step", typed="n\nn\nn\nd\ng 1-0\nq\n"),
            _BLAME,
            _shown(f"headwater replay {log} --blame /answer"),
            "## Prove\n",
            _VERIFY,
            _shown(f"headwater replay --verify --agents {TEAM} {LOG}"),
            "A rule that would have sent questions to the editor, on the same log:\n",
            _shown(f"headwater replay --verify --agents {OTHER_TEAM} {LOG}"),
            _FIXTURE,
            _shown(f"headwater fixture {log} --agents {TEAM} -o request.headwater.jsonl"),
            "## Re-price\n",
            _REPRICE,
            _shown(f"headwater reprice {LOG} --tenant acme --prices {PRICES} --model sim-reasoning=frugal"),
            "## Re-run\n",
            _RERUN,
            _printed("fork"),
            _COMPARE,
            _printed("compare"),
            _FOLLOW,
            _printed("follow"),
            _AGENTS,
            _printed("agents"),
            _printed("compare_teams"),
            _COHORT,
            _printed("cohort"),
            _LIMITS,
        ]
    )


_RERUN = """\
A fork is a new task in the origin's tenant and session. It takes over what was recorded before a point, decides the
fact there anew by the team that runs now (or by `--agents`), and lives on from it, live: agents run, models are asked
and paid, and tools, memories and session state are what they are for any task. Only the messages of the session are
left alone, and the origin's totals: a fork has its own task id, its own costs, and `fork_of`.

These commands were run, with a simulated provider, when the log was recorded; a test runs them anew and compares. Three
times over from the start, with a cheaper model on the tier `reasoning`, and five cents for each at most:
"""
_COMPARE = """\
Two tasks side by side: what was decided, up to where they part (≠) and on, what came of it, and what it cost.
"""
_FOLLOW = """\
From a point on, watched while it runs. `--at` names a fact that the supervisor decided on, or one of its decisions,
which stands for the fact; anything else is refused with the choices. `--data` takes other data along.
"""
_AGENTS = """\
By another team than the running one: new rules, prompts or agents, tried on a recorded task beside the live traffic. It
runs in the command's own process, with the models and prices of its environment, while the command waits; what is open
when it leaves is cancelled.
"""
_COHORT = """\
And over many tasks: `--cohort` has words for what they have in common (`type`, `since`, `status`, `session`; tasks
that have ended and are no forks), `--sample` says how many at most. Which of them is a hash of the task's id and
`--seed`. A bar shows how many have ended, and the cost so far. Each fork has an idempotency key that follows from the
cohort's words, the options and its origin: an interrupted command, given again, waits for the forks that exist and
submits the rest. With `--agents` it does so unless the module's file has changed since: then it is another team.
"""
_LIMITS = """\
`--budget` is checked before each LLM request, so a fork may go over it by the requests that it has in flight at once,
and an attempt of unknown cost does not count; a model without a price is not asked at all.
A request that is held back is a `budget.exceeded` in the log, and counted in `budget_exceeded_total`.

`headwater task ID --forks` lists the forks of a task, and theirs, with what they cost beside it.

Over HTTP: `GET /v1/tasks/{id}/story` (with `?at=`), `GET /v1/tasks/{id}/verify`, `POST /v1/tasks/{id}/fork`,
`GET /v1/tasks/{id}/forks`, `GET /v1/tasks/{id}/compare/{other}`; `GET /v1/blobs/{sha256}` has the contents that events
refer to.
"""


def _printed(name: str) -> str:
    """What a command that needs a running system printed when the log was recorded."""
    one = orjson.loads(RERUN.read_bytes())[name]
    return f"```console\n$ {one['command']}\n{one['output']}```\n"


def _of_interest() -> tuple[str, str]:
    """The task that the page tells, and the first decision about one of its steps."""
    lines = [orjson.loads(line) for line in LOG.read_bytes().splitlines()]
    mine = [line for line in lines if line.get("tenant") == "acme" and "type" in line]
    routed = next(line for line in mine if line["type"] == "task.routed")
    return mine[0]["task"], routed["id"]


def _shown(command: str, typed: str = "") -> str:
    """The command and its output, as a block."""
    output = run(command.split(), typed)
    asked = "".join(f"$ {line}\n" for line in [command + (" <<< …" if typed else "")])
    return f"```console\n{asked}{output}```\n"


def run(command: Sequence[str], typed: str = "") -> str:
    """What a command prints, on both of its streams, with nothing running and no colours."""
    env = {
        k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_") and k not in ("REDIS_URL", "DATABASE_URL")
    }
    root = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        # A file that a command writes goes to a directory that is thrown away.
        words = [str(root / word) if (root / word).is_file() else word for word in command[1:]]
        done = subprocess.run(
            [sys.executable, "-m", "headwater", *words],
            cwd=directory,
            env=env | {"COLUMNS": COLUMNS, "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(root)},
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    return "\n".join(line.rstrip() for line in done.stdout.replace(f"{root}/", "").splitlines()) + "\n"


_INTRODUCTION = """\
# Replay

What a log has recorded can be looked at, proven, priced again, and run again from any point. These are different things
and never mixed, because a recording cannot tell what an agent *would* have done:

| grade | asks a model | writes | says |
|---|---|---|---|
| look: `replay`, `--at`, `--step`, `--blame` | no | no | what happened |
| prove: `replay --verify`, `fixture` | no | no | what would have been *decided* on the same facts |
| re-price: `reprice` | no | no | what the recorded tokens would have cost |
| re-run: `fork`, `compare` | yes | a new task | what happens now |

Every command reads the running system, archive and stream as one log: it says the same after trimming, and also when
Redis has nothing of the task any more. Or it reads the log of a system elsewhere with
`--url` and `--key`, or files that `headwater export` wrote, with no server at all. A log is
read a page at a time, so a tenant of a million events takes no more memory than one of a thousand (figures in
[benchmarks](benchmarks.md)); of the ledger, `--at` reads the rows of the cost ledger up to that position.

```console
$ headwater export --tenant acme --task $TASK -o task.jsonl.gz
$ headwater replay --verify --tenant acme --agents my_team.next:team --url https://headwater.example
```

A cohort, and a fork by another team, need the servers themselves.

The outputs below are made by `make docs` from `examples/research_team/recorded.headwater.jsonl`: a task that was split,
whose first handoff was rejected, and whose writer was killed in the middle.

"""
_STORY = """\
The story of a task, as a tree by causation. What led to what, why, by whom, after which time, and at what cost. A
branch shows what it cost with everything under it; attempts that came to nothing are marked. `--session` tells all
tasks of a session, `--json` gives the same as one object.
"""
_AT = """\
How things stood at a position of the log, an event, or a time: the supervisor's state of the task, the session's
messages, what each agent had been given, and the tenant's ledger.
"""
_STEP = """\
Event by event: `n` next, `p` previous, `g POSITION` go to, `d` what changed in the state, `q` quit. In a terminal
these are single keys; from a pipe they are lines, here `n n n d`, `g 1-0` and `q`.
"""
_BLAME = """\
Which event, agent and attempt put a value into the result. FIELD is a JSON pointer into it, `""` for all of it. A
value that is a text is also found inside of longer ones ("contains"), and pieces of it are found, too ("part").
"""
_VERIFY = """\
The deciders run again over the recorded facts, and every decision is compared with the recorded one. A difference
is named by event, JSON pointer, recorded and new value, and the command ends with 1. So a new routing rule or
strictness table is tested against last month before it ships. `--tenant`, `--task` and `--since` narrow it down.
"""
_FIXTURE = """\
A recorded task as a test: mails, names and numbers become stand-ins of the same shape, the same one for the same
value. pytest picks up files named `*.headwater.jsonl` with the plugin `headwater.testing.plugin` and the ini option
`headwater_team = my_team.agents:team`, and decides each of them again. A word that a rule looks at stays with
`--keep WORD`.
"""
_REPRICE = """\
What the recorded tokens would have cost at other prices, or as if another model had used them. The ledger does not
move.
"""
