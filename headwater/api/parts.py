"""What the routes share: the connection of this process, and a request whose JSON is read strictly."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute

from headwater.api.problems import problems
from headwater.client import Headwater
from headwater.settings import Settings


class _StrictRequest(Request):
    """Reads JSON by its standard: no NaN, no lone surrogates, no bottomless nesting."""

    async def json(self) -> Any:
        return orjson.loads(await self.body())


class StrictRoute(APIRoute):
    """A route whose body is read by `_StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps the handler's request."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


def router(tag: str) -> APIRouter:
    """A router for one concern under /v1."""
    return APIRouter(
        prefix="/v1",
        tags=[tag],
        route_class=StrictRoute,
        responses=problems(401, 403, 408, 413, 422, 503),
    )


def _hw(request: Request) -> Headwater:
    hw: Headwater = request.app.state.hw
    return hw


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


Connection = Annotated[Headwater, Depends(_hw)]
Configured = Annotated[Settings, Depends(_settings)]
