"""The LLM provider behind LiteLLM. The only module that imports litellm, and it does so late: it takes two seconds.

LiteLLM's own retries, callbacks and price look-ups are off: every attempt has to be seen, and costs are computed from
disjoint token counts (`schemas/money.py`). Errors are judged by HTTP status, because its error classes are not reliable
(a 401 arrives as BadRequestError, a refused connection as a 500).
"""

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Protocol

from schemas.money import TokenCounts, plain

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """A complete answer with its usage."""

    text: str
    model: str | None
    response_id: str | None
    finish_reason: str | None
    tokens: TokenCounts
    reported_cost_usd: str | None


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
        action: Literal["retry", "next_model", "give_up"],
        error_class: str,
        http_status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.action = action
        self.error_class = error_class
        self.http_status = http_status
        self.retry_after_s = retry_after_s


class Provider(Protocol):
    """One request to a model."""

    async def complete(
        self,
        model: str,
        messages: Messages,
        params: dict[str, Any],
        *,
        attempt_id: str,
        agent_id: str,
        timeout_s: float,
    ) -> ProviderAnswer:
        """The answer. Raises `ProviderFailureError`."""
        ...


class LitellmProvider:
    """Any provider that LiteLLM speaks to. `api_base` and `api_key` override what the model's provider would use."""

    def __init__(self, api_base: str | None = None, api_key: str | None = None) -> None:
        self._target = {k: v for k, v in {"api_base": api_base, "api_key": api_key}.items() if v}
        self._litellm: Any = None

    async def warm_up(self) -> None:
        """Import LiteLLM in a thread, so that the first request does not stall the event loop."""
        await asyncio.to_thread(self._import)

    def _import(self) -> Any:
        if self._litellm is None:
            # Without these, the import fetches a price map from the network and loads a .env of the working directory.
            os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
            import litellm

            litellm.suppress_debug_info = True
            self._litellm = litellm
        return self._litellm

    async def complete(
        self,
        model: str,
        messages: Messages,
        params: dict[str, Any],
        *,
        attempt_id: str,
        agent_id: str,
        timeout_s: float,
    ) -> ProviderAnswer:
        """One request, no hidden retries. The attempt's id travels in a header, so that bills can be matched."""
        litellm = self._import()
        try:
            async with asyncio.timeout(timeout_s + 1):
                response = await litellm.acompletion(
                    model=model,
                    messages=list(messages),
                    timeout=timeout_s,
                    num_retries=0,
                    max_retries=0,
                    extra_headers={"x-headwater-attempt": attempt_id, "x-headwater-agent": agent_id},
                    **self._target,
                    **params,
                )
        except Exception as error:
            raise _failure(error) from error
        try:
            return _answer(response)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise ProviderFailureError(
                f"the answer makes no sense: {error}", outcome="unknown", action="retry", error_class="MalformedAnswer"
            ) from error


def _answer(response: Any) -> ProviderAnswer:
    usage, choice = response.usage, response.choices[0]
    details = usage.prompt_tokens_details
    cached = getattr(details, "cached_tokens", None) or 0
    written = getattr(details, "cache_creation_tokens", None) or 0
    reasoning = getattr(usage.completion_tokens_details, "reasoning_tokens", None) or 0
    if choice.message.content is None or not usage.total_tokens:
        raise ValueError("it has no content or no usage")
    reported = getattr(response, "_hidden_params", {}).get("response_cost")
    return ProviderAnswer(
        text=choice.message.content,
        model=response.model,
        response_id=response.id,
        finish_reason=choice.finish_reason,
        tokens=TokenCounts(
            input_uncached=usage.prompt_tokens - cached - written,
            cache_read=cached,
            cache_write=written,
            output_text=usage.completion_tokens - reasoning,
            output_reasoning=reasoning,
        ),
        reported_cost_usd=None if reported is None else plain(Decimal(str(reported))),
    )


_SAME_MODEL = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_OTHER_MODEL = frozenset({401, 402, 403, 404})


def _failure(error: Exception) -> ProviderFailureError:
    name, text = type(error).__name__, str(error)
    chain = list(_chain(error))
    causes = {type(cause).__name__ for cause in chain}
    headers = getattr(error, "litellm_response_headers", None)
    if "ConnectError" in causes:
        # The request never left.
        return ProviderFailureError(text, outcome="error", action="retry", error_class="ConnectError")
    if not headers and "HTTPStatusError" not in causes:
        # Timeouts, dropped connections and unreadable answers: LiteLLM calls most of them a 500, but no status came.
        timed_out = isinstance(error, TimeoutError) or "Timeout" in name
        error_class = "Timeout" if timed_out else "JSONDecodeError" if "JSONDecodeError" in causes else "ConnectionLost"
        return ProviderFailureError(text, outcome="unknown", action="retry", error_class=error_class)
    status = getattr(error, "status_code", None)
    action: Literal["retry", "next_model", "give_up"] = "give_up"
    if status in _OTHER_MODEL or any(getattr(cause, "code", None) == "insufficient_quota" for cause in chain):
        # An empty account arrives as a 429, which would be retried for nothing.
        action = "next_model"
    elif status in _SAME_MODEL:
        action = "retry"
    return ProviderFailureError(
        text, outcome="error", action=action, error_class=name, http_status=status, retry_after_s=_retry_after(headers)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _retry_after(headers: Any) -> float | None:
    try:
        return max(0.0, float(headers.get("retry-after")))
    except (TypeError, ValueError, AttributeError):
        return None
