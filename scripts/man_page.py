"""The manual page, made from the commands themselves, as roff (man(7))."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import click

NAME = "sandbox"
VARIABLES = (
    ("SANDBOX_SOCKET", "The socket of the service that runs go to, and that the commands about a service ask."),
    ("SANDBOX_NO_SERVICE", "1 has runs happen in the command's own process, as --no-service does."),
    ("SANDBOX_CONFIG", "The configuration file of the service. SANDBOX_SECTION__KEY overrides one of its keys."),
    (
        "NO_COLOR, FORCE_COLOR, TERM",
        "Whether colours are wanted: not with NO_COLOR or TERM=dumb, always with FORCE_COLOR.",
    ),
)
FILES = (
    (
        "$XDG_CONFIG_HOME/podman-sandbox-runner/service.toml",
        "The service's configuration; without one, /etc/podman-sandbox-runner/service.toml.",
    ),
    ("$XDG_RUNTIME_DIR/podman-sandbox-runner/service.sock", "The service's socket, unless something names another."),
)


def text(words: str) -> str:
    """Return prose for roff: nothing in it is a request or an escape."""
    plain = " ".join(words.replace("`", "").split()).replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", plain)


def item(head: str, words: str) -> list[str]:
    """Return one paragraph with a head of its own."""
    return [".TP", f"\\fB{text(head)}\\fR", text(words)]


def page(
    commands: Iterable[tuple[click.Command, click.Context]], *, version: str, statuses: Iterable[tuple[str, str]]
) -> str:
    """Return the whole page; `statuses` are exit statuses with their meanings."""
    found = list(commands)
    first, _ = found[0]
    lines = [
        f'.TH SANDBOX 1 "" "podman\\-sandbox\\-runner {text(version)}" "User Commands"',
        ".SH NAME",
        f"{NAME} \\- {text(summary(first))}",
    ]
    lines += [
        ".SH SYNOPSIS",
        f".B {NAME}",
        "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
        text(first.help or ""),
    ]
    lines += [".SH OPTIONS", *options(found[0]), ".SH COMMANDS"]
    for command, context in found[1:]:
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        lines += [f".SS {text(usage)}", *paragraphs(command.help or ""), *options((command, context))]
    lines += [".SH EXIT STATUS", *(line for status, meaning in statuses for line in item(status, meaning))]
    lines += [".SH ENVIRONMENT", *(line for name, meaning in VARIABLES for line in item(name, meaning))]
    lines += [".SH FILES", *(line for name, meaning in FILES for line in item(name, meaning))]
    return "\n".join([*lines, ""])


def summary(command: click.Command) -> str:
    """Return a command's help as one line without a full stop."""
    return (command.help or "").split("\n\n")[0].rstrip(".")


def paragraphs(words: str) -> Iterator[str]:
    """Give prose paragraph by paragraph."""
    for number, paragraph in enumerate(words.split("\n\n")):
        if number:
            yield ".PP"
        yield text(paragraph)


def options(known: tuple[click.Command, click.Context]) -> list[str]:
    """Return the options of one command."""
    command, context = known
    records = [entry.get_help_record(context) for entry in command.params if isinstance(entry, click.Option)]
    return [line for record in records if record is not None for line in item(*record)]
