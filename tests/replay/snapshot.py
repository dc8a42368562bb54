"""All of Redis as plain JSON, key by key: an upgrade starts from what an older version left there."""

from pathlib import Path
from typing import Any

import orjson

from streams.functions import RedisClient

Row = dict[str, Any]
"""{"key", "type", "value"}"""


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {_text(k): _text(v) for k, v in value.items()}
    return [_text(item) for item in value] if isinstance(value, list | tuple) else value


async def snapshot(redis: RedisClient) -> list[Row]:
    """Every key with its value. Expiry times are left out."""
    client: Any = redis
    rows: list[Row] = []
    for key in sorted(await client.keys()):
        kind = _text(await client.type(key))
        match kind:
            case "string":
                value = await client.get(key)
            case "hash":
                value = await client.hgetall(key)
            case "list":
                value = await client.lrange(key, 0, -1)
            case "zset":
                value = await client.zrange(key, 0, -1, withscores=True)
            case "stream":
                value = await client.xrange(key)
            case _:
                raise AssertionError(f"{key!r} is a {kind}, which no key of a log is")
        rows.append({"key": _text(key), "type": kind, "value": _text(value)})
    return rows


async def restore(redis: RedisClient, rows: list[Row]) -> None:
    """The keys of a snapshot, into an empty Redis."""
    client: Any = redis
    for row in rows:
        key, value = row["key"], row["value"]
        match row["type"]:
            case "string":
                await client.set(key, value)
            case "hash":
                await client.hset(key, mapping=value)
            case "list":
                await client.rpush(key, *value)
            case "zset":
                await client.zadd(key, dict(value))
            case "stream":
                for position, fields in value:
                    await client.xadd(key, fields, id=position)


def write(path: Path, rows: list[Row]) -> None:
    """One row a line."""
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def read(path: Path) -> list[Row]:
    """The rows of a file."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def with_old_agent_completed(rows: list[Row]) -> list[Row]:
    """The rows as they stood before version 2 of `agent.completed`: its duration was a float of seconds."""
    for row in rows:
        if row["type"] != "stream":
            continue
        for _, fields in row["value"]:
            if fields["type"] == "agent.completed":
                body = orjson.loads(fields["body"])
                body["seconds"] = body.pop("duration_us") / 1_000_000
                fields |= {"v": "1", "body": orjson.dumps(body).decode()}
    return rows
