"""What stands before every request: the key is checked, then the body is read up to a size and a time, then the
handler runs for a bounded time. In this order, so that a stranger cannot make us read or parse anything."""

import asyncio
import contextlib

import structlog
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headwater.api.problems import ApiProblem, problem_response
from projections.api_keys import authenticate
from projections.db import Pool
from schemas.errors import UnavailableError

logger = structlog.get_logger(__name__)

API_PREFIX = "/v1/"
STREAM_PATH = "/v1/events/stream"
BODY_TIMEOUT_S = 30.0
DRAIN_S = 2.0
"""How long the rest of a refused body is read and thrown away. A client that is cut off while it sends sees a broken
connection, not the reason."""
ANSWER_TIMEOUT_S = 30.0
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


class Guard:
    """ASGI middleware. Reads `app.state.pool`, which the lifespan sets."""

    def __init__(self, app: ASGIApp, *, state: FastAPI, max_request_bytes: int, max_wait_s: float) -> None:
        self._app = app
        self._owner = state
        self._max_request_bytes = max_request_bytes
        self._answer_s = ANSWER_TIMEOUT_S + max_wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, is_api=scope["path"].startswith(API_PREFIX))
        headers = Headers(scope=scope)
        try:
            try:
                if answer.is_api:
                    await self._authenticate(scope, headers)
                body = await self._read_body(headers, receive)
            except ApiProblem as problem:
                if problem.status != 408:
                    await self._drain(headers, receive)
                raise
            await self._handle(scope, _Replay(body, receive), answer)
        except ApiProblem as problem:
            if not answer.started:
                await problem.response()(scope, receive, answer)
        except UnavailableError as error:
            await problem_response(503, str(error))(scope, receive, answer)
        except _GoneError:
            return

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == STREAM_PATH:
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._answer_s):
                await self._app(scope, receive, send)
        except TimeoutError as error:
            logger.warning("request_timed_out", path=scope["path"])
            raise ApiProblem(503, f"no answer within {self._answer_s:g} s: try again later") from error

    async def _authenticate(self, scope: Scope, headers: Headers) -> None:
        """Put the key into the request's state."""
        pool: Pool = self._owner.state.pool
        scheme, _, text = headers.get("authorization", "").partition(" ")
        if not scheme:
            raise ApiProblem(
                401,
                "send an API key in the header 'Authorization: Bearer hw_…': 'headwater keys create' makes one",
                headers={"WWW-Authenticate": 'Bearer realm="headwater"'},
            )
        key = await authenticate(pool, text.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise ApiProblem(
                401,
                "this API key is not known, or was revoked: 'headwater keys list' shows which there are",
                headers={"WWW-Authenticate": 'Bearer realm="headwater", error="invalid_token"'},
            )
        scope.setdefault("state", {})["key"] = key

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes:
        announced = headers.get("content-length", "0")
        if announced.isascii() and announced.isdigit() and int(announced[:20]) > self._max_request_bytes:
            raise self._too_large()
        chunks, size = [], 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _GoneError
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > self._max_request_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError as error:
            text = f"the body did not arrive within {BODY_TIMEOUT_S:g} s"
            raise ApiProblem(408, text, headers={"Connection": "close"}) from error

    async def _drain(self, headers: Headers, receive: Receive) -> None:
        if "expect" in headers or not ("content-length" in headers or "transfer-encoding" in headers):
            # The client waits for a word before it sends anything, or has nothing to send.
            return
        left = self._max_request_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return

    def _too_large(self) -> ApiProblem:
        return ApiProblem(
            413,
            f"the body is over the limit of {self._max_request_bytes:,} bytes: store what is large elsewhere and pass "
            "a reference",
            # What is still on its way is not read.
            headers={"Connection": "close"},
        )


class _Answer:
    """Sends, remembers whether it began, and adds the headers of every answer under /v1."""

    def __init__(self, send: Send, *, is_api: bool) -> None:
        self._send = send
        self.is_api = is_api
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if self.is_api:
                message["headers"] = [*message.get("headers", []), *_HEADERS]
        await self._send(message)


class _GoneError(Exception):
    """The client left in the middle of its body."""


class _Replay:
    """Gives the body that was read as one message, then what comes after it: the client going away."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
