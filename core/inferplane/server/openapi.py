"""The OpenAPI description of the server's own endpoints, made from their schemas."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

import inferplane
from inferplane.server.body import Schema
from inferplane.server.encode import json_response
from inferplane.server.endpoint import Access, Endpoint
from inferplane.server.errors import ANTHROPIC, OLLAMA, OPENAI
from inferplane.server.service import Service

REFERENCE = "#/components/schemas/{model}"
STATUSES = {
    "400": "the request is refused; `param` names the field",
    "401": "the key is missing or wrong",
    "403": "only for the operator",
    "404": "there is no such model or response",
    "405": "not with this method",
    "413": "the body is too large",
    "415": "the body is not JSON",
    "429": "too many requests wait",
    "431": "the headers are too large",
    "499": "the client left",
    "500": "the server failed",
    "503": "the engine is loading, or dead",
}
NULLABLE = {"anyOf": [{"type": "string"}, {"type": "null"}]}
FOUND = {
    "message": {"type": "string"},
    "type": {"type": "string"},
    "param": NULLABLE,
    "code": NULLABLE,
}
ERRORS: dict[str, dict[str, Any]] = {
    OPENAI: {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {"type": "object", "required": [*FOUND], "properties": FOUND},
        },
    },
    ANTHROPIC: {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {"type": "object", "required": ["type", "message"], "properties": FOUND},
        },
    },
    OLLAMA: {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}, "param": NULLABLE},
    },
}


def document(endpoints: Iterable[Endpoint], models: Sequence[str]) -> dict[str, Any]:
    """OpenAPI 3.1, for a server whose model has these names."""
    schemas: dict[str, Any] = {f"{name}_error": schema for name, schema in ERRORS.items()}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = compile_path(endpoint.path)[1]
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, schemas)
    for schema in schemas.values():
        model = schema.get("properties", {}).get("model")
        if model is not None:
            options = [{"enum": [*models, "default"]}, {"type": "null"}]
            model["anyOf"] = options if model.pop("anyOf", None) else options[:1]
    return {
        "openapi": "3.1.0",
        "info": {"title": "inferplane", "version": inferplane.__version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    error = {"schema": {"$ref": REFERENCE.format(model=f"{endpoint.protocol}_error")}}
    answers: dict[str, Any] = {"200": {"description": "done"}}
    for status, text in STATUSES.items():
        answers[status] = {"description": text, "content": {"application/json": error}}
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()} {path}",
        "responses": answers,
        "security": [] if endpoint.access is Access.OPEN else [{"key": []}],
    }
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters = [_parameter(name, "path", {"type": "string"}) for name in names]
    parameters += [_parameter(name, "query", kind) for name, kind in endpoint.query.items()]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        schema = {"$ref": reference(endpoint.body, schemas)}
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameter(name: str, where: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


def reference(schema: type[Schema], schemas: dict[str, Any]) -> str:
    """A reference to the schema, which is put among `schemas` with all that it needs."""
    name = f"{schema.__module__.split('.')[-2]}_{schema.__name__}"
    if name not in schemas:
        found = schema.model_json_schema(ref_template=REFERENCE)
        schemas |= found.pop("$defs", {})
        for field, nested in schema.nested.items():
            one = {"$ref": reference(nested, schemas)}
            many = {"type": "array", "items": one}
            found["properties"][field] = {"anyOf": [one, many, {"type": "null"}]}
        schemas[name] = found
    return REFERENCE.format(model=name)


def fields(schema: type[Schema]) -> Iterator[tuple[str, str, str]]:
    """(name, type, what the server does with it) of each field, for the documentation."""
    described = schema.model_json_schema(ref_template="{model}")
    required = described.get("required", ())
    for name, value in described["properties"].items():
        if name in schema.refused:
            text = "refused: `unsupported_parameter`"
        elif name in schema.no_effect:
            text = "no effect"
        else:
            text = "required" if name in required else "supported"
        yield name, _kind(value), text
        for inner, kind, what in _inner(schema, name, described.get("$defs", {}), value):
            yield f"{name}.{inner}", kind, what


def _inner(
    schema: type[Schema], name: str, known: dict[str, Any], value: dict[str, Any]
) -> Iterator[tuple[str, str, str]]:
    if name in schema.nested:
        yield from fields(schema.nested[name])
        return
    refused, no_effect = (
        {field.partition(".")[2] for field in names if field.startswith(f"{name}.")}
        for names in (schema.refused, schema.no_effect)
    )
    for option in value.get("anyOf", [value]):
        for inner, described in known.get(option.get("$ref"), {}).get("properties", {}).items():
            text = "no effect" if inner in no_effect else "supported"
            if inner in refused:
                text = "refused: `unsupported_parameter`"
            yield inner, _kind(described), text


def _kind(value: dict[str, Any]) -> str:
    """A type in a few words."""
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{item}`" for item in value["enum"])
    options = [_kind(option) for option in value.get("anyOf", ())]
    if options:
        return " or ".join(dict.fromkeys(option for option in options if option != "null"))
    if "$ref" in value:
        return "object"
    kind = str(value.get("type", "any"))
    return f"list of {_kind(value['items'])}" if kind == "array" and "items" in value else kind


async def openapi(service: Service, request: Request) -> Response:
    return json_response(document(request.app.state.endpoints, service.names))
