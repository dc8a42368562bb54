"""What the routes share: the connection of this process, and a request whose JSON is read strictly."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from headwater.api.problems import ApiProblem, problems
from headwater.client import Headwater
from headwater.settings import Settings


class _StrictRequest(Request):
    """Reads JSON by its standard: no NaN, no lone surrogates, no bottomless nesting."""

    async def json(self) -> Any:
        return orjson.loads(await self.body())


class StrictRoute(APIRoute):
    """A route whose body is read by `_StrictRequest`, and that knows all its query parameters: a misspelled filter
    must not silently be none."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps the handler's request."""
        handle = super().get_route_handler()
        known = sorted(_query_names(self.dependant))

        async def strict(request: Request) -> Response:
            if unknown := [name for name in request.query_params if name not in known]:
                there_are = f"there are {', '.join(known)}" if known else "there are none"
                where = {"where": f"query.{unknown[0][:80]}", "detail": "is not known here"}
                raise ApiProblem(
                    422, f"query parameter {unknown[0][:80]!r} is not known here: {there_are}", errors=[where]
                )
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


def _query_names(dependant: Dependant) -> set[str]:
    return {field.alias for field in dependant.query_params}.union(*map(_query_names, dependant.dependencies))


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
