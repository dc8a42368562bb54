"""Counting tokens without the network, and never too low (contract row D3).

Exact where all models of a tier are tiktoken's and the data of their encoding is at hand: in TIKTOKEN_CACHE_DIR, in
tiktoken's own cache, or in the copy that comes with LiteLLM. Otherwise a text counts as many tokens as it has bytes of
UTF-8: every token of a byte-level tokenizer stands for at least one byte, and without the vocabulary no smaller bound
holds for every text.
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tiktoken

EXACT_CHARS = 200_000
"""Longer texts count by their bytes: over every budget anyway, and tiktoken would take seconds."""

# The names of tiktoken's cache files (SHA-1 of where they come from) and the SHA-256 of what has to be in them.
_DATA = {
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k_base": (
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
}
_OPENAI_PROVIDERS = ("openai", "azure")


class TokenCounter(Protocol):
    """Counts the tokens of a text, never too low.

    `message_tokens` is what a message costs beside its content (role and separators), `reply_tokens` what the
    beginning of the answer costs.
    """

    name: str
    message_tokens: int
    reply_tokens: int

    def count(self, text: str) -> int:
        """Tokens of `text`, or more."""
        ...


class BytesCounter:
    """Bytes of UTF-8: an upper bound for every byte-level tokenizer. Lone surrogates count three bytes each."""

    name = "utf8-bytes"
    # The longest chat templates in use spend 6 tokens on a message; twice that, and some.
    message_tokens = 16
    reply_tokens = 16

    def count(self, text: str) -> int:
        """Bytes of `text`."""
        return len(text.encode(errors="surrogatepass"))


class TiktokenCounter:
    """The exact count of one encoding, or the highest of several."""

    # Three for a message and one for its role; three that prime the answer.
    message_tokens = 4
    reply_tokens = 3

    def __init__(self, encodings: "Sequence[tiktoken.Encoding]") -> None:
        self.name = "tiktoken:" + "+".join(encoding.name for encoding in encodings)
        self._encodings = encodings

    def count(self, text: str) -> int:
        """Tokens of `text`; marks that look like special tokens are counted as the text that they are."""
        if len(text) > EXACT_CHARS:
            return BytesCounter().count(text)
        return max(len(encoding.encode_ordinary(text)) for encoding in self._encodings)


class TokenCounters:
    """The counter of each tier, made when it is first asked for: loading an encoding takes half a second."""

    def __init__(self, tiers: Mapping[str, Sequence[str]], cache_dir: Path | None = None) -> None:
        self._tiers = tiers
        self._cache_dir = cache_dir
        self._counters: dict[str, TokenCounter] = {}
        self._lock = threading.Lock()

    def of(self, tier: str) -> TokenCounter:
        """A counter that is not too low for any model of `tier`. Blocks while it loads: call it from a thread."""
        with self._lock:
            if tier not in self._counters:
                self._counters[tier] = counter_for(self._tiers.get(tier, ()), self._cache_dir)
            return self._counters[tier]


def counter_for(models: Iterable[str], cache_dir: Path | None = None) -> TokenCounter:
    """The exact counter for these models, or the bound by bytes if one of them has no data here."""
    names = {_encoding_name(model) for model in models}
    encodings = [_load(name, cache_dir) if name else None for name in sorted(names, key=str)]
    found = [encoding for encoding in encodings if encoding is not None]
    return TiktokenCounter(found) if found and len(found) == len(names) else BytesCounter()


def _encoding_name(model: str) -> str | None:
    provider, slash, name = model.rpartition("/")
    if slash and provider not in _OPENAI_PROVIDERS:
        return None
    from tiktoken.model import encoding_name_for_model

    try:
        return encoding_name_for_model(name)
    except KeyError:
        return None


_loading = threading.Lock()


def _load(name: str, cache_dir: Path | None) -> "tiktoken.Encoding | None":
    """An encoding from data on this machine, or None."""
    import tiktoken

    where = _find(name, cache_dir)
    if where is None:
        return None
    # tiktoken takes its directory from the environment only, and downloads what it does not find there.
    with _loading:
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = str(where)
        try:
            return tiktoken.get_encoding(name)
        finally:
            if before is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = before


def _find(name: str, cache_dir: Path | None) -> Path | None:
    """The directory that holds this encoding's data, whole and unchanged."""
    if name not in _DATA:
        return None
    file, sha256 = _DATA[name]
    places = [cache_dir, Path(tempfile.gettempdir()) / "data-gym-cache"]
    litellm = find_spec("litellm")
    if litellm is not None and litellm.origin is not None:
        places.append(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers")
    for place in places:
        data = place / file if place is not None else None
        if data is not None and data.is_file() and hashlib.sha256(data.read_bytes()).hexdigest() == sha256:
            return place
    return None
