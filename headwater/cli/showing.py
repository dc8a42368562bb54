"""How outcomes, events and costs look in a terminal."""

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from rich.markup import escape

from headwater.cli.common import out
from headwater.cli.tables import print_table, table_of
from schemas.plurals import counted

_STATUS = {"completed": "green", "failed": "red", "cancelled": "yellow"}
SUMMARY_CHARS = 100


def show_outcome(task: Mapping[str, Any]) -> None:
    """A task with its result, its chain and its cost."""
    status = str(task["status"])
    out.print(f"[bold {_STATUS.get(status, 'blue')}]{status}[/]  {task['task']}")
    if task.get("call_chain"):
        out.print(f"  chain    {' → '.join(task['call_chain'])}")
    if task.get("fork_of"):
        out.print(f"  fork of  {task['fork_of']}")
    if task.get("routed_by"):
        out.print(f"  routed   by {task['routed_by']}")
    if task.get("cost_usd") is not None:
        unknown = task.get("unknown_attempts") or 0
        unpriced = task.get("unpriced_attempts") or 0
        notes = [f"{unknown} of unknown outcome"] * bool(unknown) + [f"{unpriced} without a price"] * bool(unpriced)
        more = f", {', '.join(notes)}" if notes else ""
        out.print(f"  cost     ${task['cost_usd']} for {counted(task.get('llm_attempts') or 0, 'LLM attempt')}{more}")
    if task.get("error"):
        out.print(f"  error    {escape(str(task['error']))}", soft_wrap=True)
    if task.get("result") is not None:
        out.print(f"  result   {escape(as_text(task['result']))}", soft_wrap=True)


def show_forks(found: Mapping[str, Any]) -> None:
    """The forks of a task, and what all of it cost."""
    if found["forks"]:
        table = table_of("fork", "of", "status", "cost", numbers=("cost",))
        for one in found["forks"]:
            table.add_row(one["task"], one["fork_of"], one["status"], f"${one['cost_usd']}")
        print_table(table)
    forks = counted(len(found["forks"]), "fork")
    out.print(f"${found['cost_usd']} for the task, ${found['forks_usd']} for {forks}: ${found['total_usd']}")


def as_text(value: Any) -> str:
    """A JSON value for people: strings as they are, everything else indented."""
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def summary_of(event_type: str, body: Mapping[str, Any]) -> str:
    """What an event says, in a few words."""
    summarise: Callable[[Mapping[str, Any]], str] = _SUMMARIES.get(event_type, _short)
    text = summarise(body)
    return text if len(text) <= SUMMARY_CHARS else text[: SUMMARY_CHARS - 1] + "…"


def _attempt(body: Mapping[str, Any]) -> str:
    cost = f"${body['cost_usd']}" if body["cost_usd"] is not None else body["cost_status"]
    error = f": {body['error_class']}" if body["error_class"] else ""
    return f"{body['requested_model']} #{body['attempt']} {body['status']}, {cost}{error}"


def _proposal(body: Mapping[str, Any]) -> str:
    payload = body["payload"]
    return f"{payload['payload_type']} to {payload['target_agent_id']}: {payload['reason']}"


_SUMMARIES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "task.submitted": lambda b: f"{b['task_type']}: {_short(b['text'])}",
    "task.forked": lambda b: f"of {b['origin_task_id']}: {_short(b['text'])}",
    "task.resumed": lambda b: counted(len(b["call_ids"]), "call"),
    "task.routed": lambda b: f"to {b['agent_id']} by {b['routed_by']}: {b['reasoning']}",
    "task.decomposed": lambda b: f"into {counted(len(b['subtasks']), 'subtask')}: {b['reasoning']}",
    "task.cancel_requested": lambda b: str(b["reason"]),
    "task.cancelled": lambda b: str(b["reason"]),
    "supervisor.asked": lambda b: f"a model to {b['question']}",
    "supervisor.answered": lambda b: f"{b['question']}: {_short(b['error'] or b['answer'])}",
    "context.compiled": lambda b: f"{b['token_usage'].get('total', '?')} of {b['budget_tokens']} tokens ({b['tier']})",
    "memory.stored": lambda b: _short(b["text"]),
    "session.state_set": lambda b: f"{b['key']} = {_short(b['value'])}",
    "session.cleared": lambda b: str(b["reason"]),
    "task.completed": lambda b: _short(b["result"]),
    "task.failed": lambda b: str(b["reason"]),
    "agent.started": lambda b: f"delivery {b['delivery']} on {b['worker']}",
    "agent.completed": lambda b: "handed over" if b["handed_over"] else _short(b["result"]),
    "agent.cancelled": lambda b: f"delivery {b['delivery']}",
    "agent.failed": lambda b: f"{b['error_class']}: {b['error']}",
    "llm.attempted": _attempt,
    "budget.exceeded": lambda b: (
        f"{b['requested_model']} not asked: ${b['spent_usd']} of ${b['budget_usd']} are spent"
        if b["because"] == "spent"
        else f"{b['requested_model']} not asked: its price is not known"
    ),
    "step.recorded": lambda b: f"{b['name']} → {_short(b['result'])}",
    "handoff.proposed": _proposal,
    "handoff.accepted": lambda b: f"{b['payload_type']} to {b['target_agent_id']} ({b['strictness']})",
    "handoff.rejected": lambda b: f"back to the {b['returned_to']}: {'; '.join(b['reasons'])}",
    "event.parked": lambda b: f"{b['event_type']} after {counted(b['attempts'], 'attempt')}: {b['error']}",
    "event.redriven": lambda b: f"{b['event_type']} {b['position']}",
    "event.dropped": lambda b: f"{b['event_type']} {b['position']}: {b['reason'] or b['error']}",
}


def _short(value: Any) -> str:
    if isinstance(value, dict) and "$blob" in value:
        return f"({value.get('bytes', 0):,} bytes)"
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return " ".join(text.split())
