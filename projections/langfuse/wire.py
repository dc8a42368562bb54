"""The way to a Langfuse server: spans out over OTLP, and a look at what it has.

The requests are made here and not by OpenTelemetry's exporter, because that one sends a request again on its own when
the connection breaks, which doubles spans, and does not say why a request failed, which decides what is to be done.
"""

import asyncio
import gzip
import importlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from projections.langfuse.spans import Attribute, Span
from schemas.errors import HeadwaterError

if TYPE_CHECKING:
    from langfuse.api import AsyncLangfuseAPI

TRACES = "/api/public/otel/v1/traces"
LOOK_UPS_AT_ONCE = 4
PAGE = 1000
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")

Outcome = Literal["delivered", "refused", "not_taken", "doubtful"]
"""delivered: the server has the spans. refused: it will never take them. not_taken: it has none of them, try later.
doubtful: nobody knows whether it has them; look before sending them again."""


class LookUpError(HeadwaterError):
    """Langfuse cannot say now what it has. Try again later."""


class LookUpUnsupportedError(LookUpError):
    """This Langfuse server has no interface to look spans up with (before 4, or not writing v4 data)."""


@dataclass(frozen=True, slots=True)
class SendResult:
    """What became of one request."""

    outcome: Outcome
    error: str = ""
    retry_after_s: float | None = None


class LangfuseServer:
    """One project on one Langfuse server."""

    def __init__(self, host: str, public_key: str, secret_key: str, *, timeout_s: float = 15.0) -> None:
        self._host = host.rstrip("/")
        self._public_key = public_key
        self._secret_key = secret_key
        self._version = version("langfuse")
        self._http = httpx.AsyncClient(timeout=timeout_s, auth=(public_key, secret_key))
        self._api: AsyncLangfuseAPI | None = None

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, spans: Sequence[Span]) -> SendResult:
        """Send spans in one request, once."""
        # In a thread: large prompts would hold up whatever else this process does.
        body = await asyncio.to_thread(self._packed, spans)
        headers = {
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
            "x-langfuse-ingestion-version": "4",
            "x-langfuse-sdk-name": "python",
            "x-langfuse-sdk-version": self._version,
            "x-langfuse-public-key": self._public_key,
        }
        try:
            response = await self._http.post(self._host + TRACES, content=body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
            return SendResult("not_taken", _named(error))
        except httpx.HTTPError as error:
            return SendResult("doubtful", _named(error))
        return _judge(response)

    async def look_up(self, trace_ids: Collection[str]) -> set[str]:
        """The ids of all spans that the server shows of these traces.

        Raises:
            LookUpUnsupportedError: the server has no such interface.
            LookUpError: it does not answer now.
        """
        api = await self._client()
        gate = asyncio.Semaphore(LOOK_UPS_AT_ONCE)

        async def one(trace_id: str) -> set[str]:
            async with gate:
                return await self._spans_of(api, trace_id)

        found = await asyncio.gather(*(one(trace_id) for trace_id in sorted(trace_ids)))
        return set().union(*found)

    async def _spans_of(self, api: "AsyncLangfuseAPI", trace_id: str) -> set[str]:
        from langfuse.api.core.api_error import ApiError

        found: set[str] = set()
        cursor: str | None = None
        try:
            while True:
                page = await api.observations.get_many(
                    trace_id=trace_id,
                    fields="core",
                    limit=PAGE,
                    cursor=cursor,
                    request_options={"max_retries": 0},
                )
                found |= {observation.id for observation in page.data}
                cursor = page.meta.cursor
                if cursor is None:
                    return found
        except ApiError as error:
            if error.status_code == httpx.codes.NOT_FOUND:
                raise LookUpUnsupportedError(f"{self._host} has no observations interface v2 (404)") from error
            raise LookUpError(f"{self._host} answered {error.status_code} to a look-up") from error
        except httpx.HTTPError as error:
            raise LookUpError(f"{self._host} cannot be asked: {_named(error)}") from error

    async def _client(self) -> "AsyncLangfuseAPI":
        if self._api is None:
            # The SDK takes a second to import, and is needed after a failure only.
            module: Any = await asyncio.to_thread(importlib.import_module, "langfuse.api")
            self._api = module.AsyncLangfuseAPI(
                base_url=self._host,
                username=self._public_key,
                password=self._secret_key,
                x_langfuse_sdk_name="python",
                x_langfuse_sdk_version=self._version,
                x_langfuse_public_key=self._public_key,
                httpx_client=self._http,
            )
        assert self._api is not None
        return self._api

    def _packed(self, spans: Sequence[Span]) -> bytes:
        request = encode(spans, public_key=self._public_key, sdk_version=self._version)
        return gzip.compress(request, compresslevel=3)


def encode(spans: Sequence[Span], *, public_key: str, sdk_version: str) -> bytes:
    """Spans as an OTLP request in protobuf."""
    scope = InstrumentationScope(
        # The server takes a user, a session and tags from spans of its own SDK's scope.
        name="langfuse-sdk",
        version=sdk_version,
        attributes=[_pair("public_key", public_key)],
    )
    request = ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(
                resource=Resource(attributes=[_pair("service.name", "headwater")]),
                scope_spans=[ScopeSpans(scope=scope, spans=[_wire_span(span) for span in spans])],
            )
        ]
    )
    data: bytes = request.SerializeToString()
    return data


def _judge(response: httpx.Response) -> SendResult:
    if response.is_success:
        return SendResult("delivered")
    error = f"HTTP {response.status_code}: {response.text[:300]}"
    match response.status_code:
        case 400 | 413 | 415 | 422:
            return SendResult("refused", error)
        case 401 | 403 | 404 | 405 | 407 | 408 | 421 | 425 | 429 | 503:
            return SendResult("not_taken", error, _seconds(response.headers.get("Retry-After")))
        case status if 300 <= status < 500:
            return SendResult("not_taken", error)
    return SendResult("doubtful", error)


def _seconds(text: str | None) -> float | None:
    # The other form, a date, is treated as if it were absent: the exporter has a backoff of its own.
    return float(text) if text is not None and text.isdecimal() else None


def _wire_span(span: Span) -> WireSpan:
    failed = span.attributes.get("langfuse.observation.level") == "ERROR"
    return WireSpan(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id or ""),
        name=span.name,
        kind=WireSpan.SPAN_KIND_INTERNAL,
        start_time_unix_nano=_nanoseconds(span.start),
        end_time_unix_nano=_nanoseconds(span.end),
        attributes=[_pair(key, value) for key, value in span.attributes.items()],
        status=Status(code=Status.STATUS_CODE_ERROR) if failed else None,
    )


def _pair(key: str, value: Attribute) -> KeyValue:
    if isinstance(value, str):
        return KeyValue(key=key, value=AnyValue(string_value=value))
    values = ArrayValue(values=[AnyValue(string_value=item) for item in value])
    return KeyValue(key=key, value=AnyValue(array_value=values))


def _nanoseconds(moment: datetime) -> int:
    # Within what the wire can hold: an event of the year 1 is odd, but no reason to stop.
    return min(max((moment - _EPOCH) // timedelta(microseconds=1) * 1000, 0), 2**63 - 1)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
