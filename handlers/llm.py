"""`context.llm`: the LLM service that agents use (row A6).

Tiers with fallbacks, retries of our own, and a record of every attempt (`handlers/attempts.py`). The text that users
write stays in user messages: only an agent's own `system` argument becomes a system message.
"""

import asyncio
from base64 import b64decode
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, overload

from pydantic import BaseModel

from handlers import structured
from handlers.attempts import EMBEDDING, Attempt, Attempts, LlmService, Request, RetryPolicy, Tries
from handlers.completion import Completion, completion_of
from handlers.journal import Journal
from handlers.llm_stream import LlmStream
from handlers.provider import EmbeddingProvider, ProviderAnswer, ProviderVectors
from handlers.provider_errors import ProviderFailureError
from handlers.vectors import unpack
from schemas.bodies import LlmAttempted
from schemas.errors import ConfigurationError, InvalidInputError, StructuredOutputError

__all__ = ["Completion", "LlmClient", "LlmService", "LlmStream", "RetryPolicy", "Tier"]

Tier = Literal["fast", "reasoning"]
M = TypeVar("M", bound=BaseModel)
Answer = TypeVar("Answer", ProviderAnswer, ProviderVectors)

ROLES = frozenset({"user", "assistant", "tool", "function"})
"""Roles of the messages that an agent may pass. A system message comes from `system=…` only."""
RESERVED = frozenset(
    {
        *("model", "messages", "input", "stream", "stream_options", "timeout", "num_retries", "max_retries"),
        *("extra_headers", "headers", "api_base", "base_url", "api_key", "api_version", "custom_llm_provider", "n"),
        *("drop_params", "fallbacks", "mock_response", "input_cost_per_token", "output_cost_per_token"),
    }
)
"""Parameters of LiteLLM that an agent may not pass: they belong to the service, or would get round its record."""
EMBED_BATCH = 128
"""Texts in one embeddings request: their vectors have to fit into one event's content."""


class LlmClient:
    """The LLM service in the name of one call."""

    def __init__(self, service: LlmService, journal: Journal) -> None:
        self._service = service
        self._journal = journal
        self._attempts = Attempts(service, journal)

    @overload
    async def complete(
        self,
        prompt: str | Sequence[dict[str, Any]],
        *,
        system: str | None = None,
        tier: Tier = "fast",
        temperature: float | None = None,
        max_tokens: int | None = None,
        response_model: None = None,
        **params: Any,
    ) -> Completion: ...

    @overload
    async def complete(
        self,
        prompt: str | Sequence[dict[str, Any]],
        *,
        system: str | None = None,
        tier: Tier = "fast",
        temperature: float | None = None,
        max_tokens: int | None = None,
        response_model: type[M],
        check: structured.Check[M] | None = None,
        **params: Any,
    ) -> Completion[M]: ...

    async def complete(
        self,
        prompt: str | Sequence[dict[str, Any]],
        *,
        system: str | None = None,
        tier: Tier = "fast",
        temperature: float | None = None,
        max_tokens: int | None = None,
        response_model: type[Any] | None = None,
        check: structured.Check[Any] | None = None,
        **params: Any,
    ) -> Completion[Any]:
        """Ask a model of `tier`. `prompt` is a user's text, or a list of messages in OpenAI's form.

        The models of a tier differ: a parameter that one does not take, such as a temperature, is left out for it.

        Rate limits, timeouts and server errors are retried with backoff, then the tier's next model is asked. After a
        crash, the recorded answer is returned and nothing is paid twice.

        With `response_model`, the model is asked for JSON of that form, and `.parsed` has the instance. `check` may
        say what else is wrong with it. An answer that cannot be used goes back to the model once, with what is wrong;
        this second request is a logical request of its own, with an attempt and a cost of its own.

        Raises:
            ProviderError: no model of the tier gave an answer; the text has each one's last reason.
            StructuredOutputError: the answer had not the form that was asked for, and neither had its repair.
            InvalidInputError: a message has the role "system", or a parameter is not for agents to set.
        """
        given = {"temperature": temperature, "max_tokens": max_tokens, **params}
        if response_model is None:
            return await self._ask(self._messages(prompt, system), tier, given)
        if "response_format" in params:
            raise InvalidInputError("pass either response_model or response_format, not both")
        system = "\n\n".join(filter(None, (system, structured.instructions(response_model))))
        given["response_format"] = structured.response_format(response_model)
        return await self._ask_for(response_model, check, self._messages(prompt, system), tier, given)

    def stream(
        self,
        prompt: str | Sequence[dict[str, Any]],
        *,
        system: str | None = None,
        tier: Tier = "fast",
        temperature: float | None = None,
        max_tokens: int | None = None,
        **params: Any,
    ) -> LlmStream:
        """Ask like `complete`, and read the answer while it is made.

            async with context.llm.stream("Tell me about rivers.") as stream:
                async for piece in stream:
                    ...
            stream.completion.cost_usd

        A failure before the first piece is retried like any other; after it, it ends the stream. Leaving the block
        early ends the request, and is recorded as an attempt with unknown cost. After a crash, the recorded text is
        handed out and nothing is paid twice.

        Raises (when it is entered or read):
            ProviderError: no model of the tier gave an answer, or the answer broke off.
        """
        given = {"temperature": temperature, "max_tokens": max_tokens, **params}
        return LlmStream(self._attempts, lambda: self._request(self._messages(prompt, system), tier, given))

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """A vector for each text, by `model` or else by the model of the tier "embedding"; none may be empty.

        There is no fallback to another model: vectors of different models cannot be compared. Recorded and priced like
        every other request, so that an agent that is run again gets the same vectors and pays nothing twice.

        Raises:
            ProviderError: the model gave no answer.
            ConfigurationError: there is no model for embeddings, or the provider makes none.
            InvalidInputError: a text is empty.
        """
        if any(not text.strip() for text in texts):
            raise InvalidInputError("an empty text has no embedding: leave it out")
        models = [model or self._service.models(EMBEDDING)[0]]
        found: list[list[float]] = []
        for start in range(0, len(texts), EMBED_BATCH):
            part = list(texts[start : start + EMBED_BATCH])
            request = Request.of(self._journal.next_ordinal(), EMBEDDING, {"input": part}, {"model": models[0]})
            done = self._attempts.finished(request)
            if done is not None:
                response = await self._journal.resolve(done.response)
                found += [unpack(b64decode(vector)) for vector in response["vectors"]]
            else:
                _, answer = await self._send(request, models, self._embed)
                found += [unpack(vector) for vector in answer.vectors]
        return found

    async def _ask_for(
        self,
        wanted: type[M],
        check: structured.Check[M] | None,
        messages: list[dict[str, Any]],
        tier: Tier,
        given: dict[str, Any],
    ) -> Completion[M]:
        answer = await self._ask(messages, tier, given)
        try:
            return _parsed(answer, structured.read(answer.text, wanted, check, finish_reason=answer.finish_reason))
        except structured.BadAnswerError as error:
            problem = str(error)
        answer = await self._ask([*messages, *structured.repair(answer.text, problem)], tier, given)
        try:
            return _parsed(answer, structured.read(answer.text, wanted, check, finish_reason=answer.finish_reason))
        except structured.BadAnswerError as error:
            raise StructuredOutputError(
                f"{answer.model} gave no usable {wanted.__name__}, also when asked to repair it: {error} "
                f"(at first: {problem}). Its last answer begins: {answer.text[:200]!r}"
            ) from error

    async def _ask(self, messages: list[dict[str, Any]], tier: Tier, given: dict[str, Any]) -> Completion:
        request = self._request(messages, tier, given)
        done = self._attempts.finished(request)
        if done is not None:
            return completion_of(done, await self._journal.resolve(done.response))
        body, answer = await self._send(request, self._attempts.models(tier), self._complete)
        return completion_of(body, answer.response)

    async def _send(
        self,
        request: Request,
        models: Sequence[str],
        send: Callable[[Request, Attempt], Awaitable[Answer]],
    ) -> tuple[LlmAttempted, Answer]:
        """Attempts, until one is answered."""
        tries: Tries = await self._attempts.begin(request, models)
        while True:
            attempt = await self._attempts.open(request, tries)
            try:
                answer = await send(request, attempt)
            except ProviderFailureError as failure:
                await attempt.failed(failure)
                await tries.after(failure)
            except asyncio.CancelledError:
                await attempt.cancelled()
                raise
            else:
                return await attempt.answered(answer), answer

    async def _complete(self, request: Request, attempt: Attempt) -> ProviderAnswer:
        return await self._service.provider.complete(
            attempt.model,
            request.content["messages"],
            attempt.params,
            attempt_id=attempt.id,
            agent_id=self._journal.call.agent_id,
            timeout_s=self._service.retry.timeout_s,
        )

    async def _embed(self, request: Request, attempt: Attempt) -> ProviderVectors:
        provider = self._service.provider
        if not isinstance(provider, EmbeddingProvider):
            raise ConfigurationError(f"the provider {type(provider).__name__} makes no embeddings")
        return await provider.embed(
            attempt.model,
            request.content["input"],
            attempt_id=attempt.id,
            agent_id=self._journal.call.agent_id,
            timeout_s=self._service.retry.timeout_s,
        )

    def _request(self, messages: list[dict[str, Any]], tier: Tier, given: dict[str, Any]) -> Request:
        if reserved := sorted(name for name in given if name in RESERVED):
            raise InvalidInputError(f"{', '.join(reserved)}: not for an agent to set; the settings and the tier say it")
        params = {name: value for name, value in given.items() if value is not None}
        return Request.of(self._journal.next_ordinal(), tier, {"messages": messages}, params)

    @staticmethod
    def _messages(prompt: str | Sequence[dict[str, Any]], system: str | None) -> list[dict[str, Any]]:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        for message in messages:
            role = message.get("role")
            if role in ("system", "developer"):
                raise InvalidInputError(f"pass the system prompt as system=…; messages may not have the role {role!r}")
            if role not in ROLES:
                raise InvalidInputError(f"a message has the role {role!r}: use one of {sorted(ROLES)}")
        return [{"role": "system", "content": system}, *messages] if system else messages


def _parsed(answer: Completion, value: M) -> Completion[M]:
    return replace(answer, parsed=value)  # type: ignore[arg-type, return-value]  # it changes the type parameter
