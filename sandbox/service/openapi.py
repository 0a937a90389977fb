"""The OpenAPI document of the service, made from its routes and from `sandbox.wire`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from sandbox import __version__
from sandbox.service.routes.queries import QUERIES, TEXT
from sandbox.wire import events
from sandbox.wire.answers import GoingOn
from sandbox.wire.errors import ErrorDocument
from sandbox.wire.given import always_there, kinds
from sandbox.wire.routes import STREAMS, WIRE, Route

SCHEMAS = "#/components/schemas/{name}"
# What is not parsed here, and what it must be all the same.
UNPARSED: dict[str, dict[str, Any]] = {
    "code": TEXT,
    "payload": {"description": "Any JSON; it reaches the program byte for byte."},
    "message": {"type": "object", "description": "The whole message of the flow."},
    "files": {
        "type": "object",
        "additionalProperties": TEXT,
        "description": "Plain names, and their contents as base64.",
    },
}
ERRORS = {
    "400": "The request is malformed.", "403": "The caller or the policy may not.", "404": "No such thing.",
    "405": "No such method here.", "413": "The body is too large.", "422": "A build failed.",
    "429": "Too much at once; Retry-After says when to come back.", "500": "A defect of the service.",
    "502": "The image is not available.", "503": "The engine or a control is not available.",
}  # fmt: skip # a table


def openapi(routes: Iterable[tuple[str, str, object]]) -> dict[str, Any]:
    """Return the document (OpenAPI 3.1) of routes: method, path, and the handler, whose docstring describes it."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler in routes:
        paths.setdefault(path, {})[method.lower()] = operation(method, path, str(handler.__doc__))
    told = {
        "summary": "A run that was started for later, with `notify`, has ended.",
        "requestBody": {"content": {"application/json": {"schema": ref(events.Notification.__name__)}}},
        "responses": {"2XX": {"description": "It was taken; any other answer is tried again."}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "podman-sandbox-runner",
            "version": __version__,
            "summary": "Runs untrusted Python in sandboxes.",
        },
        "paths": paths,
        "webhooks": {"ended": {"post": told}},
        "components": {"schemas": schemas()},
    }


def schemas() -> dict[str, Any]:
    """Return the schema of everything that goes over the wire, by its name."""
    bodies = [route.body for route in WIRE.values() if route.body]
    given = [*kinds(), *STREAMS]
    made, found = msgspec.json.schema_components([*bodies, *given], ref_template=SCHEMAS)
    for body in bodies:
        properties = found[body.__name__]["properties"]
        properties |= {name: schema for name, schema in UNPARSED.items() if name in properties}
    for kind in kinds():
        found[kind.__name__]["required"] = always_there(kind)
    for schema in found.values():
        if "description" in schema:  # of a docstring, where its lines end is chance
            schema["description"] = "\n\n".join(" ".join(part.split()) for part in schema["description"].split("\n\n"))
    return {**found, **dict(zip(STREAMS.values(), made[-len(STREAMS) :], strict=True))}


def ref(name: str) -> dict[str, Any]:
    """Return a reference to a schema."""
    return {"$ref": SCHEMAS.format(name=name)}


def as_json(kind: type) -> dict[str, Any]:
    """Return the content of an answer of this kind."""
    return {"application/json": {"schema": ref(kind.__name__)}}


def operation(method: str, path: str, text: str) -> dict[str, Any]:
    """Return one operation; the first sentence of the handler's docstring is its summary."""
    route = WIRE[method, path]
    queries = QUERIES.get((method, path), {})
    prefer = {"name": "Prefer", "in": "header", "schema": TEXT, "description": f"RFC 7240: {route.prefer}"}
    found: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path.removeprefix('/v1')}").strip("_"),
        "summary": text.strip().partition("\n")[0],
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": TEXT} for name in re.findall(r"{(\w+)}", path)),
            *({"name": name, "in": "query", "schema": schema} for name, schema in queries.items()),
            *([prefer] if route.prefer else []),
        ],
        "responses": {
            str(route.status): {"description": "Done.", "content": content(route)},
            **({"202": {"description": route.going_on, "content": as_json(GoingOn)}} if route.going_on else {}),
            **{
                status: {"description": meaning, "content": as_json(ErrorDocument)}
                for status, meaning in ERRORS.items()
            },
        },
    }
    if route.body:
        found["requestBody"] = {"required": route.body_needed, "content": as_json(route.body)}
    return found


def content(route: Route) -> dict[str, Any]:
    """Return what a route answers: one document, or a stream of events where the client accepts that."""
    if route.answer is None:
        return {route.content_type: {"schema": TEXT}}
    if route.events is None:
        return as_json(route.answer)
    line = {
        "type": "string",
        "description": f"Events, one JSON object each: {STREAMS[route.events]}.",
        "contentMediaType": "application/json",
        "contentSchema": ref(STREAMS[route.events]),
    }
    return {**as_json(route.answer), "application/x-ndjson": {"schema": line}, "text/event-stream": {"schema": line}}
