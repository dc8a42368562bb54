"""A Langfuse server for tests: it decodes and keeps OTLP spans, and answers the two read interfaces that we use.

    with FakeLangfuse(tmp_path / "langfuse.jsonl") as langfuse:
        settings = Settings(langfuse_public_key=PUBLIC_KEY, langfuse_secret_key=SECRET_KEY, langfuse_host=langfuse.url)
        …
        langfuse.spans()                      # every span that arrived, one that was sent twice twice
        langfuse.set_faults(status=500)       # what the next ingestion requests meet; see `Faults`
        langfuse.kill(); langfuse.start()     # gone and back, on the same port, with the spans it had

It answers what the SDK's client asks, so that `langfuse.api.AsyncLangfuseAPI(base_url=langfuse.url,
username=PUBLIC_KEY, password=SECRET_KEY)` works on it:

- `POST /api/public/otel/v1/traces`: protobuf, plain or gzip; keys and headers are checked.
- `GET /api/public/v2/observations` (`client.observations.get_many(trace_id=…, fields=…, limit=…, cursor=…)`), with the
  filters traceId, userId, sessionId, name, type and level.
- `GET /api/public/v2/metrics` (`client.metrics.metrics(query=…)`): view `observations`; measures count, inputTokens,
  outputTokens, totalTokens and totalCost; dimensions type, name, level, traceName, tags, environment, version and
  providedModelName (userId can be filtered by, not grouped by, as on the real server); filters by equality, "any of"
  and metadata; a time range; `timeDimension` by day; `row_limit`. Counts and tokens come as strings, costs as numbers.
"""

from tests.fake_langfuse.faults import Faults
from tests.fake_langfuse.process import PUBLIC_KEY, SECRET_KEY, FakeLangfuse
from tests.fake_langfuse.store import StoredSpan

__all__ = ["PUBLIC_KEY", "SECRET_KEY", "FakeLangfuse", "Faults", "StoredSpan"]
