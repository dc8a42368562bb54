"""A streamed answer: pieces of text while it is made, one recorded attempt at its end, however it ends (row A6)."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from types import TracebackType
from typing import Any

import structlog

from handlers.attempts import Attempt, Attempts, Request, Tries
from handlers.completion import Completion, completion_of
from handlers.provider import ProviderAnswer, StreamingProvider
from handlers.provider_errors import ProviderFailureError
from schemas.content import Json
from schemas.errors import InvalidInputError, ProviderError

logger = structlog.get_logger(__name__)


class LlmStream:
    """`async with` opens it, `async for` gives its pieces, and at the end `.completion` is the whole answer."""

    def __init__(self, attempts: Attempts, make_request: Callable[[], Request]) -> None:
        self._attempts = attempts
        self._make_request = make_request
        self._request: Request | None = None
        self._tries: Tries | None = None
        self._attempt: Attempt | None = None
        """The attempt that is in flight."""
        self._source: AsyncGenerator[str | ProviderAnswer, None] | None = None
        self._pieces: list[str] = []
        self._replayed: list[str] | None = None
        self._completion: Completion | None = None
        self._broken: str | None = None
        """Why the stream cannot be read any further, although its answer is not complete."""

    async def __aenter__(self) -> "LlmStream":
        self._request = self._make_request()
        done = self._attempts.finished(self._request)
        if done is not None:
            response = await self._attempts.journal.resolve(done.response)
            self._replayed = _pieces(response)
            if done.status == "ok":
                self._completion = completion_of(done, response)
            else:
                self._broken = "an earlier run of this agent left the stream here"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        self._broken = "the stream was left"
        try:
            await self._close()
        finally:
            if isinstance(error, asyncio.CancelledError):
                await attempt.cancelled(self._response())
            elif error is None or isinstance(error, Exception):
                reason = "the agent left the stream" + (f": {type(error).__name__}: {error}" if error else "")
                lengths = [len(piece) for piece in self._pieces]
                await attempt.left(reason, self._response() | {"pieces": lengths})

    def __aiter__(self) -> "LlmStream":
        return self

    async def __anext__(self) -> str:
        if self._request is None:
            raise InvalidInputError("open the stream first: async with context.llm.stream(…) as stream")
        if self._replayed:
            self._pieces.append(self._replayed.pop(0))
            return self._pieces[-1]
        if self._completion is not None:
            raise StopAsyncIteration
        if self._broken is not None:
            raise ProviderError(f"a stream cannot be read any further: {self._broken}")
        item = await self._next(self._request)
        if isinstance(item, str):
            self._pieces.append(item)
            return item
        raise StopAsyncIteration

    @property
    def text(self) -> str:
        """What came so far."""
        return "".join(self._pieces)

    @property
    def completion(self) -> Completion:
        """The whole answer. Raises `InvalidInputError` before the stream was read to its end."""
        if self._completion is None or self._replayed:
            raise InvalidInputError("a stream has its completion when it was read to its end")
        return self._completion

    async def _next(self, request: Request) -> str | ProviderAnswer:
        """The next piece or the end, after as many tries as it takes while the agent has not been given anything."""
        while True:
            if self._tries is None:
                models = self._attempts.models(request.tier)
                self._tries = await self._attempts.begin(request, models)
            if self._attempt is None:
                self._attempt = await self._attempts.open(request, self._tries)
                self._source = self._send(request, self._attempt)
            assert self._source is not None
            try:
                item = await anext(self._source)
            except ProviderFailureError as failure:
                await self._failed(failure, self._tries)
                continue
            except asyncio.CancelledError:
                attempt, self._attempt, self._broken = self._attempt, None, "it was cancelled"
                await attempt.cancelled(self._response())
                raise
            if isinstance(item, str):
                self._attempt.first_token_at = self._attempt.first_token_at or datetime.now(UTC)
                return item
            attempt, self._attempt = self._attempt, None
            await self._close()
            body = await attempt.answered(item)
            self._completion = completion_of(body, item.response)
            return item

    async def _failed(self, failure: ProviderFailureError, tries: Tries) -> None:
        attempt, self._attempt = self._attempt, None
        assert attempt is not None
        await attempt.failed(failure, self._response() if self._pieces else None)
        if self._pieces:
            # The agent has acted on what it was given: the same answer does not come a second time.
            self._broken = f"{attempt.model} broke off after {len(self.text):,} characters: {failure}"
            raise ProviderError(self._broken) from failure
        self._broken = "no model gave an answer"
        await tries.after(failure)
        self._broken = None

    def _send(self, request: Request, attempt: Attempt) -> AsyncGenerator[str | ProviderAnswer, None]:
        provider = self._attempts.service.provider
        send = provider.stream if isinstance(provider, StreamingProvider) else self._at_once
        return send(
            attempt.model,
            request.content["messages"],
            attempt.params,
            attempt_id=attempt.id,
            agent_id=self._attempts.journal.call.agent_id,
            timeout_s=self._attempts.service.retry.timeout_s,
        )

    async def _at_once(self, *args: Any, **kwargs: Any) -> AsyncGenerator[str | ProviderAnswer, None]:
        """For a provider that does not stream: the whole text is one piece."""
        answer = await self._attempts.service.provider.complete(*args, **kwargs)
        if answer.text:
            yield answer.text
        yield answer

    async def _close(self) -> None:
        assert self._source is not None
        try:
            await self._source.aclose()
        except Exception as error:
            # The connection is given up anyway.
            logger.debug("stream_not_closed", error=str(error))

    def _response(self) -> dict[str, Json]:
        return {"text": self.text, "finish_reason": None}


def _pieces(response: Json) -> list[str]:
    """The recorded text, in the pieces that the agent was given if it left the stream: it may have counted them."""
    text, lengths = response["text"], response.get("pieces")
    if lengths is None:
        return [text] if text else []
    return [text[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]
