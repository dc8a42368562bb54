"""What can go wrong at the fake."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Faults(BaseModel):
    """How ingestion requests fare. The default: they are stored and answered with 200."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: int | None = None
    """Answer this (500, 429, 400, …) and store nothing."""
    retry_after_s: float | None = None
    """Sent as Retry-After with `status`."""
    drop: Literal["before", "after"] | None = None
    """Cut the connection without an answer, before or after the spans were stored: the ambiguous outcome."""
    delay_s: float = 0
    """Wait this long after storing, before the answer."""
    poison: str | None = None
    """Refuse a request with 400 if a name or an attribute of any of its spans contains this text."""
    max_bytes: int | None = None
    """Refuse a request whose uncompressed body is larger with 413."""
    visible_after_s: float = 0
    """What was stored is not seen by readers before this time."""
    reads_status: int | None = None
    """Answer this to readers."""
    times: int | None = None
    """`status`, `drop` and `delay_s` hold for this many ingestion requests only; None: until faults are set again."""
