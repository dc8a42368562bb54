"""Spans as the fake keeps them: decoded from protobuf, appended to a file before the request is answered."""

import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import BaseModel, ConfigDict

METADATA = "langfuse.observation.metadata."


class StoredSpan(BaseModel):
    """One observation, in the words of Langfuse's interface. Metadata is decoded, money exact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    trace_id: str
    parent_id: str | None
    type: str
    name: str
    start: datetime
    end: datetime
    start_ns: int
    end_ns: int
    level: str
    status_message: str | None
    user_id: str | None
    session_id: str | None
    trace_name: str | None
    tags: list[str]
    metadata: dict[str, Any]
    environment: str
    model: str | None
    model_parameters: Any
    completion_start: datetime | None
    usage: dict[str, int]
    cost: dict[str, Decimal]
    input: str | None
    output: str | None
    scope: str
    scope_attributes: dict[str, Any]
    attributes: dict[str, Any]
    received_at: float

    @property
    def total_cost(self) -> Decimal:
        """As the server counts it: without the key `total`, nothing."""
        return self.cost.get("total", Decimal(0))


class Store:
    """All spans that ever arrived, duplicates too."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes() if path.exists() else b""
        # A line that a killed process did not finish was never answered for.
        whole = data[: data.rfind(b"\n") + 1]
        self.spans = [StoredSpan.model_validate_json(line) for line in whole.splitlines()]
        self._file = path.open("ab", buffering=0)
        self._file.truncate(len(whole))

    def add(self, spans: list[StoredSpan]) -> None:
        """Keep the spans of a request: those that are in the file are there for good."""
        self._file.write(b"".join(span.model_dump_json().encode() + b"\n" for span in spans))
        self.spans += spans

    def visible(self, after_s: float) -> list[StoredSpan]:
        """What readers see."""
        return [span for span in self.spans if time.time() - span.received_at >= after_s]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def decode_spans(body: bytes) -> list[StoredSpan]:
    """The spans of an OTLP request. Raises ValueError (or protobuf's DecodeError) for what is none."""
    request = ExportTraceServiceRequest.FromString(body)
    found = []
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            attributes = {pair.key: _value(pair.value) for pair in scope.scope.attributes}
            found += [_span(span, scope.scope.name, attributes) for span in scope.spans]
    return found


def _span(span: Span, scope: str, scope_attributes: dict[str, Any]) -> StoredSpan:
    attributes = {pair.key: _value(pair.value) for pair in span.attributes}
    if len(span.trace_id) != 16 or len(span.span_id) != 8:
        raise ValueError("a span has no trace id of 16 bytes or no span id of 8")

    def of(key: str) -> Any:
        return attributes.get(f"langfuse.observation.{key}")

    usage = json.loads(of("usage_details") or "{}")
    return StoredSpan(
        id=span.span_id.hex(),
        trace_id=span.trace_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        type=str(of("type") or "span").upper(),
        name=span.name,
        start=datetime.fromtimestamp(span.start_time_unix_nano / 1e9, UTC),
        end=datetime.fromtimestamp(span.end_time_unix_nano / 1e9, UTC),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        level=of("level") or "DEFAULT",
        status_message=of("status_message"),
        user_id=attributes.get("user.id"),
        session_id=attributes.get("session.id"),
        trace_name=attributes.get("langfuse.trace.name"),
        tags=attributes.get("langfuse.trace.tags") or [],
        metadata={k.removeprefix(METADATA): json.loads(v) for k, v in attributes.items() if k.startswith(METADATA)},
        environment=attributes.get("langfuse.environment", "default"),
        model=of("model.name"),
        model_parameters=json.loads(of("model.parameters") or "null"),
        completion_start=json.loads(of("completion_start_time") or "null"),
        # The server adds the classes up where no total was sent.
        usage=usage if not usage or "total" in usage else usage | {"total": sum(usage.values())},
        cost=json.loads(of("cost_details") or "{}", parse_float=Decimal, parse_int=Decimal),
        input=of("input"),
        output=of("output"),
        scope=scope,
        scope_attributes=scope_attributes,
        attributes=attributes,
        received_at=time.time(),
    )


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)
