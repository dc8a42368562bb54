"""Failures of a provider, judged by HTTP status: LiteLLM's error classes are not reliable.

A 401 arrives as BadRequestError, a refused connection as a 500, an empty account as a 429 that looks retryable.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from schemas.content import well_formed

Action = Literal["retry", "next_model", "give_up"]

_SAME_MODEL = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REFUSALS = frozenset({400, 401, 402, 403, 404, 413, 422})
_OTHER_MODEL = frozenset({401, 402, 403, 404})


class ProviderFailureError(Exception):
    """A request without a usable answer.

    `outcome` is "error" when the provider refused with an HTTP status (nothing was billed), "unknown" when no full
    answer was read. `action` says what to try next: the same model again, the next model, or nothing.
    """

    def __init__(
        self,
        message: str,
        *,
        outcome: Literal["error", "unknown"],
        action: Action,
        error_class: str,
        http_status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(well_formed(message))
        self.outcome = outcome
        self.action = action
        self.error_class = error_class
        self.http_status = http_status
        self.retry_after_s = retry_after_s


def failure_of(error: Exception) -> ProviderFailureError:
    """What an error that LiteLLM raised means."""
    name, text = type(error).__name__, str(error)
    chain = list(_chain(error))
    causes = {type(cause).__name__ for cause in chain}
    headers = getattr(error, "litellm_response_headers", None)
    if "ConnectError" in causes:
        # The request never left.
        return ProviderFailureError(text, outcome="error", action="retry", error_class="ConnectError")
    status = getattr(error, "status_code", None)
    if not headers and "HTTPStatusError" not in causes:
        if status in _REFUSALS or any(type(c).__name__ == "OpenAIError" for c in chain if _is_openai(c)):
            # LiteLLM or its SDK refused before anything was sent: no key, no such provider, a parameter not taken.
            return ProviderFailureError(text, outcome="error", action="next_model", error_class=name)
        # Timeouts, dropped connections and unreadable answers: LiteLLM calls most of them a 500, but no status came.
        timed_out = any("Timeout" in cause for cause in causes)
        error_class = "Timeout" if timed_out else "JSONDecodeError" if "JSONDecodeError" in causes else "ConnectionLost"
        return ProviderFailureError(text, outcome="unknown", action="retry", error_class=error_class)
    action: Action = "give_up"
    if status in _OTHER_MODEL or any(getattr(cause, "code", None) == "insufficient_quota" for cause in chain):
        # An empty account arrives as a 429, which would be retried for nothing.
        action = "next_model"
    elif status in _SAME_MODEL:
        action = "retry"
    return ProviderFailureError(
        text,
        outcome="error",
        action=action,
        error_class=name,
        http_status=status,
        retry_after_s=retry_after_s(headers or {}, datetime.now(UTC)),
    )


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the provider asks to wait, from `retry-after-ms` or `retry-after` (seconds, or an HTTP date)."""
    for name, seconds in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name) or ""
        try:
            wait = float(text) * seconds
        except ValueError:
            continue
        # A NaN is no wait at all.
        return max(0.0, wait) if wait < float("inf") else None
    try:
        at = parsedate_to_datetime(headers.get("retry-after") or "")
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now.timestamp())


def _is_openai(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "openai"


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
