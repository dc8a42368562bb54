"""The AsyncAPI document can be made of every reader's messages: one without a schema would keep `up` from starting."""

from typing import Any, cast

from redis.asyncio import Redis

from headwater.asyncapi import asyncapi_document, asyncapi_page
from headwater.settings import Settings
from projections.runner import Runner
from schemas.bodies import BODIES
from streams.connection import Streams
from streams.functions import Functions
from streams.keys import Keys
from streams.log import Log


async def test_every_reader_and_event_is_described() -> None:
    redis, keys = Redis(), Keys(4)
    streams = Streams(redis, keys, Functions(redis, keys), Log(redis, keys))
    settings = Settings(llm_base_url="http://127.0.0.1:9/v1", llm_api_key="none")
    document = asyncapi_document(settings, streams, Runner(cast(Any, None), streams.log))
    assert document["asyncapi"].startswith("3.")
    assert len(document["channels"]) == 3
    schemas = document["components"]["schemas"]
    assert {f"event:{name}" for name in BODIES} <= schemas.keys()
    [taken] = [schema for name, schema in schemas.items() if "TakenCall" in name]
    assert taken["properties"].keys() == {"delivery", "call"}
    assert "event:task.submitted" in asyncapi_page(document)
    await redis.aclose()
