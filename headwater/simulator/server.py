"""The HTTP server of the simulator, on aiohttp: it can cut a connection, which most servers will not let one do."""

import array
import asyncio
import base64
import secrets
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import orjson
from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from headwater.simulator.answers import Answers, count_tokens, embedding, request_hash, usage
from headwater.simulator.bill import Bill
from headwater.simulator.config import FaultRule, SimulatorConfig
from headwater.simulator.faults import Fate, Faults
from headwater.simulator.wire import BadRequestError, ChatBody, EmbeddingsBody, bad_request, error_response, parse

MAX_BODY_BYTES = 16 * 1024 * 1024
PAGE = 10_000
SLOW_PARTS = 10
DIMENSIONS = 256
BILL = web.AppKey("bill", Bill)
"""Where an application that was mounted by hand keeps its bill."""


def create_simulator(config: SimulatorConfig) -> web.Application:
    """The application; run it with `serve`, or mount it in a test's own aiohttp runner.

    Raises `ConfigurationError` when the bill's file cannot be used.
    """
    simulator = _Simulator(config)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[simulator.refuse])
    app[BILL] = simulator.bill
    app.on_cleanup.append(simulator.close)
    app.router.add_post("/v1/chat/completions", simulator.chat)
    app.router.add_post("/v1/embeddings", simulator.embeddings)
    app.router.add_get("/v1/models", simulator.models)
    app.router.add_get("/healthz", simulator.healthz)
    app.router.add_get("/bill", simulator.get_bill)
    app.router.add_delete("/bill", simulator.delete_bill)
    app.router.add_get("/prices", simulator.prices)
    app.router.add_get("/stats", simulator.stats)
    app.router.add_get("/faults", simulator.get_faults)
    app.router.add_put("/faults", simulator.put_faults)
    return app


def serve(config: SimulatorConfig, *, host: str = "127.0.0.1", port: int = 0, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, in the main thread. Calls `ready` with the base URL once the port is bound.

    Port 0 is any free one. Raises `ConfigurationError` for a bill's file and OSError for a port that cannot be used.
    """
    asyncio.run(_serve(config, host, port, ready))


async def _serve(config: SimulatorConfig, host: str, port: int, ready: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(create_simulator(config), access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    ready(f"http://{host}:{runner.addresses[0][1]}")
    await stop.wait()
    await runner.cleanup()


class _Simulator:
    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self.answers = Answers(config.answers)
        self.faults = Faults(config.faults, config.seed)
        self.bill = Bill(config.prices, config.bill_path)
        self.outcomes: Counter[str] = Counter()
        self.by_model: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.in_flight: Counter[str] = Counter()
        self.max_in_flight: dict[str, int] = {}
        # A simulator that was restarted must not give out a response id twice.
        self.run = secrets.token_hex(4)
        self.sequence = 0

    async def close(self, _: web.Application) -> None:
        self.bill.close()

    @web.middleware
    async def refuse(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Bad requests, unknown paths and bodies that are too large, in OpenAI's format."""
        try:
            return await handler(request)
        except BadRequestError as error:
            self.outcomes["400"] += 1
            return error_response(400, str(error), "invalid_request_error", field=error.field)
        except web.HTTPException as error:
            self.outcomes[str(error.status)] += 1
            text = f"{request.method} {request.path}: {error.reason}"
            return error_response(error.status, text, "invalid_request_error")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = parse(ChatBody, await request.read())
        digest = request_hash(self.config.seed, body)
        return await self._simulate(
            request, body["model"], digest, lambda fate: self._complete(request, body, digest, fate)
        )

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        body = parse(EmbeddingsBody, await request.read())
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        digest = request_hash(self.config.seed, body)
        return await self._simulate(
            request, body["model"], digest, lambda fate: self._embed(request, body, texts, fate)
        )

    async def _simulate(
        self, request: web.Request, model: str, digest: bytes, complete: Callable[[Fate], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Latency, refusals and drops; what survives is completed, and billed."""
        names = [f"model:{model}", f"agent:{request.headers.get('x-headwater-agent', '-')}"]
        for name in names:
            self.in_flight[name] += 1
            self.max_in_flight[name] = max(self.max_in_flight.get(name, 0), self.in_flight[name])
        try:
            fate = self.faults.fate(model, digest)
            if fate.wait_s:
                await asyncio.sleep(fate.wait_s)
            outcome = fate.kind or "200"
            self.outcomes[outcome] += 1
            self.by_model[model][outcome] += 1
            if fate.kind in ("429", "quota"):
                kind = "insufficient_quota" if fate.kind == "quota" else "rate_limit_exceeded"
                headers = {"Retry-After": _retry_after(fate.rule)}
                return error_response(429, "the simulator says: too much", kind, headers=headers)
            if fate.kind in ("500", "503"):
                return error_response(int(fate.kind), "the simulator says: not now", "server_error")
            if fate.kind == "drop":
                return _drop(request)
            return await complete(fate)
        except ConnectionResetError:
            # The client gave up. It may have been billed: that is what a provider does, too.
            return web.Response()
        finally:
            for name in names:
                self.in_flight[name] -= 1

    async def _complete(
        self, request: web.Request, body: dict[str, Any], digest: bytes, fate: Fate
    ) -> web.StreamResponse:
        answer = self.answers.text(body, digest)
        used = usage(body, answer, digest)
        response_id = self._charge(request, body["model"], used, "chatcmpl")
        head = {"id": response_id, "created": int(time.time()), "model": body["model"]}
        if body.get("stream"):
            return await _stream(request, head, answer, used, body, fate)
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        said = {"object": "chat.completion", "choices": [choice]} | ({} if fate.rule.omit_usage else {"usage": used})
        data = orjson.dumps(head | said)
        return await _send(request, data, fate)

    async def _embed(
        self, request: web.Request, body: dict[str, Any], texts: list[str], fate: Fate
    ) -> web.StreamResponse:
        tokens = sum(count_tokens(text) for text in texts)
        used = {
            "prompt_tokens": tokens,
            "completion_tokens": 0,
            "total_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        self._charge(request, body["model"], used, "emb")
        size = body.get("dimensions") or DIMENSIONS
        encode = _base64 if body.get("encoding_format") == "base64" else list
        vectors = [
            {"object": "embedding", "index": i, "embedding": encode(embedding(text, size))}
            for i, text in enumerate(texts)
        ]
        short = {"prompt_tokens": tokens, "total_tokens": tokens}
        said = {"object": "list", "data": vectors, "model": body["model"]}
        data = orjson.dumps(said | ({} if fate.rule.omit_usage else {"usage": short}))
        return await _send(request, data, fate)

    def _charge(self, request: web.Request, model: str, used: dict[str, Any], prefix: str) -> str:
        self.sequence += 1
        response_id = f"{prefix}-{self.run}-{self.sequence:08d}"
        attempt_id = request.headers.get("x-headwater-attempt")
        self.bill.add(response_id=response_id, attempt_id=attempt_id, model=model, usage=used, at=time.time())
        return response_id

    async def models(self, _: web.Request) -> web.Response:
        return _reply({"object": "list", "data": [{"id": m, "object": "model"} for m in self.config.prices]})

    async def healthz(self, _: web.Request) -> web.Response:
        return _reply({"status": "ok"})

    async def prices(self, _: web.Request) -> web.Response:
        return _reply(self.config.prices)

    async def stats(self, _: web.Request) -> web.Response:
        running = {name: count for name, count in self.in_flight.items() if count}
        return _reply(
            {
                "outcomes": self.outcomes,
                "by_model": self.by_model,
                "in_flight": running,
                "max_in_flight": self.max_in_flight,
            }
        )

    async def get_bill(self, request: web.Request) -> web.Response:
        if request.query.get("entries") == "0":
            return _reply(self.bill.summary())
        after, limit = _whole(request, "after", 0), min(PAGE, _whole(request, "limit", PAGE))
        return _reply(self.bill.summary() | {"entries": self.bill.entries[after : after + limit]})

    async def delete_bill(self, _: web.Request) -> web.Response:
        self.bill.reset()
        return _reply(self.bill.summary())

    async def get_faults(self, _: web.Request) -> web.Response:
        return _reply([rule.model_dump() for rule in self.faults.rules])

    async def put_faults(self, request: web.Request) -> web.Response:
        try:
            self.faults.set(TypeAdapter(list[FaultRule]).validate_json(await request.read()))
        except ValidationError as error:
            raise bad_request(error) from error
        return await self.get_faults(request)


def _whole(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadRequestError(f"{name}: {text!r} is not a whole number below 1,000,000,000", name)
    return int(text)


def _base64(vector: list[float]) -> str:
    packed = array.array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def _retry_after(rule: FaultRule) -> str:
    return (
        formatdate(time.time() + rule.retry_after_s, usegmt=True)
        if rule.retry_after_as_date
        else str(rule.retry_after_s)
    )


def _reply(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def _drop(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    # Never sent: aiohttp sees that the connection is gone.
    return web.Response()


async def _send(request: web.Request, data: bytes, fate: Fate) -> web.StreamResponse:
    if fate.kind == "malformed":
        data = data[: len(data) // 2]
    cut = fate.kind == "drop_billed"
    if not cut and not fate.rule.slow_body_ms:
        return web.Response(body=data, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(data)
    await response.prepare(request)
    size = -(-len(data) // SLOW_PARTS)
    for i in range(SLOW_PARTS // 2 if cut else SLOW_PARTS):
        await asyncio.sleep(fate.rule.slow_body_ms / SLOW_PARTS / 1000)
        await response.write(data[i * size : (i + 1) * size])
    return _drop(request) if cut else response


async def _stream(
    request: web.Request, head: dict[str, Any], answer: str, used: dict[str, Any], body: dict[str, Any], fate: Fate
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    words = answer.split(" ")
    pieces = [word if i == 0 else f" {word}" for i, word in enumerate(words)]
    breaks_at = len(pieces) // 2 if fate.kind in ("malformed", "drop_billed") else None

    async def event(delta: dict[str, Any], finish: str | None, **more: Any) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = head | {"object": "chat.completion.chunk", "choices": [choice]} | more
        await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")

    await event({"role": "assistant", "content": ""}, None)
    for i, piece in enumerate(pieces):
        if fate.rule.slow_body_ms:
            await asyncio.sleep(fate.rule.slow_body_ms / len(pieces) / 1000)
        if i == breaks_at:
            if fate.kind == "drop_billed":
                return _drop(request)
            await response.write(b'data: {"id": \n\n')
        await event({"content": piece}, None)
    await event({}, "stop")
    if (body.get("stream_options") or {}).get("include_usage") and not fate.rule.omit_usage:
        await event({}, None, choices=[], usage=used)
    await response.write(b"data: [DONE]\n\n")
    return response
