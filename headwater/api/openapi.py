"""The OpenAPI document: FastAPI's, with the problem document that every route answers errors with."""

from typing import Any

from fastapi import FastAPI

from headwater.api.problems import MEDIA_TYPE, Problem


def describe(app: FastAPI) -> None:
    """Make `app.openapi()` complete."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= problem.pop("$defs", {})
            schemas["Problem"] = problem
            # FastAPI's own error shapes, which are never sent here.
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            for path in document["paths"].values():
                for operation in path.values():
                    for status, response in operation.get("responses", {}).items():
                        if (
                            status >= "400"
                            and "application/json" in response.get("content", {})
                            and len(response["content"]) > 1
                        ):
                            response["content"] = {MEDIA_TYPE: response["content"][MEDIA_TYPE]}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the documented way to extend the document
