"""Token counters: exact only with data that is here, never from the network, never too low."""

import hashlib
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from handlers import tokens
from handlers.tokens import EXACT_CHARS, BytesCounter, TiktokenCounter, TokenCounters, counter_for


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any encoding's data, whose network must not be asked."""
    monkeypatch.setattr(tokens, "find_spec", lambda name: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))

    def refuse(*address: object) -> None:
        raise AssertionError(f"the network was asked: {address}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


def test_exact_for_models_whose_encoding_is_here() -> None:
    counter = counter_for(["openai/gpt-4o-mini"])
    assert counter.name == "tiktoken:o200k_base"
    assert counter.count("Hello, world!") == 4
    # A mark that looks like a special token is text.
    assert counter.count("<|endoftext|>") > 1
    both = counter_for(["openai/gpt-4o", "azure/gpt-4", "gpt-3.5-turbo"])
    assert both.name == "tiktoken:cl100k_base+o200k_base"
    text = "Ångström 字 \N{FAMILY}"
    assert both.count(text) == max(counter_for([m]).count(text) for m in ("gpt-4", "gpt-4o"))


@pytest.mark.parametrize(
    "models",
    [["openai/sim-fast"], ["anthropic/claude-sonnet-4"], ["openai/gpt-4o", "ollama/llama3"], [], ["groq/gpt-4o"]],
)
def test_bytes_where_a_model_of_the_tier_is_not_tiktokens(models: list[str]) -> None:
    counter = counter_for(models)
    assert isinstance(counter, BytesCounter)
    assert counter.count("aé字🙂") == 1 + 2 + 3 + 4


def test_without_data_nothing_is_downloaded(no_data: Path) -> None:
    assert counter_for(["openai/gpt-4o"]).name == "utf8-bytes"


def test_the_data_is_taken_from_the_given_directory(no_data: Path) -> None:
    directory = no_data / "cache"
    directory.mkdir()
    shutil.copy(_bundled_o200k(), directory)
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    counter = TokenCounters({"fast": ["openai/gpt-4o"]}, directory).of("fast")
    assert isinstance(counter, TiktokenCounter)
    assert os.environ.get("TIKTOKEN_CACHE_DIR") == before


def _bundled_o200k() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "litellm_core_utils" / "tokenizers" / tokens._DATA["o200k_base"][0]


def test_damaged_data_is_not_used_and_not_replaced(no_data: Path) -> None:
    file = no_data / tokens._DATA["o200k_base"][0]
    file.write_bytes(_bundled_o200k().read_bytes()[:-10])
    was = hashlib.sha256(file.read_bytes()).hexdigest()
    assert counter_for(["openai/gpt-4o"], no_data).name == "utf8-bytes"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == was


def test_a_very_long_text_counts_by_its_bytes() -> None:
    counter = counter_for(["openai/gpt-4o"])
    assert counter.count("é" * (EXACT_CHARS + 1)) == 2 * (EXACT_CHARS + 1)
