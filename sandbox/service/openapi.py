"""The OpenAPI document of the service, made from its routes and from the types of its bodies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from sandbox import __version__
from sandbox.models import ErrorBody, RunResult
from sandbox.service.intake.bodies import CheckBody, EnvironmentBody, PruneBody, RunBody
from sandbox.service.routes.queries import QUERIES, TEXT

BODIES: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("POST", "/v1/runs"): RunBody,
    ("POST", "/v1/environments"): EnvironmentBody,
    ("POST", "/v1/check"): CheckBody,
    ("POST", "/v1/maintenance/prune"): PruneBody,
}
PREFER = {("POST", "/v1/runs"): "respond-async, wait=SECONDS", ("GET", "/v1/runs/{id}/result"): "wait=SECONDS"}
GOES_ON = {
    (
        "POST",
        "/v1/runs",
    ): "With `Prefer: respond-async`: the run goes on; Location says where it is, and its result comes from there.",
    ("GET", "/v1/runs/{id}/result"): "The run goes on; Retry-After says when to ask again.",
}
EVENTS = {
    ("POST", "/v1/runs"): "Events, one JSON object each, with `event`: accepted (run_id), progress (step, text), stdout and stderr (text, base64), "
    "log (level, text, elapsed_s), file (name, size_bytes, content_base64); at the end result (see Result; without stdout, stderr, logs and the contents of files, "
    "which the events before it have carried) or error (see Error).",
    ("POST", "/v1/environments"): "Events, one JSON object each, with `event`: progress (step, text); at the end result or error (see Error).",
}  # fmt: skip
TEXTS = {("GET", "/v1/metrics"): "text/plain", ("GET", "/v1/runs/{id}/files/{name}"): "application/octet-stream"}
ERRORS = {
    "400": "The request is malformed.", "403": "The caller or the policy may not.", "404": "No such thing.",
    "405": "No such method here.", "413": "The body is too large.", "422": "A build failed.",
    "429": "Too much at once; Retry-After says when to come back.", "500": "A defect of the service.",
    "502": "The image is not available.", "503": "The engine or a control is not available.",
}  # fmt: skip


def openapi(routes: Iterable[tuple[str, str, object]]) -> dict[str, Any]:
    """Return the document (OpenAPI 3.1) of routes: method, path, and the handler, whose docstring describes it."""
    _, schemas = msgspec.json.schema_components(BODIES.values(), ref_template="#/components/schemas/{name}")
    run = schemas["RunBody"]["properties"]
    run["payload"] = {"description": "Any JSON; it reaches the program byte for byte."}
    run["message"] = {"type": "object", "description": "The whole message of the flow."}
    run["files"] = {
        "type": "object",
        "additionalProperties": TEXT,
        "description": "Plain names, and their contents as base64.",
    }
    run["code"] = schemas["CheckBody"]["properties"]["code"] = TEXT
    error = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler in routes:
        paths.setdefault(path, {})[method.lower()] = operation(method, path, str(handler.__doc__))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "podman-sandbox-runner",
            "version": __version__,
            "summary": "Runs untrusted Python in sandboxes.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                **schemas,
                "Error": {"type": "object", "required": ["error"], "properties": {"error": error}},
                "Result": {
                    "type": "object",
                    "required": ["run_id", "outcome", "result"],
                    "properties": result_properties(),
                },
            }
        },
    }


def operation(method: str, path: str, text: str) -> dict[str, Any]:
    """Return one operation; the first sentence of the handler's docstring is its summary."""
    key = (method, path)
    answer: dict[str, Any] = {"application/json": {"schema": answer_schema(key)}}
    if key in EVENTS:
        events = {"schema": {"type": "string", "description": EVENTS[key]}}
        answer |= {"application/x-ndjson": events, "text/event-stream": events}
    if key in TEXTS:
        answer = {TEXTS[key]: {"schema": {"type": "string"}}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    found: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path.removeprefix('/v1')}").strip("_"),
        "summary": text.strip().partition("\n")[0],
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"{(\w+)}", path)),
            *({"name": name, "in": "query", "schema": schema} for name, schema in QUERIES.get(key, {}).items()),
            *({"name": "Prefer", "in": "header", "schema": TEXT, "description": f"RFC 7240: {PREFER[one]}"} for one in (key,) if one in PREFER),
        ],
        "responses": {
            "202" if method == "DELETE" and "runs" in path else "200": {"description": "Done.", "content": answer},
            **({"202": {"description": GOES_ON[key], "content": {"application/json": {"schema": going_on_schema()}}}} if key in GOES_ON else {}),
            **{status: {"description": meaning, "content": error} for status, meaning in ERRORS.items()},
        },
    }  # fmt: skip
    if key in BODIES:
        schema = {"$ref": f"#/components/schemas/{BODIES[key].__name__}"}
        found["requestBody"] = {
            "required": key != ("POST", "/v1/maintenance/prune"),
            "content": {"application/json": {"schema": schema}},
        }
    return found


def answer_schema(key: tuple[str, str]) -> dict[str, Any]:
    """Return the schema of a successful answer."""
    results = (("POST", "/v1/runs"), ("GET", "/v1/runs/{id}/result"))
    return {"$ref": "#/components/schemas/Result"} if key in results else {"type": "object"}


def going_on_schema() -> dict[str, Any]:
    """Return the schema of the answer for a run that goes on."""
    return {"type": "object", "required": ["run_id", "state"], "properties": {"run_id": TEXT, "state": TEXT}}


def result_properties() -> dict[str, Any]:
    """Return what a run's answer has, as far as its types are fixed."""
    own = RunResult.model_json_schema()["properties"]
    kept = {"run_id", "explanation", "output_topic", "exit_code", "signal", "peak_memory_mib", "cpu_s"}
    outcomes = RunResult.model_json_schema()["$defs"]["Outcome"]
    return {**{name: own[name] for name in kept}, "outcome": outcomes, "result": {}, "additional_data": {},
            "stdout": {"type": "string"}, "stderr": {"type": "string"}, "files": {"type": "array"}, "receipt": {"type": ["object", "null"]}}  # fmt: skip
