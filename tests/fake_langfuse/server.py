"""The fake's HTTP server, on aiohttp: it can cut a connection."""

import asyncio
import base64
import gzip
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
from aiohttp import web
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from tests.fake_langfuse import queries
from tests.fake_langfuse.faults import Faults
from tests.fake_langfuse.store import Store, StoredSpan, decode_spans

HEADERS = {"x-langfuse-ingestion-version": "4", "x-langfuse-sdk-name": "python"}
"""What a sender must say so that the real server takes its spans in at once and decodes their metadata."""


class Server:
    """The handlers over one store."""

    def __init__(self, store: Store, public_key: str, secret_key: str) -> None:
        self._store = store
        self._public_key = public_key
        self._auth = "Basic " + base64.b64encode(f"{public_key}:{secret_key}".encode()).decode()
        self._faults = Faults()
        self._left: int | None = None
        self._requests = 0
        self._reads = 0

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=256 * 1024 * 1024, middlewares=[self._authenticate])
        app.router.add_post("/api/public/otel/v1/traces", self._traces)
        app.router.add_get("/api/public/v2/observations", self._observations)
        app.router.add_get("/api/public/v2/metrics", self._metrics)
        app.router.add_get("/control/spans", self._spans)
        app.router.add_get("/control/stats", self._stats)
        app.router.add_put("/control/faults", self._set_faults)
        return app

    @web.middleware
    async def _authenticate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path.startswith("/api/public/") and request.headers.get("Authorization") != self._auth:
            return web.json_response({"message": "Invalid credentials"}, status=401)
        return await handler(request)

    async def _traces(self, request: web.Request) -> web.StreamResponse:
        self._requests += 1
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        faults = self._next_faults()
        refused = self._refusal(request, body, faults)
        if refused is not None:
            return refused
        try:
            spans = decode_spans(body)
        except (DecodeError, ValueError) as error:
            return web.json_response({"message": str(error)}, status=400)
        if faults.poison is not None and any(_contains(span, faults.poison) for span in spans):
            return web.json_response({"message": f"a span contains {faults.poison!r}"}, status=400)
        if faults.drop == "before":
            return _drop(request)
        self._store.add(spans)
        if faults.delay_s:
            await asyncio.sleep(faults.delay_s)
        return _drop(request) if faults.drop == "after" else web.json_response({})

    def _next_faults(self) -> Faults:
        if self._left is None:
            return self._faults
        if self._left == 0:
            return self._faults.model_copy(update={"status": None, "drop": None, "delay_s": 0})
        self._left -= 1
        return self._faults

    def _refusal(self, request: web.Request, body: bytes, faults: Faults) -> web.Response | None:
        if faults.status is not None:
            headers = {} if faults.retry_after_s is None else {"Retry-After": f"{faults.retry_after_s:g}"}
            return web.json_response({"message": "a fault"}, status=faults.status, headers=headers)
        wanted = HEADERS | {"x-langfuse-public-key": self._public_key, "Content-Type": "application/x-protobuf"}
        wrong = [name for name, value in wanted.items() if request.headers.get(name) != value]
        if wrong or not request.headers.get("x-langfuse-sdk-version"):
            return web.json_response({"message": f"missing or wrong headers: {wrong}"}, status=400)
        if faults.max_bytes is not None and len(body) > faults.max_bytes:
            return web.json_response({"message": f"{len(body)} bytes are too many"}, status=413)
        return None

    async def _observations(self, request: web.Request) -> web.Response:
        return self._read(lambda spans: queries.observations(spans, request.query))

    async def _metrics(self, request: web.Request) -> web.Response:
        return self._read(lambda spans: queries.metrics(spans, request.query["query"]))

    def _read(self, answer: Callable[[list[StoredSpan]], object]) -> web.Response:
        self._reads += 1
        if self._faults.reads_status is not None:
            return web.json_response({"message": "a fault"}, status=self._faults.reads_status)
        try:
            return web.json_response(answer(self._store.visible(self._faults.visible_after_s)))
        except (queries.QueryError, KeyError, ValueError) as error:
            return web.json_response({"message": str(error)}, status=400)

    async def _spans(self, _: web.Request) -> web.Response:
        body = orjson.dumps([span.model_dump(mode="json") for span in self._store.spans])
        return web.Response(body=body, content_type="application/json")

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response({"requests": self._requests, "reads": self._reads, "spans": len(self._store.spans)})

    async def _set_faults(self, request: web.Request) -> web.Response:
        try:
            self._faults = Faults.model_validate_json(await request.read())
        except ValidationError as error:
            return web.json_response({"message": str(error)}, status=400)
        self._left = self._faults.times
        return web.json_response({})


async def serve(path: Path, port: int, public_key: str, secret_key: str, ready: Callable[[str], None]) -> None:
    """Serve on loopback until SIGTERM. Calls `ready` with the URL once the port is bound."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    store = Store(path)
    app = Server(store, public_key, secret_key).application()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    ready(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await stop.wait()
    await runner.cleanup()
    store.close()


def _contains(span: StoredSpan, text: str) -> bool:
    return text in span.name or any(text in str(value) for value in span.attributes.values())


def _drop(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
