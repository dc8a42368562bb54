"""The offline embedder: the same vector every time, near for near meanings, and nothing for what says nothing."""

import math
import socket

import pytest

from handlers.embedders import ModelEmbedder, WordLlamaEmbedder, make_embedder
from schemas.errors import InvalidInputError


@pytest.fixture(scope="module")
def embedder() -> WordLlamaEmbedder:
    return WordLlamaEmbedder()


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


async def test_near_meanings_are_near(embedder: WordLlamaEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*address: object) -> None:
        raise AssertionError(f"the network was asked: {address}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    tea, drink, tax = await embedder.embed(
        ["Ada drinks tea every morning.", "What does Ada drink in the morning?", "The tax office closes at noon."]
    )
    assert cosine(tea, drink) > cosine(tea, tax) + 0.2


async def test_a_text_has_one_vector_whatever_stands_beside_it(embedder: WordLlamaEmbedder) -> None:
    (alone,) = await embedder.embed(["short"])
    beside = await embedder.embed(["short", "a much longer text " * 50])
    assert beside[0] == alone
    assert (await WordLlamaEmbedder().embed(["short"]))[0] == alone
    assert len(alone) == 256
    assert embedder.id.endswith(":256")


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
async def test_what_says_nothing_is_refused(embedder: WordLlamaEmbedder, text: str) -> None:
    with pytest.raises(InvalidInputError, match="an empty text has no embedding"):
        await embedder.embed([text])


@pytest.mark.parametrize("text", ["🙂", "\u200b", "\x00", "字", "a" * 5000])
async def test_any_other_text_has_a_finite_vector(embedder: WordLlamaEmbedder, text: str) -> None:
    (vector,) = await embedder.embed([text])
    assert math.isfinite(math.hypot(*vector))
    assert math.hypot(*vector) > 0


class Zero:
    """A provider whose vectors say nothing."""

    async def embed(self, texts: list[str], *, model: str | None = None) -> list[list[float]]:
        return [[0.0, 0.0] for _ in texts]


async def test_a_vector_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="says nothing that the model knows"):
        await ModelEmbedder("m").embed(["x"], Zero())  # type: ignore[arg-type]  # a narrower sequence


def test_the_setting_names_the_embedder() -> None:
    assert make_embedder("none") is None
    assert isinstance(make_embedder("wordllama"), WordLlamaEmbedder)
    named = make_embedder("openai/text-embedding-3-small")
    assert named is not None
    assert (named.id, named.asks_provider) == ("model:openai/text-embedding-3-small", True)
