"""What is wrong with a policy, in plain words: the line, what is expected, the nearest key."""

from __future__ import annotations

import difflib
import json
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from sandbox.errors import InvalidRequest
from sandbox.policy.model import KEYS, PolicyDocument, Sections, range_of, unit_of
from sandbox.toml_file import TomlFile

UNIT_WORDS = {"s": "seconds"}


def shown(value: Any) -> str:
    """Return a value as TOML would write it, clipped; nothing in it can steer a terminal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def expectation(key: str) -> str:
    """Return what the value of a key, a section or a top-level key must be, to follow "must be"."""
    if key in Sections.model_fields:
        return f"a section, [{key}]"
    if key not in KEYS:
        return {"description": "a text of at most 500 characters", "extends": "the name of a policy"}.get(key, "valid")
    kind = KEYS[key].annotation
    if get_origin(kind) is Literal:
        return " or ".join(json.dumps(choice) for choice in get_args(kind))
    if kind is bool:
        return "true or false"
    low, high = range_of(key)
    if low is None or high is None:
        return (
            "a text"
            if kind is str
            else f"a list of texts, such as {json.dumps((KEYS[key].examples or [['A', 'B']])[0])}"
        )
    number = "a whole number" if kind is int else "a number"
    return f"{number} of {UNIT_WORDS.get(unit_of(key), unit_of(key))} from {low:g} to {high:.12g}"


def validated(data: dict[str, Any], file: TomlFile, *, prefix: str = "") -> PolicyDocument:
    """Return the document that TOML data describes; `prefix` is where in the file it stands.

    Raises one `InvalidRequest` for the first mistake in the file; its fact `mistakes` lists them all.
    """
    try:
        # By way of JSON: strict Python mode refuses TOML's lists, lax mode reads true as 1.
        return PolicyDocument.model_validate_json(json.dumps(data, default=lambda value: {"not JSON": str(value)}))
    except ValidationError as error:
        mistakes = sorted((_mistake(d, data, file, prefix) for d in error.errors()), key=lambda m: m.facts["line"])
    mistakes[0].facts["mistakes"] = [mistake.message for mistake in mistakes]
    raise mistakes[0]


def _mistake(details: Any, data: dict[str, Any], file: TomlFile, prefix: str) -> InvalidRequest:
    location = details["loc"]
    key = ".".join(part for part in location if isinstance(part, str))
    if details["type"] == "extra_forbidden":
        return unknown_key(prefix + key, file)
    value: Any = data
    for part in location:
        value = value[part]
    entry = isinstance(location[-1], int)
    written = str(value) if isinstance(value, float) else shown(value)
    subject = f"the entry {written} of {prefix}{key}" if entry else f"{prefix}{key} is {written}, but it"
    if details["type"] == "value_error":
        problem = str(details["ctx"]["error"])
    else:
        problem = f"must be {'true or ' if prefix else ''}{'a text' if entry else expectation(key)}"
    hint = f"`sandbox policy explain default` says what {key} means, and `sandbox policy schema` what every key may be"
    if isinstance(value, str) and key in KEYS and unit_of(key):
        unit = UNIT_WORDS.get(unit_of(key), unit_of(key))
        hint = f"write the number alone, without quotes or unit: {key} always counts {unit}"
    return _at(file, prefix + key, f"{subject} {problem}", hint)


def unknown_key(key: str, file: TomlFile) -> InvalidRequest:
    """Return the error for a key that doesn't exist, naming the nearest that does."""
    bare = key.removeprefix("open.")
    known = [*KEYS, *Sections.model_fields, *(() if bare != key else ("description", "extends", "open"))]
    by_last_part = {name.rpartition(".")[2]: name for name in reversed(known)}  # limits.cpus before build.cpus
    nearest = difflib.get_close_matches(bare, known, n=1, cutoff=0.75)
    last = difflib.get_close_matches(bare.rpartition(".")[2], by_last_part, n=1)
    # A key without its section may be nearest to one of another section that happens to be shorter.
    likely = by_last_part.get(bare) or (nearest[0] if nearest else by_last_part[last[0]] if last else "")
    return _at(
        file, key, f"there is no key {shown(key)[1:-1]}{f'; did you mean {likely}?' if likely else ''}",
        "`sandbox policy explain default` says what each key means, and `sandbox policy schema` prints them all",
    )  # fmt: skip


def _at(file: TomlFile, key: str, problem: str, hint: str) -> InvalidRequest:
    place = file.at(key)
    return InvalidRequest(f"{place}: {problem}", hint=hint, key=key, line=int(place.rpartition(":")[2]))
