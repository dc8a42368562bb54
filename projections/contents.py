"""Reading contents in full: what stands in a row, or the blob that it refers to."""

from collections.abc import Sequence

import orjson

from projections.db import Connection
from schemas.content import Json, blob_of, unseal


async def read_contents(conn: Connection, tenant_id: str, values: Sequence[Json]) -> list[Json]:
    """The contents behind `values`, by one query at most. A reference to a blob that is missing stays as it is."""
    hashes = sorted({sha for value in values if (sha := blob_of(value))})
    found: dict[str, Json] = {}
    if hashes:
        rows = await conn.fetch(
            "SELECT sha256, data FROM blobs WHERE tenant = $1 AND sha256 = ANY($2)", tenant_id, hashes
        )
        found = {row["sha256"]: orjson.loads(row["data"]) for row in rows}
    return [unseal(found.get(blob_of(value) or "", value)) for value in values]
