"""For authors of agents: a whole Headwater in a test, and given-when-then on the supervisor.

    pytest_plugins = ["headwater.testing.plugin"]        # in conftest.py

    def test_my_team(headwater):
        run = headwater.run_task(team, "Summarise this", answers=[{"system": "You write", "answer": "Short."}])
        assert run.result == "Short."

Nothing is imitated: Redis and PostgreSQL are real and embedded, and the provider is an HTTP server that bills.
"""

from headwater.simulator import AnswerRule, FaultRule
from headwater.testing.given import Supervised, agent, rules
from headwater.testing.harness import Harness, TaskRun, TeamRunner, running
from headwater.testing.recorded import RecordedLogError, check_recorded

__all__ = [
    "AnswerRule",
    "FaultRule",
    "Harness",
    "RecordedLogError",
    "Supervised",
    "TaskRun",
    "TeamRunner",
    "agent",
    "check_recorded",
    "rules",
    "running",
]
