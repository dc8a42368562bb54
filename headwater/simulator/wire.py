"""What a request has to look like, and errors in OpenAI's format."""

from typing import Annotated, Any, Literal

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_DIMENSIONS = 4096
Model = Annotated[str, Field(min_length=1)]


class _Body(BaseModel):
    # Fields that are not named here are a provider's business, and part of the request's hash.
    model_config = ConfigDict(strict=True)


class _Message(_Body):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _StreamOptions(_Body):
    include_usage: bool | None = None


class _ResponseFormat(_Body):
    type: str


class ChatBody(_Body):
    """The fields of a chat completion that matter here."""

    model: Model
    messages: Annotated[list[_Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _ResponseFormat | None = None


class EmbeddingsBody(_Body):
    """The fields of an embeddings request. Token ids as input are not supported."""

    model: Model
    input: str | Annotated[list[str], Field(min_length=1)]
    dimensions: Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


class BadRequestError(Exception):
    """The body of a request is wrong; `field` says where, None for the whole body."""

    def __init__(self, message: str, field: str | None) -> None:
        super().__init__(message)
        self.field = field


def parse(kind: type[BaseModel], data: bytes) -> dict[str, Any]:
    """The body as it was sent, once `kind` accepts it. Raises `BadRequestError` naming the field."""
    try:
        body = orjson.loads(data)
        # From JSON, not from `body`: so that messages speak of objects, not of classes.
        kind.model_validate_json(data)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not JSON: {error}", None) from error
    except ValidationError as error:
        raise bad_request(error) from error
    value: dict[str, Any] = body
    return value


def bad_request(error: ValidationError) -> BadRequestError:
    """The first thing that is wrong, with its place."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or None
    return BadRequestError(f"{field or 'the body'}: {first['msg']}", field)


def error_response(
    status: int, message: str, kind: str, *, field: str | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    """An error as OpenAI sends it."""
    body = {"error": {"message": message, "type": kind, "code": kind, "param": field}}
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)
