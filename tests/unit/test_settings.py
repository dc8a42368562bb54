"""Settings: read from the environment once, checked, with secrets that do not show."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from headwater.cli.common import read_settings
from headwater.settings import Settings
from schemas.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, field in Settings.model_fields.items():
        monkeypatch.delenv(str(field.validation_alias or f"HEADWATER_{name.upper()}"), raising=False)


def test_without_an_environment_everything_has_a_default() -> None:
    settings = Settings()
    assert settings.data == Path(".headwater")
    assert settings.redis_url is settings.database_url is settings.agents is None
    assert (settings.shards, settings.workers, settings.port, settings.host) == (16, 2, 8080, "127.0.0.1")


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "REDIS_URL": "redis://r",
        "DATABASE_URL": "postgresql://d",
        "HEADWATER_DATA": "/tmp/x",
        "HEADWATER_FAST_MODELS": "openai/a, openai/b,,",
        "HEADWATER_LEASE_MS": "2000",
        "HEADWATER_LOG_LEVEL": "WARNING",
        "HEADWATER_NO_SUCH_THING": "ignored",
    }.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.redis_url, settings.database_url) == ("redis://r", "postgresql://d")
    assert settings.data == Path("/tmp/x")
    assert settings.fast_models == ("openai/a", "openai/b")
    assert (settings.lease_ms, settings.log_level) == (2000, "warning")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SHARDS", "0"),
        ("SHARDS", "5000"),
        ("SHARDS", "many"),
        ("WORKERS", "0"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("LEASE_MS", "99"),
        ("LLM_TIMEOUT_S", "0"),
        ("LLM_ATTEMPTS", "0"),
        ("LLM_RETRY_MS", "-1"),
        ("FAST_MODELS", " , "),
        ("REASONING_MODELS", ""),
        ("IDEMPOTENCY_HOURS", "0"),
        ("TENANT_LABELS", "0"),
        ("LOG_LEVEL", "loud"),
        ("FSYNC", "sometimes"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"HEADWATER_{name}", value)
    with pytest.raises(ValidationError):
        Settings()
    with pytest.raises(ConfigurationError, match=rf"^HEADWATER_{name} .*cannot be used: it "):
        read_settings()


def test_an_option_that_was_given_is_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_PORT", "1000")
    assert read_settings(port=2000, workers=None).port == 2000
    assert read_settings(port=None).port == 1000


def test_secrets_do_not_show() -> None:
    settings = Settings(llm_api_key="sk-secret", langfuse_secret_key="sk-other")
    assert "sk-" not in repr(settings)
    assert "sk-" not in str(settings)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]  # that is what is tried


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    assert Settings.model_fields[name].description
