"""Deterministic answers, usage and embeddings: the same request gets the same, in every process."""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from headwater.simulator.config import PATTERN_FLAGS, PLACEHOLDER, AnswerRule

_SENTENCES = (
    "Here is what I found after going through the request.",
    "The short answer is yes, with one caveat that matters.",
    "Two things are worth checking first, and both take a minute.",
    "This has come up before, and the fix was a small change of a setting.",
    "I would go with the simpler option, because it is easy to undo.",
    "The numbers agree with what was reported, so the cause lies elsewhere.",
    "Nothing in the record speaks against it.",
    "Please keep the reference at hand in case somebody asks again.",
)
USER_CHARS = 200


def request_hash(seed: int, body: dict[str, Any]) -> bytes:
    """32 bytes that stand for a request: its model, messages and parameters, under the seed."""
    kept = {k: v for k, v in body.items() if k not in ("stream", "stream_options", "user")}
    return hashlib.sha256(b"%d|" % seed + orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)).digest()


def text_of(message: dict[str, Any]) -> str:
    """A message's text, also when its content is a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text") or "") for part in content)


class Answers:
    """Answers from a script, else made up from the request's hash."""

    def __init__(self, rules: Sequence[AnswerRule]) -> None:
        self._rules = [(rule, _search(rule.model), _search(rule.system), _search(rule.user)) for rule in rules]

    def text(self, body: dict[str, Any], digest: bytes) -> str:
        """The answer's text."""
        messages = body["messages"]
        system = " ".join(text_of(m) for m in messages if m.get("role") in ("system", "developer"))
        user = next((text_of(m) for m in reversed(messages) if m.get("role") == "user"), "")
        for rule, in_model, in_system, in_user in self._rules:
            if not (in_model(body["model"]) and in_system(system)):
                continue
            found = in_user(user)
            if not found:
                continue
            templates = rule.templates()
            return _fill(templates[digest[1] % len(templates)], user, found, as_json=rule.json_ is not None)
        if (body.get("response_format") or {}).get("type") in ("json_object", "json_schema"):
            return orjson.dumps({"answer": _SENTENCES[digest[0] % len(_SENTENCES)]}).decode()
        count = 1 + digest[0] % 4
        return " ".join(_SENTENCES[digest[2 + i] % len(_SENTENCES)] for i in range(count))


def _search(pattern: str | None) -> Callable[[str], "re.Match[str] | None"]:
    # An empty pattern is found everywhere.
    return re.compile(pattern or "", PATTERN_FLAGS).search


def _fill(template: str, user: str, found: "re.Match[str]", *, as_json: bool) -> str:
    def value(match: "re.Match[str]") -> str:
        name = match.group(1)
        text = user[:USER_CHARS] if name is None else str(found.groupdict().get(name) or "")
        return orjson.dumps(text).decode()[1:-1] if as_json else text

    return PLACEHOLDER.sub(value, template)


def count_tokens(text: str) -> int:
    """About four bytes a token, at least one."""
    return max(1, math.ceil(len(text.encode()) / 4))


def usage(body: dict[str, Any], answer: str, digest: bytes) -> dict[str, Any]:
    """OpenAI's usage object. A third of the requests have cached tokens; models named "reason" think first."""
    prompt = sum(count_tokens(text_of(m)) + 4 for m in body["messages"])
    cached = prompt // 2 if digest[10] % 3 == 0 else 0
    thinking = 20 + digest[11] if "reason" in body["model"] else 0
    completion = count_tokens(answer) + thinking
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thinking},
    }


def embedding(text: str, dimensions: int) -> list[float]:
    """A unit vector from the words of a text: texts that share words are near each other."""
    vector = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()) or [text]:
        digest = hashlib.sha256(word.encode()).digest()
        for i in range(8):
            index = int.from_bytes(digest[2 * i : 2 * i + 2], "big") % dimensions
            vector[index] += 1.0 if digest[16 + i] & 1 else -1.0
    norm = math.sqrt(sum(x * x for x in vector))
    if norm == 0:
        # Words that cancel each other out: a unit vector all the same.
        return [1.0] + [0.0] * (dimensions - 1)
    return [x / norm for x in vector]
