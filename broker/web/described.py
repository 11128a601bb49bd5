"""What /openapi.json says of requests that are refused: of all routes the same, in one form."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

_PROBLEM: Final = {
    "title": "Problem",
    "description": "Why a request was refused, in one line.",
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "string"}},
}
_REFUSALS: Final = {
    400: "The body cannot be read.",
    401: "No token, or none that is valid.",
    403: "The token has not the scope that it takes; or a request from elsewhere, where no tokens are needed.",
    404: "There is no such thing.",
    409: "It contradicts what is there; detail says how.",
    413: "More bytes than are read (web.max_upload_mib for files).",
    414: "The address is too long.",
    422: "The request is wrong; detail says where and why.",
    429: "Too many requests: again after Retry-After seconds.",
    500: "A fault of the server; detail has the number under which its log has it.",
    503: "A part of the service does not answer, or is busy: again after Retry-After seconds.",
}
_BODY, _ADDRESSED = 400, 404
_OF_SOME: Final = frozenset({404, 409})
"""What a route says of itself, by ``responses``; 404 any whose path names something, too."""
ABSENT: Final[dict[int | str, dict[str, Any]]] = {404: {}}
"""``responses`` of a route that names something beside its path."""
_CAN_BE_RETRIED: Final = frozenset({429, 503})


def describe(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, made once, with the refusals of each route."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    schema = FastAPI.openapi(app)
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    components["Problem"] = _PROBLEM
    for path, methods in schema["paths"].items():
        for route in methods.values():
            responses = route["responses"]
            for status, description in _REFUSALS.items():
                told = str(status) in responses or (status == _ADDRESSED and "{" in path)
                if (status in _OF_SOME and not told) or (status == _BODY and "requestBody" not in route):
                    continue
                content = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
                # Over FastAPI's own 422, which has another form than ours.
                responses[str(status)] = {"description": description, "content": content}
                if status in _CAN_BE_RETRIED:
                    header = {"description": "Seconds.", "schema": {"type": "integer"}}
                    responses[str(status)]["headers"] = {"Retry-After": header}
    for unused in ("HTTPValidationError", "ValidationError"):
        components.pop(unused, None)
    return schema
