"""Embedders: what turns a text into the vector that it is found by (contract row D2).

An embedder's id stands in every memory, and a search compares only what one embedder made: the vectors of two
models have nothing to say to each other.
"""

import asyncio
import math
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from schemas.errors import ConfigurationError, InvalidInputError

if TYPE_CHECKING:
    from wordllama.inference import WordLlamaInference

OFFLINE = "wordllama"
_CONFIG, _DIMENSIONS = "l2_supercat", 256


class Embeds(Protocol):
    """What an embedder that asks a provider needs of the caller's LLM client: `LlmClient.embed`."""

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """A vector for each text, recorded and priced in the name of the caller's call."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors."""

    id: str
    """Names the model and whatever else makes its vectors comparable with each other."""
    asks_provider: bool
    """Does it need an LLM client?"""

    async def embed(self, texts: Sequence[str], llm: Embeds | None) -> list[list[float]]:
        """A vector for each text, none of them zero.

        Raises:
            InvalidInputError: a text is empty, or says nothing that the model knows.
        """
        ...


class WordLlamaEmbedder:
    """The offline default: a small model from an installed wheel, 256 dimensions, the same vector every time."""

    id = f"{OFFLINE}:{_CONFIG}:{_DIMENSIONS}"
    asks_provider = False

    def __init__(self) -> None:
        self._model: WordLlamaInference | None = None
        self._lock = threading.Lock()

    async def embed(self, texts: Sequence[str], llm: Embeds | None = None) -> list[list[float]]:
        """A vector for each text. The first call loads the model, which takes half a second; all run in a thread."""
        if any(not text.strip() for text in texts):
            raise InvalidInputError("an empty text has no embedding: leave it out")
        return await asyncio.to_thread(self._embed, list(texts))

    def _embed(self, texts: list[str]) -> list[list[float]]:
        with self._lock:
            self._model = self._model or _load()
        # One at a time: in a batch, a text's last bits depend on its neighbours' lengths.
        return [_checked(self._model.embed([text])[0].tolist(), text) for text in texts]


class ModelEmbedder:
    """Asks a provider for embeddings, through LiteLLM, in the name of the call that needs them."""

    asks_provider = True

    def __init__(self, model: str) -> None:
        self.id = f"model:{model}"
        self._model = model

    async def embed(self, texts: Sequence[str], llm: Embeds | None) -> list[list[float]]:
        """A vector for each text. Raises what `LlmClient.embed` raises, too."""
        assert llm is not None, "an embedder that asks a provider needs a client"
        vectors = await llm.embed(texts, model=self._model)
        return [_checked(vector, text) for vector, text in zip(vectors, texts, strict=True)]


def make_embedder(name: str) -> Embedder | None:
    """The embedder of a setting: "wordllama", "none", or the name of a model that LiteLLM knows."""
    if name == "none":
        return None
    return WordLlamaEmbedder() if name == OFFLINE else ModelEmbedder(name)


def _load() -> "WordLlamaInference":
    spec = find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "the offline embedder is not installed: install wordllama, or set HEADWATER_EMBEDDER to 'none' or to a "
            "model for embeddings"
        )
    from wordllama import WordLlama

    # Its weights come with the wheel; it must not look for them on the network.
    model: WordLlamaInference = WordLlama.load(
        config=_CONFIG, dim=_DIMENSIONS, cache_dir=Path(spec.origin).parent, disable_download=True
    )
    return model


def _checked(vector: list[float], text: str) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector))
    if not math.isfinite(length) or length == 0:
        raise InvalidInputError(f"the text {text[:80]!r} has no embedding: it says nothing that the model knows")
    return vector
