"""Every error over HTTP is a problem document (RFC 9457), whoever raises it: we, FastAPI's validation or the router."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from schemas.complaints import complaint
from schemas.errors import (
    HeadwaterError,
    IdempotencyConflictError,
    InvalidInputError,
    NotFoundError,
    TenantMismatchError,
    UnavailableError,
)

logger = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
_STATUS: tuple[tuple[type[HeadwaterError], int], ...] = (
    (InvalidInputError, 422),
    (TenantMismatchError, 403),
    (NotFoundError, 404),
    (IdempotencyConflictError, 409),
    (UnavailableError, 503),
)


class ProblemField(BaseModel):
    """One thing that is wrong with a request."""

    where: str = Field(description="Where it stands.", examples=["body.session"])
    detail: str = Field(description="What is wrong with it.", examples=["is missing"])


class Problem(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="What kind of problem it is.", examples=["urn:headwater:problem:not-found"])
    title: str = Field(description="The same for people.", examples=["Not Found"])
    status: int = Field(description="The HTTP status.", examples=[404], ge=400, le=599)
    detail: str = Field(description="What is wrong here, and what to do.", examples=["tenant 'acme' has no task 'x'"])
    errors: list[ProblemField] = Field(default=[], description="For a request that is not valid: each thing wrong.")


class ApiProblem(Exception):  # noqa: N818  # it is the answer, not a fault of ours
    """Raised by the API's own code to answer with a problem."""

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, dict(headers or {}), more

    def response(self) -> JSONResponse:
        """The problem document."""
        return problem_response(self.status, self.detail, headers=self.headers, **self.more)


def problem_response(
    status: int, detail: str, *, kind: str | None = None, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """A problem document as a response."""
    title = HTTPStatus(status).phrase
    body = {
        "type": f"urn:headwater:problem:{kind or title.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": _printable(detail),
        **more,
    }
    headers = dict(headers or {})
    if status == 503:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    return JSONResponse(body, status, media_type=MEDIA_TYPE, headers=headers)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: the problems that it may answer with, beside those of every route under /v1."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""
    app.add_exception_handler(ApiProblem, _api_problem)
    app.add_exception_handler(HeadwaterError, _headwater_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _defect)


async def _api_problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiProblem)
    return error.response()


async def _headwater_error(request: Request, error: Exception) -> JSONResponse:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status == 500:
        logger.error("request_failed", path=request.url.path, error=str(error), exc_info=error)
    kind = "idempotency-conflict" if isinstance(error, IdempotencyConflictError) else None
    return problem_response(status, str(error), kind=kind)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(one["type"] == "json_invalid" for one in found):
        return problem_response(400, f"the body is not JSON: {found[0].get('ctx', {}).get('error', 'it is cut off')}")
    # Not the input itself: it can be large, secret, or impossible to write as JSON.
    fields = [
        {"where": _printable(".".join(map(str, one["loc"]))), "detail": _printable(complaint(one))}
        for one in found[:20]
    ]
    first = fields[0]
    return problem_response(422, f"{first['where']}: {first['detail']}", errors=fields)


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == 404 and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"there is nothing at {request.url.path}: /docs lists what there is"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        detail = f"{request.method} is not possible here: use {allowed}"
    return problem_response(error.status_code, detail, headers=error.headers)


async def _defect(request: Request, error: Exception) -> JSONResponse:
    logger.error("request_failed", path=request.url.path, exc_info=error)
    return problem_response(500, "a defect in Headwater: its log has the details")


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
