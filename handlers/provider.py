"""What the LLM service asks of a provider: one request, one answer, or a failure that says what to try next.

`Provider` is all that a provider has to be. One that can stream or embed is a `StreamingProvider` or an
`EmbeddingProvider` too. `LitellmProvider` is all three, over every provider that LiteLLM speaks to; it is the only code
that imports litellm, and it does so late: that takes two seconds.

LiteLLM's own retries, callbacks and price look-ups are off: every attempt has to be seen, and costs are computed from
disjoint token counts (`schemas/money.py`).
"""

import asyncio
import json
import os
from base64 import b64encode
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable

from pydantic import ValidationError

from handlers.provider_errors import ProviderFailureError, failure_of
from handlers.vectors import pack
from schemas.content import Json, well_formed
from schemas.money import TokenCounts, plain

__all__ = [
    "EmbeddingProvider",
    "LitellmProvider",
    "Messages",
    "Provider",
    "ProviderAnswer",
    "ProviderFailureError",
    "ProviderVectors",
    "StreamingProvider",
]

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """A complete answer. `tokens` is None when the provider did not say what it used."""

    text: str
    model: str | None
    response_id: str | None
    finish_reason: str | None
    tokens: TokenCounts | None
    reported_cost_usd: str | None
    tool_calls: tuple[dict[str, Any], ...] = ()

    @property
    def response(self) -> Json:
        """The answer as an event records it."""
        said = {"text": self.text, "finish_reason": self.finish_reason}
        return said | {"tool_calls": list(self.tool_calls)} if self.tool_calls else said


@dataclass(frozen=True, slots=True)
class ProviderVectors:
    """The embeddings of some texts, in their order: per vector its little-endian 32-bit floats."""

    vectors: list[bytes] = field(repr=False)
    model: str | None
    tokens: TokenCounts | None
    reported_cost_usd: str | None
    response_id: str | None = None

    @property
    def response(self) -> Json:
        """The vectors as an event records them, in Base64."""
        return {"vectors": [b64encode(vector).decode() for vector in self.vectors]}


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


@runtime_checkable
class StreamingProvider(Protocol):
    """A provider that can hand an answer out while it is made."""

    def stream(
        self,
        model: str,
        messages: Messages,
        params: dict[str, Any],
        *,
        attempt_id: str,
        agent_id: str,
        timeout_s: float,
    ) -> AsyncGenerator[str | ProviderAnswer, None]:
        """Pieces of text, none of them empty, and at the end the whole answer. `timeout_s` bounds each wait.

        Raises `ProviderFailureError`, also in the middle. Closing the generator closes the connection.
        """
        ...


@runtime_checkable
class EmbeddingProvider(Protocol):
    """A provider that can turn texts into vectors."""

    async def embed(
        self, model: str, texts: Sequence[str], *, attempt_id: str, agent_id: str, timeout_s: float
    ) -> ProviderVectors:
        """A vector for each text. Raises `ProviderFailureError`."""
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
            # Its embeddings take max_retries=0 for "not given", and use this instead.
            self._litellm.DEFAULT_MAX_RETRIES = 0
        return self._litellm

    async def aclose(self) -> None:
        """Close the HTTP connections of this event loop. Call it before the loop ends."""
        if self._litellm is not None:
            await self._litellm.close_litellm_async_clients()
            self._litellm.in_memory_llm_clients_cache.flush_cache()

    def _chat(self, params: dict[str, Any], **known: Any) -> dict[str, Any]:
        # The models of a tier differ, and some refuse a temperature. But an agent that brings tools needs them.
        return self._options(**known) | params | {"drop_params": "tools" not in params}

    def _options(self, attempt_id: str, agent_id: str, timeout_s: float) -> dict[str, Any]:
        """No hidden retries. The attempt's id travels in a header, so that bills can be matched."""
        headers = {"x-headwater-attempt": attempt_id, "x-headwater-agent": agent_id}
        return {"timeout": timeout_s, "num_retries": 0, "max_retries": 0, "extra_headers": headers, **self._target}

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
        """One request. `timeout_s` bounds the whole of it."""
        litellm = self._import()
        options = self._chat(params, attempt_id=attempt_id, agent_id=agent_id, timeout_s=timeout_s)
        try:
            # LiteLLM's timeout bounds each read only.
            async with asyncio.timeout(timeout_s + 1):
                response = await litellm.acompletion(model=model, messages=list(messages), **options)
        except Exception as error:
            raise failure_of(error) from error
        try:
            return _answer(response)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise _malformed(error) from error

    async def stream(
        self,
        model: str,
        messages: Messages,
        params: dict[str, Any],
        *,
        attempt_id: str,
        agent_id: str,
        timeout_s: float,
    ) -> AsyncGenerator[str | ProviderAnswer, None]:
        """One request, answered piece by piece. Without `include_usage` the provider would not say what it used."""
        litellm = self._import()
        options = self._chat(params, attempt_id=attempt_id, agent_id=agent_id, timeout_s=timeout_s)
        options |= {"stream": True, "stream_options": {"include_usage": True}}
        gathered = _Gathered()
        response: Any = None
        try:
            try:
                async with asyncio.timeout(timeout_s + 1):
                    response = await litellm.acompletion(model=model, messages=list(messages), **options)
            except Exception as error:
                raise failure_of(error) from error
            while True:
                try:
                    async with asyncio.timeout(timeout_s + 1):
                        chunk = await anext(response)
                    piece = gathered.add(chunk)
                except StopAsyncIteration:
                    break
                except Exception as error:
                    raise failure_of(error) from error
                if piece:
                    yield piece
            gathered.check_end(response)
            yield gathered.answer(self._reported(model, gathered))
        finally:
            if response is not None:
                await response.aclose()

    def _reported(self, model: str, gathered: "_Gathered") -> str | None:
        """What LiteLLM says a streamed answer cost; it says so itself for the others only."""
        if gathered.usage is None:
            return None
        try:
            whole = self._import().ModelResponse(model=gathered.model, usage=gathered.usage)
            return _usd(self._import().completion_cost(completion_response=whole, model=model))
        except Exception:
            # A model without a price raises. It is for audit only, so it may be missing.
            return None

    async def embed(
        self, model: str, texts: Sequence[str], *, attempt_id: str, agent_id: str, timeout_s: float
    ) -> ProviderVectors:
        """One request for the vectors of all texts."""
        litellm = self._import()
        options = self._options(attempt_id, agent_id, timeout_s)
        try:
            async with asyncio.timeout(timeout_s + 1):
                response = await litellm.aembedding(model=model, input=list(texts), **options)
        except Exception as error:
            raise failure_of(error) from error
        try:
            return _vectors(response, len(texts))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _malformed(error) from error


class _Gathered:
    """What a stream brought so far."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.model: str | None = None
        self.response_id: str | None = None
        self.finish_reason: str | None = None
        self.usage: Any = None

    def add(self, chunk: Any) -> str:
        """The chunk's text, which may be empty."""
        self.model = chunk.model or self.model
        self.response_id = chunk.id or self.response_id
        self.usage = getattr(chunk, "usage", None) or self.usage
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        piece = well_formed(choice.delta.content or "")
        if piece:
            self.pieces.append(piece)
        return piece

    def check_end(self, response: Any) -> None:
        """LiteLLM makes up what a provider left out at the end: the tokens, by counting, and that it was the end.

        Raises `ProviderFailureError` if the stream just ceased.
        """
        if response.received_finish_reason is None:
            raise ProviderFailureError(
                "the stream ended before its answer did", outcome="unknown", action="retry", error_class="StreamCut"
            )
        if not any(getattr(chunk, "usage", None) for chunk in response.chunks):
            self.usage = None

    def answer(self, reported_cost_usd: str | None) -> ProviderAnswer:
        """The whole answer."""
        text = "".join(self.pieces)
        return ProviderAnswer(
            text, self.model, self.response_id, self.finish_reason, _tokens(self.usage), reported_cost_usd
        )


def _answer(response: Any) -> ProviderAnswer:
    choice = response.choices[0]
    tool_calls = tuple(_well_formed_call(call) for call in choice.message.tool_calls or ())
    if choice.message.content is None and not tool_calls:
        raise ValueError("it has no content")
    return ProviderAnswer(
        text=well_formed(choice.message.content or ""),
        model=response.model,
        response_id=response.id,
        finish_reason=choice.finish_reason,
        tokens=_tokens(getattr(response, "usage", None)),
        reported_cost_usd=_usd(getattr(response, "_hidden_params", {}).get("response_cost")),
        tool_calls=tool_calls,
    )


def _well_formed_call(call: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(well_formed(json.dumps(call.model_dump(), ensure_ascii=False)))
    return made


def _tokens(usage: Any) -> TokenCounts | None:
    if not getattr(usage, "total_tokens", None):
        return None
    details = getattr(usage, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", None) or 0
    written = getattr(details, "cache_creation_tokens", None) or 0
    reasoning = getattr(getattr(usage, "completion_tokens_details", None), "reasoning_tokens", None) or 0
    try:
        return TokenCounts(
            input_uncached=usage.prompt_tokens - cached - written,
            cache_read=cached,
            cache_write=written,
            output_text=usage.completion_tokens - reasoning,
            output_reasoning=reasoning,
        )
    except ValidationError:
        # More cached tokens than tokens: a paid answer is not thrown away for that, but nobody knows what it cost.
        return None


def _vectors(response: Any, count: int) -> ProviderVectors:
    found = sorted(response.data, key=lambda item: item["index"])
    vectors = [pack(item["embedding"]) for item in found]
    if len(vectors) != count or len({len(vector) for vector in vectors}) != 1:
        raise ValueError(f"it has {len(vectors)} vectors for {count} texts, or of different lengths")
    usage = getattr(response, "usage", None)
    return ProviderVectors(
        vectors=vectors,
        model=response.model,
        tokens=TokenCounts(input_uncached=usage.prompt_tokens) if usage is not None and usage.prompt_tokens else None,
        reported_cost_usd=_usd(getattr(response, "_hidden_params", {}).get("response_cost")),
    )


def _usd(amount: float | None) -> str | None:
    return None if amount is None else plain(Decimal(str(amount)))


def _malformed(error: Exception) -> ProviderFailureError:
    return ProviderFailureError(
        f"the answer makes no sense: {error}", outcome="unknown", action="retry", error_class="MalformedAnswer"
    )
