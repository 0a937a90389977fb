"""Checks what the service gives against its own description: nothing may be missing, and nothing may be there that it does not name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema_rs import Draft202012Validator

DOCUMENT = json.loads((Path(__file__).parents[1] / "docs/openapi.json").read_text())
NDJSON, SSE = "application/x-ndjson", "text/event-stream"


def closed(schema: Any) -> Any:
    """Return a schema whose objects have no field that it does not name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    own = {name: closed(part) for name, part in schema.items()}
    return {"additionalProperties": False, **own} if isinstance(schema.get("properties"), dict) else own


SCHEMAS = closed(DOCUMENT["components"])


def problems(schema: dict[str, Any], value: object) -> list[str]:
    """Return what is wrong with a value."""
    validator = Draft202012Validator({**closed(schema), "components": SCHEMAS})
    return [f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in validator.iter_errors(value)]


def named(name: str) -> dict[str, Any]:
    """Return the schema of this name."""
    return {"$ref": f"#/components/schemas/{name}"}


def check_answer(method: str, path: str, status: int, kind: str, body: bytes) -> None:
    """Check an answer of a route, or each event of its stream, against the description."""
    answers = DOCUMENT["paths"][path][method.lower()]["responses"]
    (schema,) = [
        content["schema"] for name, content in answers[str(status)]["content"].items() if kind.startswith(name)
    ]
    if kind == "application/json":
        assert problems(schema, json.loads(body)) == []
    elif kind in (NDJSON, SSE):
        events = [json.loads(line.removeprefix(b"data: ")) for line in body.split(b"\n") if line]
        assert events
        for event in events:
            assert problems(schema["contentSchema"], event) == [], event
    else:
        assert problems(schema, body.decode(errors="replace")) == []
