"""The types of what goes over the wire, for the Python client and for the Node-RED package, from `sandbox.wire`."""

from __future__ import annotations

import msgspec
from msgspec import inspect

from sandbox.wire import answers, errors, events, requests, run
from sandbox.wire.given import Given, always_there
from sandbox.wire.routes import STREAMS, WIRE, Route

TYPED_DICTS = '''"""What the service answers, as types: each is a JSON object as it came, see docs/service.md.

Times are seconds since 1970.

Written by scripts/generate-docs from `sandbox.wire`: change it there.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict
'''
TYPESCRIPT = """// What goes over the service's socket, see docs/service.md. Times are seconds since 1970.
// Written by scripts/generate-docs from sandbox/wire: change it there.
"""
PLAIN = {
    inspect.StrType: "str",
    inspect.BytesType: "str",
    inspect.IntType: "int",
    inspect.FloatType: "float",
    inspect.BoolType: "bool",
    inspect.NoneType: "None",
    inspect.AnyType: "Any",
    inspect.RawType: "Any",
}
NAMES = {"str": "string", "int": "number", "float": "number", "bool": "boolean", "None": "null", "Any": "unknown"}
# What a request has unparsed, as TypeScript.
SENT = {"code": "string", "payload": "unknown", "message": "Record<string, unknown>", "files": "Record<string, string>"}


# ---- what there is


def structs(*modules: object) -> list[type[msgspec.Struct]]:
    """Return the structs that modules declare, in their order."""
    return [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == vars(module)["__name__"]
    ]


def given_kinds() -> list[type[Given]]:
    """Return everything that the service gives, each after what it is made of."""
    return [kind for kind in structs(run, answers, errors, events) if issubclass(kind, Given)]


def bases_of(kind: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """Return what a kind extends."""
    return [base for base in kind.__bases__ if issubclass(base, msgspec.Struct) and base.__struct_fields__]


def own_fields(kind: type[msgspec.Struct]) -> list[inspect.Field]:
    """Return the fields that a kind has beside those of what it extends."""
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    inherited = {name for base in bases_of(kind) for name in base.__struct_fields__}
    return [field for field in described.fields if field.name not in inherited]


def tag_of(kind: type[msgspec.Struct]) -> list[str]:
    """Return the field that tells what an event is, as both languages declare it with a literal type."""
    settings = kind.__struct_config__
    return [str(settings.tag_field), quoted(settings.tag)] if settings.tag_field else []


def parts_of(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    """Return what a value may be."""
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def literals_of(kind: inspect.Type) -> list[str]:
    """Return the texts that a value is one of, where there are so few."""
    return [quoted(value) for value in kind.values] if isinstance(kind, inspect.LiteralType) else []


def quoted(value: object) -> str:
    """Return a text in double quotes."""
    return f'"{value}"'


# ---- Python


def typed_dicts() -> str:
    """Return the client's module of types."""
    classes = [typed_dict(kind) for kind in given_kinds()]
    unions = [f"{name} = {' | '.join(kind.__name__ for kind in stream.__args__)}" for stream, name in STREAMS.items()]
    outcomes = ["Outcome = Literal[", *(f"    {quoted(one.value)}," for one in run.Outcome), "]"]
    return "\n\n\n".join([TYPED_DICTS.rstrip() + "\n\n" + "\n".join(outcomes), *classes, "\n".join(unions)]) + "\n"


def typed_dict(kind: type[Given]) -> str:
    """Return one class.

    Where fields may be missing, the others are in a class of their own: older Pythons know no other way.
    """
    name, own = kind.__name__, own_fields(kind)
    above = ", ".join(base.__name__ for base in bases_of(kind)) or "TypedDict"
    always = [field for field in own if field.encode_name in always_there(kind)]
    needed = [
        *([f"    {tag_of(kind)[0]}: Literal[{tag_of(kind)[1]}]"] if tag_of(kind) else []),
        *map(python_field, always),
    ]
    documentation = ["    " + line if line else "" for line in docstring(kind)]
    if len(always) == len(own):
        return "\n".join([f"class {name}({above}):", *documentation, *([""] if needed else []), *needed])
    missing = [python_field(field) for field in own if field not in always]
    about = f'    """What every `{name}` has."""'
    first = "\n".join([f"class _{name}({above}):", about, "", *needed])
    return "\n".join([first, "", "", f"class {name}(_{name}, total=False):", *documentation, "", *missing])


def docstring(kind: type[msgspec.Struct]) -> list[str]:
    """Return the lines of a docstring."""
    lines = doc_lines(kind)
    return [f'"""{lines[0]}"""'] if len(lines) == 1 else [f'"""{lines[0]}', *lines[1:], '"""']


def doc_lines(kind: type[msgspec.Struct]) -> list[str]:
    """Return what a kind says of itself."""
    return [line.strip() for line in str(kind.__doc__).strip().split("\n")]


def python_field(field: inspect.Field) -> str:
    """Return the line of a field."""
    return f"    {field.encode_name}: {python_type(field.type)}"


def python_type(kind: inspect.Type) -> str:
    """Return a type as Python writes it."""
    return " | ".join(map(python_part, parts_of(kind)))


def python_part(kind: inspect.Type) -> str:
    """Return one of the types that a value may have."""
    if literals := literals_of(kind):
        return f"Literal[{', '.join(literals)}]"
    match kind:
        case inspect.StructType() | inspect.EnumType():
            return kind.cls.__name__
        case inspect.VarTupleType() | inspect.ListType():
            return f"list[{python_type(kind.item_type)}]"
        case inspect.DictType():
            return f"dict[{python_type(kind.key_type)}, {python_type(kind.value_type)}]"
        case _:
            return PLAIN[type(kind)]


# ---- TypeScript


def typescript() -> str:
    """Return the declarations."""
    kinds = [*structs(requests), *given_kinds()]
    unions = [
        f"export type {name} = {' | '.join(kind.__name__ for kind in stream.__args__)};"
        for stream, name in STREAMS.items()
    ]
    outcome = f"export type Outcome = {' | '.join(quoted(one.value) for one in run.Outcome)};"
    routes = [f"  {quoted(' '.join(key))}: {{ {route_type(route)} }};" for key, route in WIRE.items()]
    table = "\n".join(["/** What each route takes and gives. */", "export interface Routes {", *routes, "}"])
    return "\n\n".join([TYPESCRIPT.rstrip(), outcome, *map(interface, kinds), "\n".join(unions), table]) + "\n"


def interface(kind: type[msgspec.Struct]) -> str:
    """Return one interface."""
    above = ", ".join(base.__name__ for base in bases_of(kind))
    head = f"export interface {kind.__name__}{f' extends {above}' if above else ''} {{"
    tag = [f"  {': '.join(tag_of(kind))};"] if tag_of(kind) else []
    return "\n".join([*comment(kind), head, *tag, *(member(kind, field) for field in own_fields(kind)), "}"])


def comment(kind: type[msgspec.Struct]) -> list[str]:
    """Return what stands above an interface."""
    lines = doc_lines(kind)
    return [f"/** {lines[0]} */"] if len(lines) == 1 else ["/**", *(f" * {line}".rstrip() for line in lines), " */"]


def member(kind: type[msgspec.Struct], field: inspect.Field) -> str:
    """Return the line of a field: one that may be left out has a question mark."""
    always = field.encode_name in always_there(kind) if issubclass(kind, Given) else field.required
    unparsed = isinstance(field.type, inspect.RawType) and not issubclass(kind, Given)
    said = SENT[field.name] if unparsed else script_type(field.type)
    return f"  {field.encode_name}{'' if always else '?'}: {said};"


def script_type(kind: inspect.Type) -> str:
    """Return a type as TypeScript writes it."""
    return " | ".join(map(script_part, parts_of(kind)))


def script_part(kind: inspect.Type) -> str:
    """Return one of the types that a value may have."""
    if literals := literals_of(kind):
        return " | ".join(literals)
    match kind:
        case inspect.StructType() | inspect.EnumType():
            return kind.cls.__name__
        case inspect.VarTupleType() | inspect.ListType():
            return f"Array<{script_type(kind.item_type)}>"
        case inspect.DictType():
            return f"Record<{script_type(kind.key_type)}, {script_type(kind.value_type)}>"
        case _:
            return NAMES[PLAIN[type(kind)]]


def route_type(route: Route) -> str:
    """Return what one route takes and gives."""
    said = {
        f"body{'' if route.body_needed else '?'}": route.body and route.body.__name__,
        "answer": route.answer.__name__ if route.answer else "string",
        "events": STREAMS.get(route.events),
    }
    return "; ".join(f"{name}: {kind}" for name, kind in said.items() if kind)
