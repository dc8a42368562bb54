"""Stand-ins for what must not leave a company: mail addresses, names and numbers, each replaced by one of its shape.

The same value always gets the same stand-in within one run, so that what belongs together still does. A *name* is a
capitalised word that stands somewhere inside a sentence (or behind another name): no list of names knows everybody's,
so rather too many words are replaced than too few.
"""

import re
import secrets
from collections.abc import Iterable
from hashlib import blake2b

from schemas.content import Json

_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_SENTENCE_END = ".!?:;\n\u2026\u3002\uff01\uff1f"
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


class Sanitiser:
    """Replaces values. `keep` has words that stay as they are, because routing rules look at them."""

    def __init__(self, keep: Iterable[str] = (), *, salt: bytes | None = None) -> None:
        """Without a `salt` a random one is used, so that nobody can try values until a stand-in matches."""
        self._salt = salt or secrets.token_bytes(16)
        self._keep = {word.casefold() for word in keep}
        self._names: set[str] = set()
        self._mails: dict[str, str] = {}

    def learn(self, value: Json) -> None:
        """Note the names in every text of `value`. Do this for all values before the first is replaced."""
        for text in _texts(value):
            text = _MAIL.sub(" ", text)
            for match in _WORD.finditer(text):
                word = match[0]
                if not word[0].isupper() or word.casefold() in self._keep:
                    continue
                before = text[: match.start()].rstrip(" \t\"'(*_-\u201c\u201d\u201e\u00ab")
                if before and before[-1] not in _SENTENCE_END:
                    self._names.add(word)

    def clean(self, value: Json, *, numbers: bool = True) -> Json:
        """`value` with stand-ins, keys of objects untouched; without `numbers`, JSON numbers stay too."""
        if isinstance(value, str):
            return value if value.casefold() in self._keep else self._text(value)
        if isinstance(value, bool) or value is None or (isinstance(value, int | float) and not numbers):
            return value
        if isinstance(value, int):
            return int(self._digits(str(abs(value)))) * (-1 if value < 0 else 1)
        if isinstance(value, float):
            return float(_NUMBER.sub(lambda m: self._digits(m[0]), repr(value))) if value == value else value
        if isinstance(value, list):
            return [self.clean(item, numbers=numbers) for item in value]
        return {key: self.clean(item, numbers=numbers) for key, item in value.items()}

    def identifier(self, kind: str, value: str) -> str:
        """A stand-in for a tenant or session id."""
        return f"{kind}-{self._hash(value).hex()[:6]}"

    def _text(self, text: str) -> str:
        parts: list[str] = []
        end = 0
        for match in _MAIL.finditer(text):
            parts += [self._words(text[end : match.start()]), self._mail(match[0])]
            end = match.end()
        return "".join([*parts, self._words(text[end:])])

    def _words(self, text: str) -> str:
        text = _WORD.sub(lambda m: self._name(m[0]) if m[0] in self._names else m[0], text)
        return _NUMBER.sub(lambda m: self._digits(m[0]), text)

    def _mail(self, mail: str) -> str:
        return self._mails.setdefault(mail.casefold(), f"person{len(self._mails) + 1}@example.com")

    def _digits(self, digits: str) -> str:
        """As many digits, the first one kept: an amount stays in its order of magnitude."""
        if len(digits) < 2 or digits.casefold() in self._keep:
            return digits
        hashed = self._hash(digits)
        return digits[0] + "".join(str(hashed[i % len(hashed)] % 10) for i in range(len(digits) - 1))

    def _name(self, word: str) -> str:
        hashed = self._hash(word.casefold())
        letters = [
            (_CONSONANTS if i % 2 == 0 else _VOWELS)[hashed[i % len(hashed)] % (14 if i % 2 == 0 else 5)]
            for i in range(len(word))
        ]
        return "".join(
            old if not old.isalpha() else new.upper() if old.isupper() else new
            for old, new in zip(word, letters, strict=True)
        )

    def _hash(self, value: str) -> bytes:
        return blake2b(value.encode(), key=self._salt, digest_size=24).digest()


def _texts(value: Json) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
