"""What to do about an exception that ended a program, if the sandbox makes this exception likely: one table. Pure.

The program could have made its error up: what is taken from it is bounded, and of a narrow form.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sandbox.index.package_names import package_of_module
from sandbox.models import ProgramError
from sandbox.policy.model import Policy
from sandbox.proxies import proxy_advice
from sandbox.run.file_advice import (
    CAUSED_BY_MISSING_FILE,
    MISSING_DATABASE,
    MISSING_FILE,
    MISSING_PICTURE,
    database,
    missing_file,
    picture,
)
from sandbox.run.limit_advice import Circumstances, limit_advice
from sandbox.run.module_advice import missing_library, missing_module, missing_name

__all__ = ["advice", "last_advice"]

MAX_TEXT_CHARS = 4_000
SHOWN_HOSTS = 5
NO_NAME = (
    r"Temporary failure in name resolution|Name or service not known|No address associated with"
    r" hostname|NameResolutionError|getaddrinfo failed"
    r"|could not translate host name|Cannot connect to host|Network is unreachable|Errno -[235]\]|Errno 101\]"
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """An error that a rule is about, and what its pattern found in it."""

    match: re.Match[str]
    error: ProgramError
    place: Circumstances


def advice(error: ProgramError, place: Circumstances) -> str:
    """Return what to do, to follow the sentence that names the exception, or an empty text."""
    said = f"{error.type}: {error.message}"[:MAX_TEXT_CHARS]
    # Libraries wrap the errors of sockets in their own; the traceback still has them.
    traceback = error.traceback[-MAX_TEXT_CHARS:]
    for kind, pattern, explain in RULES:
        text = said if kind not in WITH_TRACEBACK else f"{said}\n{traceback}"
        if re.fullmatch(kind, error.type) and (match := re.search(pattern, text)):
            told = explain(Found(match=match, error=error, place=place))
            break
    else:
        # What is indented are lines of code, which speak of errors, too.
        told = limit_advice(f"{said}\n{INDENTED.sub('', traceback)}", place)
    return f"; {told}" if told else ""


def last_advice(words: str, place: Circumstances) -> str:
    """Return the same for a program that left no exception: what it wrote last to standard error says why it ended."""
    last = words[-MAX_TEXT_CHARS:]
    match = re.search(LIBRARY, last)
    told = missing_library(match[1]) if match else limit_advice(last, place)
    return f"; {told}" if told else ""


# ---- one function per kind of error


def _module(found: Found) -> str:
    return missing_module(found.match[1], found.match[2], found.error.traceback[-MAX_TEXT_CHARS:])


def _name(found: Found) -> str:
    return missing_name(found.match[1], found.match[2])


def _optional(found: Found) -> str:
    package = package_of_module(found.match[1])
    return f"to install it: --with {package}" if package else ""


def _shared_library(found: Found) -> str:
    return missing_library(found.match[1])


def _file(explain: Callable[[re.Match[str], str], str]) -> Callable[[Found], str]:
    return lambda found: explain(found.match, found.error.traceback[-MAX_TEXT_CHARS:])


def _read_only(_found: Found) -> str:
    return "a program writes into its working directory and /tmp, and save_file() hands files over"


def _network(found: Found) -> str:
    policy, network = found.place.policy, found.place.policy.network
    if network.mode == "none":
        # Not with the host of the message: a program must not have itself recommended one.
        return (
            f'policy {policy.name} gives programs no network; one that does says network.mode = "allowlist" and'
            ' network.allow = ["HOST:443"], for hosts that you trust with the payload: sandbox policy explain'
            f" {policy.name}"
        )
    return f"names and connections go through a proxy only: {_proxy(policy)}"


def _refused(found: Found) -> str:
    policy = found.place.policy
    own = "127.0.0.1 and localhost are the sandbox's own, not this host's"
    if policy.network.mode == "none":
        return f"{own}, and policy {policy.name} gives programs no network: sandbox policy explain {policy.name}"
    return f"{own}; others are reached through a proxy only: {_proxy(policy)}"


def _forbidden(found: Found) -> str:
    policy = found.place.policy
    return f"{_allowed(policy)}: sandbox policy explain {policy.name}" if policy.network.mode != "none" else ""


def _used_up(found: Found) -> str:
    policy, network = found.place.policy, found.place.policy.network
    return (
        f"policy {policy.name} lets one run send and receive {network.transfer_mib} MiB (network.transfer_mib) over"
        f" {network.connections} connections (network.connections)"
    )


def _by_proxy(found: Found) -> str:
    return proxy_advice(found.match[0])


def _proxy(policy: Policy) -> str:
    return (
        "use a client that honours HTTP_PROXY and HTTPS_PROXY (requests, httpx, urllib; aiohttp with trust_env=True); "
        f"{_allowed(policy)}"
    )


def _allowed(policy: Policy) -> str:
    allow = policy.network.allow
    more = f" and {len(allow) - SHOWN_HOSTS} more" if len(allow) > SHOWN_HOSTS else ""
    return f"policy {policy.name} lets them reach {', '.join(allow[:SHOWN_HOSTS]) or 'nothing'}{more} (network.allow)"


LOCALES = (
    "the base image has the locale C.UTF-8 alone: Babel (--with babel) brings names and formats of its own, and an"
    " image with another locale is made by: sandbox image build NAME --locale de_DE.UTF-8"
)
INTERFACES = (
    "a sandbox has loopback alone, and a program may not ask the kernel for a list of interfaces, whatever the image:"
    " do without, or use 127.0.0.1"
)

ANY = r"[\s\S]*"  # and whatever the traceback says
ITS_OWN = r".*"  # any, by its own words alone
GAVE_UP = "SystemExit|ImportError"  # what a program says when it has caught that a module is missing
WITH_TRACEBACK = frozenset({ANY, GAVE_UP})
MISSED_MODULE = (
    r"ModuleNotFoundError: No module named '([A-Za-z0-9_.]{1,80})'()\n\n(?:During handling of|The above exception was)"
)
LIBRARY = r"\b(lib[A-Za-z0-9_.+-]{1,60}\.so[0-9.]{0,20}): cannot open shared object file"
INDENTED = re.compile(r"^[ \t].*$", re.MULTILINE)
# In the order of what is most telling: one text may match several.
RULES: tuple[tuple[str, str, Callable[[Found], str]], ...] = (
    ("ModuleNotFoundError", r"No module named '([A-Za-z0-9_.]{1,80})'([\s\S]{0,200})", _module),
    (GAVE_UP, MISSED_MODULE, _module),
    ("ImportError", r"cannot import name '(\w{1,80})' from '(\w{1,80})'", _name),
    ("ImportError", r"(?:Missing optional dependency '|`Import )([A-Za-z0-9_.]{1,80})[`']", _optional),
    (ANY, LIBRARY, _shared_library),
    ("FileNotFoundError", MISSING_FILE, _file(missing_file)),
    (ANY, r"this host's proxy [^\n]{1,300}|has no address here", _by_proxy),
    (ANY, r"that may be (?:sent and received|made) are used up", _used_up),
    (ANY, r"Tunnel connection failed: 403|ProxyError[\s\S]{0,200}?403 Forbidden", _forbidden),
    (ANY, NO_NAME, _network),
    (ANY, r"Connection refused|Errno 111\]", _refused),
    (ITS_OWN, MISSING_DATABASE, _file(database)),
    (ITS_OWN, MISSING_PICTURE, _file(picture)),
    (ITS_OWN, MISSING_FILE, _file(missing_file)),
    (ANY, CAUSED_BY_MISSING_FILE, _file(missing_file)),
    ("OSError", r"\[Errno 30\] Read-only file system", _read_only),
    (r"(locale\.)?Error", r"unsupported locale setting", lambda _found: LOCALES),
    (ANY, r"\b(net_if_addrs|net_if_stats|if_nameindex|getifaddrs)\b[\s\S]*OSError", lambda _found: INTERFACES),
)
