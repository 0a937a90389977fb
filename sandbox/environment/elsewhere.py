"""What other tools are told about libraries and nobody follows here: it is refused, never passed over. Pure."""

from __future__ import annotations

import difflib
import re
from typing import Any

from sandbox.errors import InvalidRequest

__all__ = ["check_format", "check_header", "check_tools"]

SHOWN = 5
_LIST = "list the libraries in a requirements.txt, or as dependencies below [project] in a pyproject.toml"
_EXPORTED = "{} > requirements.txt, then --requirements requirements.txt"
# Files that are no requirements.txt, by their names: whose they are, and what to give instead.
_FORMATS = (
    (r"Pipfile(\.lock)?", "pipenv", _EXPORTED.format("pipenv requirements")),
    (r"poetry\.lock", "Poetry", _EXPORTED.format("poetry export --format requirements.txt")),
    (r"uv\.lock", "uv", _EXPORTED.format("uv export --format requirements-txt")),
    (r"pdm\.lock", "PDM", _EXPORTED.format("pdm export --format requirements")),
    (r"pixi\.(toml|lock)", "pixi", _LIST),
    (r".*\.(yml|yaml)", "conda", _LIST + "; conda's packages that are no Python have no place there"),
    (r"setup\.(py|cfg)", "setuptools", _LIST),
)
# The first line of such files that says something, where the name says nothing.
_CONTENTS = (
    (r"\[\[source\]\]|\[(dev-)?packages\]|\[requires\]", *_FORMATS[0][1:]),
    (r"(name|channels|dependencies|prefix)\s*:.*", *_FORMATS[5][1:]),
)
# What of [tool.uv] changes nothing about which files are installed. Anything else does, or may in a later version.
_UV_WITHOUT_EFFECT = {
    "build-backend", "cache-dir", "cache-keys", "check-url", "compile-bytecode", "concurrent-builds",
    "concurrent-downloads", "concurrent-installs", "default-groups", "dependency-groups", "dev-dependencies",
    "http-timeout", "link-mode", "managed", "native-tls", "no-cache", "no-progress", "offline", "package",
    "preview", "preview-features", "publish-url", "python-downloads", "python-downloads-json-url",
    "python-install-mirror", "python-preference", "pypy-install-mirror", "required-version", "system-certs",
    "trusted-publishing", "workspace",
}  # fmt: skip # a list
# What Poetry and PDM take files from.
_SOURCES = {"poetry": ("source",), "pdm": ("source", "resolution", "overrides")}
_POETRY = f"; or have Poetry give its choice: {_FORMATS[1][2]}"
# Where they list libraries beside [project].
_LISTS = (("poetry", "dependencies"), ("pixi", "dependencies"), ("pixi", "pypi-dependencies"))
_SHEBANG = re.compile(r"#!.*\b(?:uv[ \t]+run|uvx|pipx[ \t]+run)\b(.*)")
_HARMLESS = frozenset(("-s", "--script", "-q", "--quiet", "-v", "--verbose", "--no-project", "--isolated", "--offline"))


def check_format(text: str, name: str) -> None:
    """Raise `InvalidRequest` for a file that is another tool's, given as a requirements.txt."""
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), "")
    for pattern, tool, hint in _FORMATS:
        if re.fullmatch(pattern, name):
            raise _of_other(name, tool, hint)
    for pattern, tool, hint in _CONTENTS:
        if re.fullmatch(pattern, first):
            raise _of_other(name, tool, hint)


def check_tools(table: dict[str, Any], text: str, name: str, first_line: int) -> None:
    """Refuse what tools are told of where files come from, and libraries that they alone are told of.

    Taking others in silence would be the wrong answer.
    """
    tools = table.get("tool")
    for tool, said in tools.items() if isinstance(tools, dict) else ():
        for key in said if isinstance(said, dict) else ():
            if key in _SOURCES.get(tool, ()) or (tool == "uv" and key not in _UV_WITHOUT_EFFECT):
                at = re.search(rf"^[ \t]*(?:\[+ *tool *\. *{tool} *\. *)?{re.escape(key)}\b", text, re.MULTILINE)
                line = first_line + text.count("\n", 0, at.end() if at else 0)
                raise InvalidRequest(
                    f"{name}:{line}: {key} of [tool.{tool}] is not followed here: libraries come from the index that"
                    " pip is configured to use",
                    hint=f"remove it; or have {tool} choose, and give its choice: {_export(tool)}",
                )
    _check_lists(table, text, name, first_line)


def _check_lists(table: dict[str, Any], text: str, name: str, first_line: int) -> None:
    project = table.get("project", table)
    listed = project.get("dependencies") if isinstance(project, dict) else ()
    entries = listed if isinstance(listed, list) else ()
    known = {"python", *(_plain(entry) for entry in entries if isinstance(entry, str))}
    for tool, key in _LISTS:
        said: Any = table
        for part in ("tool", tool, key):
            said = said.get(part) if isinstance(said, dict) else None
        others = [one for one in map(_plain, said) if one not in known] if isinstance(said, dict) else []
        if others:
            at = re.search(rf"^[ \t]*\[ *tool *\. *{tool} *\. *{key}\b", text, re.MULTILINE)
            line = first_line + text.count("\n", 0, at.start() if at else 0)
            raise InvalidRequest(
                f"{name}:{line}: {', '.join(others[:SHOWN])[:100]} of [tool.{tool}.{key}] would be left out: only"
                " dependencies of [project] are read",
                hint=f"list there what the code imports{_POETRY if tool == 'poetry' else ''}",
            )


def _plain(requirement: str) -> str:
    """Return the one spelling of a package's name that a requirement begins with."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]).lower()


def check_header(table: dict[str, Any], code: str, name: str, line: int) -> None:
    """Refuse what a script's header has beside what PEP 723 knows, and options in a first line that starts uv."""
    known = ("dependencies", "requires-python", "tool")
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise InvalidRequest(
                f"{name}:{line}: the script's header has {key[:40]!r}, which nobody reads",
                hint=f"did you mean {near[0]}?" if near else f"it may have {', '.join(known)}; remove the rest",
            )
    if shebang := _SHEBANG.match(code):
        for word in shebang[1].split():
            if word.startswith("-") and word not in _HARMLESS:
                raise InvalidRequest(
                    f"{name}:1: the option {word[:40]!r} of the first line is not followed here",
                    hint="write libraries and requires-python into the script's header, and remove it",
                )


def _export(tool: str) -> str:
    return next(hint for _, known, hint in _FORMATS if known.lower() == tool)


def _of_other(name: str, tool: str, hint: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is a file of {tool}, not a requirements.txt: it is not followed", hint=hint)
