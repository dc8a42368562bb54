"""The HTTP server of the simulator, on aiohttp: it can cut a connection, which most servers will not let one do."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from headwater.simulator.answers import Answers, count_tokens, embedding, request_hash, usage
from headwater.simulator.bill import Bill
from headwater.simulator.config import FaultRule, SimulatorConfig
from headwater.simulator.faults import Fate, Faults

MAX_BODY_BYTES = 16 * 1024 * 1024
PAGE = 10_000


def create_simulator(config: SimulatorConfig) -> web.Application:
    """The application; run it with `serve`, or mount it in a test's own aiohttp runner."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    simulator = _Simulator(config)
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


def serve(config: SimulatorConfig, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. Calls `ready` with the base URL once the port is bound (0: any free one)."""
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
        self.statuses: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        self.max_in_flight: dict[str, int] = {}
        self.sequence = len(self.bill.entries)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await _json_body(request)
        problem = _chat_problem(body)
        if problem is not None:
            return _error(400, problem, "invalid_request_error")
        digest = request_hash(self.config.seed, body)
        return await self._simulate(
            request, body["model"], digest, lambda fate: self._complete(request, body, digest, fate)
        )

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        body = await _json_body(request)
        texts = body.get("input") if isinstance(body, dict) else None
        texts = [texts] if isinstance(texts, str) else texts
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(t, str) for t in texts)
            or not body.get("model")
        ):
            return _error(400, "'model' and 'input' (a text or a list of texts) are needed", "invalid_request_error")
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
            self.statuses[fate.kind or "200"] += 1
            if fate.kind in ("429", "quota"):
                kind = "insufficient_quota" if fate.kind == "quota" else "rate_limit_exceeded"
                return _error(429, "the simulator says: too much", kind, {"Retry-After": str(fate.rule.retry_after_s)})
            if fate.kind in ("500", "503"):
                return _error(int(fate.kind), "the simulator says: not now", "server_error")
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
        if fate.kind == "drop_billed":
            return _drop(request)
        if body.get("stream"):
            return await _stream(request, head, answer, used, body, fate)
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        data = orjson.dumps(head | {"object": "chat.completion", "choices": [choice], "usage": used})
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
        if fate.kind == "drop_billed":
            return _drop(request)
        size = int(body.get("dimensions") or 256)
        vectors = [
            {"object": "embedding", "index": i, "embedding": embedding(text, size)} for i, text in enumerate(texts)
        ]
        short = {"prompt_tokens": tokens, "total_tokens": tokens}
        data = orjson.dumps({"object": "list", "data": vectors, "model": body["model"], "usage": short})
        return await _send(request, data, fate)

    def _charge(self, request: web.Request, model: str, used: dict[str, Any], prefix: str) -> str:
        self.sequence += 1
        response_id = f"{prefix}-{self.config.seed}-{self.sequence:08d}"
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
        return _reply({"outcomes": self.statuses, "in_flight": running, "max_in_flight": self.max_in_flight})

    async def get_bill(self, request: web.Request) -> web.Response:
        try:
            after = max(0, int(request.query.get("after", 0)))
            limit = min(PAGE, max(0, int(request.query.get("limit", PAGE))))
        except ValueError:
            return _error(400, "'after' and 'limit' are whole numbers", "invalid_request_error")
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
            return _error(400, f"faults: {error}", "invalid_request_error")
        return await self.get_faults(request)


async def _json_body(request: web.Request) -> Any:
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        return None


def _chat_problem(body: Any) -> str | None:
    if not isinstance(body, dict):
        return "the body is not a JSON object"
    if not isinstance(body.get("model"), str) or not body["model"]:
        return "'model' is missing"
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return "'messages' is not a list of messages"
    return None


def _reply(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def _error(status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"error": {"message": message, "type": kind, "code": kind, "param": None}}
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)


def _drop(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    # Never sent: aiohttp sees that the connection is gone.
    return web.Response()


async def _send(request: web.Request, data: bytes, fate: Fate) -> web.StreamResponse:
    if fate.kind == "malformed":
        data = data[: len(data) // 2]
    if not fate.rule.slow_body_ms:
        return web.Response(body=data, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(data)
    await response.prepare(request)
    parts = 10
    size = -(-len(data) // parts)
    for i in range(parts):
        await asyncio.sleep(fate.rule.slow_body_ms / parts / 1000)
        await response.write(data[i * size : (i + 1) * size])
    return response


async def _stream(
    request: web.Request, head: dict[str, Any], answer: str, used: dict[str, Any], body: dict[str, Any], fate: Fate
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    words = answer.split(" ")
    pieces = [word if i == 0 else f" {word}" for i, word in enumerate(words)]
    if fate.kind == "malformed":
        pieces = pieces[: len(pieces) // 2]

    async def event(delta: dict[str, Any], finish: str | None, **more: Any) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = head | {"object": "chat.completion.chunk", "choices": [choice]} | more
        await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")

    await event({"role": "assistant", "content": ""}, None)
    for piece in pieces:
        if fate.rule.slow_body_ms:
            await asyncio.sleep(fate.rule.slow_body_ms / len(pieces) / 1000)
        await event({"content": piece}, None)
    if fate.kind == "malformed":
        return _drop(request)
    await event({}, "stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        await event({}, None, choices=[], usage=used)
    await response.write(b"data: [DONE]\n\n")
    return response
