"""The AsyncAPI description of the log's readers, and a page that shows it without scripts from elsewhere."""

import html
from typing import Any

import orjson
from faststream.specification.asyncapi import AsyncAPI

from handlers.team import Team
from headwater.runtime import add_decider, add_projector, add_runner, make_broker, make_llm
from headwater.settings import Settings
from projections.runner import Runner
from schemas.export import event_schemas
from streams.connection import Streams

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1b2733;background:#fff}
code,pre{font:13px/1.45 ui-monospace,monospace;background:#f2f5f8;border-radius:4px}code{padding:.1em .3em}
pre{padding:.8rem;overflow:auto}section{border-top:1px solid #dde3ea;padding:.5rem 0}h2{margin:.6rem 0 .2rem}
summary{cursor:pointer;padding:.2rem 0}.muted{color:#5b6b7b}
"""


def asyncapi_document(settings: Settings, streams: Streams, runner: Runner) -> dict[str, Any]:
    """The AsyncAPI 3.0 document of every subscriber, with the events as schemas."""
    broker = make_broker("redis://localhost", streams, described=True)
    team = Team()
    add_decider(broker, streams, team, settings)
    add_runner(broker, streams, team, make_llm(settings), settings, "worker")
    add_projector(broker, streams, runner, settings)
    specification = AsyncAPI(broker, title="Headwater", description="Readers of the tenants' logs.")
    document: dict[str, Any] = specification.to_specification().to_jsonable()
    document["components"]["schemas"] |= {f"event:{name}": schema for name, schema in event_schemas().items()}
    return document


def asyncapi_page(document: dict[str, Any]) -> str:
    """The document as a plain HTML page."""
    channels = "".join(
        f"<section><h2>{html.escape(name)}</h2><p>{html.escape(channel.get('description') or '')}</p>"
        f"<p class=muted>reads <code>{html.escape(channel['address'])}</code></p></section>"
        for name, channel in document["channels"].items()
    )
    schemas = "".join(
        f"<details><summary><code>{html.escape(name)}</code> "
        f"<span class=muted>{html.escape((schema.get('description') or '').split(chr(10))[0])}</span></summary>"
        f"<pre>{html.escape(orjson.dumps(schema, option=orjson.OPT_INDENT_2).decode())}</pre></details>"
        for name, schema in sorted(document["components"]["schemas"].items())
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Headwater: AsyncAPI</title><style>{_STYLE}</style>"
        f"<h1>Headwater: the log's readers</h1><p>AsyncAPI {html.escape(document['asyncapi'])}, as JSON: "
        f"<a href=/asyncapi.json>/asyncapi.json</a></p>{channels}<section><h2>Schemas</h2>{schemas}</section></html>"
    )
