"""Which fault a request meets: drawn by seed, request and try, so that a run can be repeated."""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headwater.simulator.config import FaultRule

Kind = Literal["429", "500", "503", "quota", "drop", "drop_billed", "malformed"]
_KINDS: tuple[Kind, ...] = ("429", "500", "503", "quota", "drop", "drop_billed", "malformed")
_NO_RULE = FaultRule()
MAX_REMEMBERED = 1_000_000


@dataclass(frozen=True, slots=True)
class Fate:
    """What happens to one try of one request."""

    kind: Kind | None
    wait_s: float
    rule: FaultRule


class Faults:
    """The fault rules in force, and how often each request came."""

    def __init__(self, rules: Sequence[FaultRule], seed: int) -> None:
        self._seed = seed
        self._tries: Counter[bytes] = Counter()
        self.set(rules)

    def set(self, rules: Sequence[FaultRule]) -> None:
        """Replace the rules; tries are counted from zero again."""
        self.rules = list(rules)
        self._patterns = [(re.compile(rule.model), rule) for rule in rules]
        self._tries.clear()

    def fate(self, model: str, digest: bytes) -> Fate:
        """The fate of the next try of the request `digest`."""
        rule = next((rule for pattern, rule in self._patterns if pattern.search(model)), _NO_RULE)
        if rule is _NO_RULE:
            return Fate(None, 0.0, rule)
        if len(self._tries) > MAX_REMEMBERED:
            self._tries.clear()
        number = self._tries[digest]
        self._tries[digest] += 1
        draw = random.Random(hashlib.sha256(b"%d|%d|" % (self._seed, number) + digest).digest())
        wait_s = (rule.latency_ms + draw.random() * rule.jitter_ms) / 1000
        if number < rule.fail_first:
            return Fate(rule.fail_first_with, wait_s, rule)
        point = draw.random()
        for kind in _KINDS:
            rate: float = getattr(rule, f"rate_{kind}")
            if point < rate:
                return Fate(kind, wait_s, rule)
            point -= rate
        return Fate(None, wait_s, rule)
