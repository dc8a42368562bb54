"""The working context: system prompt, session, memories and task, fitted into a tier's token budget (row D3).

Pure: the same parts and counter always give the same context. Each part has a share of the budget. What a part does
not need goes to the parts that were cut, in the order task, system, session, memories. The total is counted over the
finished messages, never estimated, and never exceeds the budget.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import orjson

from handlers.tokens import TokenCounter
from schemas.content import Json
from schemas.errors import InvalidInputError
from schemas.memory import MemoryEntry
from schemas.session import Role, SessionMessage

Part = Literal["system", "session", "memories", "task"]

SHARES_PERCENT: Mapping[Part, int] = MappingProxyType({"system": 15, "session": 35, "memories": 35, "task": 15})
BUDGET_TOKENS: Mapping[str, int] = MappingProxyType({"fast": 8_000, "reasoning": 32_000})
MIN_BUDGET_TOKENS = 256
"""Enough for the separators of every part, and a piece of the newest message."""
MEMORIES_HEADER = "What is remembered from earlier work, the most relevant first:"
_CHARS_PER_TOKEN = 8
"""No more of a text is looked at, or kept, than this many characters for each token of its room."""
_FIRST_SERVED: tuple[Part, ...] = ("task", "system", "session", "memories")


@dataclass(frozen=True, slots=True)
class ContextParts:
    """What a context is made of: messages oldest first, memories most relevant first."""

    task: str
    system: str = ""
    session: Sequence[SessionMessage] = ()
    memories: Sequence[MemoryEntry] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of the session as it stands in the context: its content is text, and may have been cut."""

    role: Role
    content: str
    position: str


@dataclass(frozen=True, slots=True)
class Remembered:
    """A memory as it stands in the context, with the event that it came from."""

    text: str
    event_id: str
    score: float


@dataclass(frozen=True, slots=True)
class CompiledContext:
    """A context within its budget. Ask with `context.llm.complete(c.messages, system=c.system, tier=c.tier)`.

    `token_usage` has the tokens of each part and their `total`, message separators included. `dropped` says what did
    not fit: whole `messages` and `memories`, and the characters cut off the system prompt, the newest message, the
    most relevant memory and the task.
    """

    tier: str
    budget_tokens: int
    token_counter: str
    system: str | None
    session: tuple[Turn, ...]
    memories: tuple[Remembered, ...]
    task: str
    token_usage: dict[str, int]
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The session, then the memories, then the task, in OpenAI's form and without the system prompt.

        Memories are a user's message: what they say came from outside, and never becomes a system message (row A6).
        """
        found: list[dict[str, Any]] = [{"role": turn.role, "content": turn.content} for turn in self.session]
        if self.memories:
            found.append({"role": "user", "content": memories_text([memory.text for memory in self.memories])})
        return [*found, {"role": "user", "content": self.task}]


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A part that fits its room. `cut` is what `dropped` says about it; empty when all of it is there."""

    value: Any
    tokens: int
    cut: dict[str, int]


class WorkingContextCompiler:
    """Fits parts into budgets, with a counter that is never too low."""

    def __init__(self, counter: TokenCounter, budgets: Mapping[str, int] = BUDGET_TOKENS) -> None:
        small = {tier: budget for tier, budget in budgets.items() if budget < MIN_BUDGET_TOKENS}
        if small:
            raise InvalidInputError(
                f"budgets of at least {MIN_BUDGET_TOKENS} tokens are needed; these are not: {small}"
            )
        self._counter = counter
        self._budgets = budgets

    def compile(self, parts: ContextParts, tier: str = "fast") -> CompiledContext:
        """The context of `parts` for a model of `tier`. Raises `InvalidInputError` for a tier without a budget."""
        if tier not in self._budgets:
            raise InvalidInputError(f"tier {tier!r} has no token budget: choose from {', '.join(self._budgets)}")
        budget = self._budgets[tier]
        fit: dict[Part, Callable[[int], _Fitted]] = {
            "system": lambda room: self._fit_text(parts.system, room, "system_chars", optional=True),
            "session": lambda room: self._fit_session(parts.session, room),
            "memories": lambda room: self._fit_memories(parts.memories, room),
            "task": lambda room: self._fit_text(parts.task, room, "task_chars", extra=self._counter.reply_tokens),
        }
        fitted = {part: fit[part](budget * share // 100) for part, share in SHARES_PERCENT.items()}
        for part in _FIRST_SERVED:
            unused = budget - sum(one.tokens for one in fitted.values())
            if fitted[part].cut and unused > 0:
                fitted[part] = fit[part](fitted[part].tokens + unused)
        usage: dict[str, int] = {part: one.tokens for part, one in fitted.items()}
        return CompiledContext(
            tier=tier,
            budget_tokens=budget,
            token_counter=self._counter.name,
            system=fitted["system"].value or None,
            session=fitted["session"].value,
            memories=fitted["memories"].value,
            task=fitted["task"].value,
            token_usage=usage | {"total": sum(usage.values())},
            dropped={name: number for one in fitted.values() for name, number in one.cut.items()},
        )

    def _fit_text(self, text: str, room: int, name: str, *, optional: bool = False, extra: int = 0) -> _Fitted:
        """A message of its own, its end cut off if need be."""
        text = well_formed(text)
        if optional and not text:
            return _Fitted("", 0, {})
        separators = self._counter.message_tokens + extra
        kept, tokens = self._head(text, room - separators)
        return _Fitted(kept, separators + tokens, {name: len(text) - len(kept)} if len(kept) < len(text) else {})

    def _fit_session(self, session: Sequence[SessionMessage], room: int) -> _Fitted:
        """The newest messages without a gap. The newest one stays, cut if it is too long alone."""
        turns: list[Turn] = []
        used = 0
        for message in reversed(session):
            text = message_text(message.content)
            tokens = self._count_message(text, room - used)
            if tokens is None:
                break
            turns.append(Turn(message.role, text, message.position))
            used += tokens
        cut: dict[str, int] = {}
        if session and not turns:
            newest = session[-1]
            text = message_text(newest.content)
            kept, tokens = self._head(text, room - self._counter.message_tokens)
            turns.append(Turn(newest.role, kept, newest.position))
            used = tokens + self._counter.message_tokens
            cut["newest_message_chars"] = len(text) - len(kept)
        if len(turns) < len(session):
            cut["messages"] = len(session) - len(turns)
        return _Fitted(tuple(reversed(turns)), used, cut)

    def _fit_memories(self, memories: Sequence[MemoryEntry], room: int) -> _Fitted:
        """The most relevant memories, in one message. If not even the first fits, as much of it as does."""
        found = [Remembered(well_formed(m.text), m.event_id, m.score) for m in memories]
        room -= self._counter.message_tokens
        number, tokens = self._largest(len(found), room, lambda n: memories_text([m.text for m in found[:n]]))
        cut: dict[str, int] = {}
        if found and not number:
            first = found[0]
            chars, tokens = self._largest(
                self._window(first.text, room), room, lambda n: memories_text([first.text[:n]])
            )
            if chars:
                found[0], number = Remembered(first.text[:chars], first.event_id, first.score), 1
                cut["memory_chars"] = len(first.text) - chars
        if number < len(found):
            cut["memories"] = len(found) - number
        return _Fitted(tuple(found[:number]), tokens + self._counter.message_tokens if number else 0, cut)

    def _count_message(self, text: str, room: int) -> int | None:
        """Tokens of a message, or None if they are more than `room`."""
        room -= self._counter.message_tokens
        if room < 0 or len(text) > self._window(text, room):
            return None
        tokens = self._counter.count(text)
        return tokens + self._counter.message_tokens if tokens <= room else None

    def _head(self, text: str, room: int) -> tuple[str, int]:
        """As much of the beginning of `text` as fits, cut between characters, and its tokens."""
        length, tokens = self._largest(self._window(text, room), room, lambda n: text[:n])
        return text[:length], tokens

    @staticmethod
    def _window(text: str, room: int) -> int:
        return min(len(text), max(room, 0) * _CHARS_PER_TOKEN)

    def _largest(self, number: int, room: int, text_of: Callable[[int], str]) -> tuple[int, int]:
        """The largest n up to `number` whose text was counted and fits, found by halving; and its tokens.

        Counts do not grow evenly with the text, so only what was counted is trusted.
        """
        if number == 0 or room <= 0:
            return 0, 0
        tokens = self._counter.count(text_of(number))
        if tokens <= room:
            return number, tokens
        low, high, best = 0, number, 0
        while high - low > 1:
            middle = (low + high) // 2
            tokens = self._counter.count(text_of(middle))
            if tokens <= room:
                low, best = middle, tokens
            else:
                high = middle
        return low, best


def memories_text(texts: Sequence[str]) -> str:
    """The message that carries the memories."""
    return "\n".join([MEMORIES_HEADER, *(f"- {text}" for text in texts)]) if texts else ""


def message_text(content: Json) -> str:
    """A message's content as a model reads it: text as it is, everything else as JSON."""
    return well_formed(content) if isinstance(content, str) else orjson.dumps(content).decode()


def well_formed(text: str) -> str:
    """`text` with lone surrogates, which no provider takes, replaced by question marks."""
    return text.encode(errors="replace").decode()
