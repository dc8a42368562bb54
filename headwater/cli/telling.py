"""How a story, a moment and a blame look in a terminal."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from headwater.cli.common import out
from headwater.cli.showing import as_text
from headwater.replay.story import Node, Share, Story
from schemas.money import plain
from schemas.plurals import counted

_STATUS = {"completed": "green", "failed": "red", "cancelled": "yellow", "running": "blue"}
_WASTE = {
    "failed_attempt": "failed attempt",
    "rejected_handoff": "rejected handoff",
    "failed_run": "failed run",
    "cancelled": "cancelled work",
    "failed_task": "failed task",
}
CONTENT_CHARS = 2000


def show_story(story: Story) -> None:
    """The tree, and under it where the money went."""
    colour = _STATUS.get(story.status, "blue")
    head = (
        f"[bold]Task {escape(story.task_id)}[/bold] of {escape(story.tenant_id)}, session {escape(story.session_id)}: "
        f"[{colour}]{story.status}[/] in {story.duration_us / 1_000_000:.2f} s for ${plain(story.total_usd)}"
    )
    tree = Tree(head, guide_style="dim")
    stack = [(tree, root) for root in reversed(story.roots)]
    while stack:
        parent, node = stack.pop()
        leading_on = [child for child in node.children if child.children]
        branch = parent.add(_label(node, leading_on))
        for child in node.children:
            if not child.children:
                branch.add(_label(child))
        # One thing led to the next: told on the same level. Several at once are branches.
        onto = parent if len(leading_on) == 1 else branch
        stack += [(onto, child) for child in reversed(leading_on)]
    out.print(tree)
    _show_money(story)


def _show_money(story: Story) -> None:
    """Where the money went: by agent, by step, and what came to nothing."""
    if not story.attempts:
        return
    out.print(f"[bold]${plain(story.total_usd)}[/bold] went to")
    rows = [(agent, share) for agent, share in story.by_agent().items()]
    steps = [("all of it" if step is None else f"step {step}", share) for step, share in story.by_step().items()]
    width = max(len(name) for name, _ in [*rows, *steps])
    for name, share in rows:
        out.print(f"  {escape(name):{width}}  {_share(share)}", soft_wrap=True)
    if steps:
        out.print("for")
        for name, share in steps:
            out.print(f"  {name:{width}}  {_share(share)}", soft_wrap=True)
    waste = {kind: usd for kind, usd in story.waste().items() if usd}
    if waste:
        parts = ", ".join(f"${plain(usd)} on {_WASTE.get(kind, kind)}s" for kind, usd in waste.items())
        out.print(f"${plain(story.wasted_usd)} of it came to nothing: {parts}")


def _share(share: Share) -> str:
    requests = "1 request" if share.attempts == 1 else f"{share.attempts:,} requests"
    unknown = f", {share.unknown} of unknown cost" if share.unknown else ""
    return f"${plain(share.cost_usd)} for {requests}{unknown}, {share.tokens:,} tokens"


def _label(node: Node, leading_on: Sequence[Node] = ()) -> str:
    notes = []
    if len(leading_on) > 1 and node.total_usd:
        notes.append(f"${plain(node.total_usd)} in all its branches")
    elif (run := _cost_of_run(node)) is not None:
        notes.append(f"${run}")
    if node.outcome not in (None, "useful"):
        notes.append(f"[red]waste: {_WASTE.get(str(node.outcome), node.outcome)}[/red]")
    note = f"  [dim]({', '.join(notes)})[/dim]" if notes else ""
    return f"[dim]{node.after_us / 1_000_000:7.3f} s[/dim]  {escape(node.sentence)}{note}"


def _cost_of_run(node: Node) -> str | None:
    """What the run under a decision cost. With one request only, that one says it."""
    attempts = [child for child in node.children if child.outcome is not None]
    if len(attempts) < 2:
        return None
    return plain(sum((child.cost_usd for child in attempts), Decimal(0)))


def show_moment(found: Mapping[str, Any]) -> None:
    """The state, the messages, the contexts and the ledger at a position."""
    out.print(f"[bold]At {found['at']}[/bold] task {found['task']} of {escape(found['tenant'])} was {found['status']}")
    if found["state"] is not None:
        out.print("[bold]state[/bold]")
        out.print(escape(as_text(found["state"])), soft_wrap=True)
    out.print(f"[bold]session {escape(found['session'])}[/bold]")
    for message in found["messages"]:
        out.print(f"  {message['role']:9} {escape(_cut(message['content']))}", soft_wrap=True)
    for context in found["contexts"]:
        out.print(f"[bold]what {escape(context['agent'])} was given[/bold] (call {context['call']})")
        out.print(escape(_cut(context["given"])), soft_wrap=True)
    ledger = found["ledger"]
    attempts = counted(ledger["attempts"], "attempt")
    out.print(f"[bold]ledger of {escape(found['tenant'])}[/bold]  ${ledger['total_usd']}, {attempts}")
    for agent, usd in ledger["by_agent"].items():
        out.print(f"  {escape(agent):20} ${usd}")


def show_blame(found: Mapping[str, Any]) -> None:
    """Where a value came from, and which way it went."""
    out.print(
        f"[bold]{escape(found['pointer'] or 'the result')}[/bold] is {escape(_cut(found['value']))}", soft_wrap=True
    )
    origin = found["origin"]
    if origin is None:
        out.print("no event carries this value: the agent made it up on the way, outside of its steps and requests")
        return
    attempt = f", attempt {origin['attempt']}" if origin["attempt"] else ""
    out.print(f"it came from [bold]{origin['type']}[/bold] by {escape(origin['by'])}{attempt} ({origin['event']})")
    for hop in found["path"]:
        mark = "→" if hop is not origin else "●"
        where = f"{hop['type']}{hop['where']}"
        out.print(
            f"  {mark} {hop['position']}  {escape(hop['by']):14} {escape(where)}  [dim]{hop['how']}[/dim]",
            soft_wrap=True,
        )


def _cut(value: Any) -> str:
    text = as_text(value)
    return text if len(text) <= CONTENT_CHARS else f"{text[:CONTENT_CHARS]}… ({len(text):,} characters; --json has all)"
