"""Every setting, read once from the environment by the composition root."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Models = Annotated[tuple[str, ...], NoDecode]
Delays = Annotated[tuple[Annotated[float, Field(ge=0, le=86_400)], ...], NoDecode]


class Settings(BaseSettings):
    """Headwater's settings. Each is an environment variable; docs/settings.md is made from this class."""

    model_config = SettingsConfigDict(env_prefix="HEADWATER_", extra="ignore", frozen=True, populate_by_name=True)

    data: Path = Field(default=Path(".headwater"), description="Data directory of the embedded servers and of `up`.")
    redis_url: str | None = Field(
        default=None, validation_alias="REDIS_URL", description="Redis to use. Not set: an embedded one is started."
    )
    database_url: str | None = Field(
        default=None,
        validation_alias="DATABASE_URL",
        description="PostgreSQL to use. Not set: an embedded one is started.",
    )
    redis_binary: str | None = Field(default=None, description="Redis or Valkey server binary for the embedded Redis.")
    shards: int = Field(default=16, ge=1, le=4096, description="Shards of the log, fixed at its first start.")
    agents: str | None = Field(default=None, description="The team to run, as `module:object`.")
    workers: int = Field(default=2, ge=1, le=256, description="Worker processes that `up` keeps running.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port of the HTTP application.")
    host: str = Field(default="127.0.0.1", description="Address that the HTTP application listens on.")
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="A port of its own for /metrics of all tenants, without a key, on `HEADWATER_METRICS_HOST`.",
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address that `HEADWATER_METRICS_PORT` listens on.")
    max_request_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1024, description="Largest body that the HTTP application reads."
    )
    max_wait_s: float = Field(default=60.0, gt=0, le=600, description="Longest `?wait=` of `GET /v1/tasks/{id}`.")
    max_streams: int = Field(default=256, ge=1, description="Clients of `GET /v1/events/stream` at once, per process.")
    url: str | None = Field(default=None, description="A remote Headwater that the commands talk to, over HTTP.")
    key: str | None = Field(default=None, description="API key for `HEADWATER_URL`.", repr=False)
    fast_models: Models = Field(
        default=("openai/gpt-4o-mini",),
        min_length=1,
        description="Models of the tier `fast`, comma-separated, in order of fallback.",
    )
    reasoning_models: Models = Field(
        default=("openai/o4-mini",),
        min_length=1,
        description="Models of the tier `reasoning`, comma-separated, in order of fallback.",
    )
    llm_base_url: str | None = Field(
        default=None, description="Base URL for all models, such as a proxy's or simulator's."
    )
    llm_api_key: str | None = Field(default=None, description="API key for `HEADWATER_LLM_BASE_URL`.", repr=False)
    llm_timeout_s: float = Field(default=60.0, gt=0, description="Seconds that one LLM request may take.")
    llm_attempts: int = Field(default=4, ge=1, le=20, description="Attempts per model before the tier's next one.")
    llm_retry_ms: int = Field(default=500, ge=0, description="First delay between two attempts; it doubles.")
    prices: Path | None = Field(
        default=None, description="JSON price file in LiteLLM's format, over the bundled prices."
    )
    embedder: str = Field(
        default="wordllama",
        description="What makes memories searchable: `wordllama` (offline), `none`, or a model for embeddings that "
        "LiteLLM knows, such as `openai/text-embedding-3-small`.",
    )
    tiktoken_cache_dir: Path | None = Field(
        default=None,
        validation_alias="TIKTOKEN_CACHE_DIR",
        description="Where tiktoken's encodings lie. They are used from there, and never downloaded.",
    )
    lease_ms: int = Field(
        default=10_000, ge=100, description="How long a worker may be silent before its work is redone."
    )
    retention_hours: float = Field(
        default=0.0,
        ge=0,
        description="Hours that the projector leaves archived events in Redis; 0 leaves them for ever. Until they are "
        "trimmed, a lost PostgreSQL can be made again from Redis alone.",
    )
    retry_delays_s: Delays = Field(
        default=(1.0, 4.0, 16.0),
        description="Seconds before an event that could not be handled is tried again, comma-separated; then it is "
        "parked.",
    )
    idempotency_hours: int = Field(default=24, ge=1, description="How long an idempotency key is remembered.")
    tenant_labels: int = Field(default=100, ge=1, description="Tenants with labels of their own in /metrics.")
    heartbeat: Path | None = Field(
        default=None,
        description="File that a worker or projector touches while it reads its streams, for a liveness check.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error."
    )
    fsync: Literal["everysec", "always"] = Field(
        default="everysec", description="appendfsync of the embedded Redis: everysec or always."
    )
    langfuse_public_key: str | None = Field(
        default=None,
        validation_alias="LANGFUSE_PUBLIC_KEY",
        description="Public key of the Langfuse project to export to. Without keys and host, nothing is exported.",
    )
    langfuse_secret_key: str | None = Field(
        default=None, validation_alias="LANGFUSE_SECRET_KEY", description="Its secret key.", repr=False
    )
    langfuse_host: str | None = Field(
        default=None, validation_alias="LANGFUSE_HOST", description="Base URL of the Langfuse server."
    )
    langfuse_content: bool = Field(
        default=True,
        description="Export prompts, answers, results and handed-over contents; false: all but these.",
    )
    langfuse_settle_s: float = Field(
        default=60.0,
        ge=0,
        description="How long Langfuse may take to show what it was sent, before a doubtful span is sent again.",
    )

    @field_validator("fast_models", "reasoning_models", "retry_delays_s", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(m.strip() for m in value.split(",") if m.strip()) if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @property
    def has_langfuse(self) -> bool:
        """Are both keys and the host of Langfuse set?"""
        return bool(self.langfuse_public_key and self.langfuse_secret_key and self.langfuse_host)


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    field = Settings.model_fields.get(name)
    if field is None:
        return name
    alias = field.validation_alias
    return alias if isinstance(alias, str) else f"HEADWATER_{name.upper()}"


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
