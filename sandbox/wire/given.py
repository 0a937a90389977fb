"""What all have in common that the service gives: how it is written, and which of its fields are always there."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
from msgspec import UnsetType


class Given(msgspec.Struct, frozen=True):
    """Base of all that the service gives.

    A field that may be missing has `UNSET` among its types; all others are always there.

    Unknown fields are no mistake for who reads it: a later version may have more.
    """


def encoded(value: object) -> bytes:
    """Return something as JSON.

    It is ASCII: text of a program that is in it neither acts on a terminal nor ends a line.
    """
    return json.dumps(msgspec.to_builtins(value)).encode()


def always_there(kind: type[Given]) -> list[str]:
    """Return the names of the fields that every value of a kind has, with the one that tells its kind."""
    tag = kind.__struct_config__.tag_field
    named = [field.encode_name for field in msgspec.structs.fields(kind) if UnsetType not in get_args(field.type)]
    return [*([tag] if tag else []), *named]


def kinds(base: type[Any] = Given) -> list[type[Given]]:
    """Return everything that the service gives, as this package declares it."""
    ours = [below for below in base.__subclasses__() if below.__module__.startswith(__package__)]
    return [kind for below in ours for kind in (below, *kinds(below))]
