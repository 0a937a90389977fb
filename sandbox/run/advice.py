"""What to do about an exception that ended a program, if the sandbox makes this exception likely: one table. Pure.

The program could have made its error up: what is taken from it is bounded, and of a narrow form.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from sandbox.index.package_names import is_popular, package_of_module
from sandbox.models import ProgramError
from sandbox.policy.model import Policy

__all__ = ["advice"]

Rule = tuple[str, str, Callable[[re.Match[str], Policy], str]]
MAX_TEXT_CHARS = 4_000
SHOWN_HOSTS = 5
PLAIN_PATH = r"[A-Za-z0-9_][A-Za-z0-9_+,@:./-]*"  # in the directory of the command
SCREEN = {"tkinter", "_tkinter", "turtle", "turtledemo", "idlelib"}
NO_NAME = (
    r"Temporary failure in name resolution|Name or service not known|No address associated with"
    r" hostname|NameResolutionError|getaddrinfo failed"
    r"|could not translate host name|Cannot connect to host|Network is unreachable|Errno -[235]\]|Errno 101\]"
)


def advice(error: ProgramError, policy: Policy) -> str:
    """Return what to do, to follow the sentence that names the exception, or an empty text."""
    said = f"{error.type}: {error.message}"[:MAX_TEXT_CHARS]
    # Libraries wrap the errors of sockets in their own; the traceback still has them.
    whole = f"{said}\n{error.traceback[-MAX_TEXT_CHARS:]}"
    for kind, pattern, explain in RULES:
        if re.fullmatch(kind, error.type) and (match := re.search(pattern, said if kind != ANY else whole)):
            return f"; {explain(match, policy)}"
    return ""


# ---- one function per kind of error: (match, policy) -> what to do


def _module(match: re.Match[str], _policy: Policy) -> str:
    module, top = match[1], match[1].partition(".")[0]
    if top in SCREEN:
        return (
            f"{top} needs a screen, which a sandbox does not have: draw into a file (matplotlib with the backend Agg,"
            " pillow) and save_file() it"
        )
    if match[2] and "not a package" in match[2]:
        return f"a file of yours named {top}.py is found before the library of that name: give it another name"
    if top in sys.stdlib_module_names and not is_popular(module):
        return f"{top} is a part of Python that this image does not have: use another image (--image), or do without"
    package = package_of_module(module)
    if is_popular(module):
        return f"to install it: --with {package}"
    # Anybody may register a name that nobody knows: it is not offered alone.
    return (
        f"a module of your own is sent along: --file {top}.py; a library is installed: --with NAME, with its name on"
        f" the package index, which may be another than {package}"
    )


def _shared_library(match: re.Match[str], _policy: Policy) -> str:
    return f"the image does not have {match[1]} (instead of opencv-python, opencv-python-headless needs no screen)"


def _no_file(match: re.Match[str], _policy: Policy) -> str:
    path = match[1].removeprefix("/app/").removeprefix("./")
    directory, _, name = path.rpartition("/")
    if not name:
        return ""
    if "/." in path or not re.fullmatch(PLAIN_PATH, path):
        # A program must not have itself recommended a file that nobody should hand over (/etc/shadow, .ssh/id_rsa),
        # that the user perhaps can't read, nor a name that is more than one word to a shell.
        given = "--file NAME=PATH, and the program opens NAME"
    else:
        given = f"--file {name}={path}, and the program opens {name}" if directory else f"--file {name}"
    return (
        f"the sandbox has only those of your files that you send: {given}; what the program writes goes into its"
        " working directory"
    )


def _read_only(_match: re.Match[str], _policy: Policy) -> str:
    return "a program writes into its working directory and /tmp, and save_file() hands files over"


def _network(_match: re.Match[str], policy: Policy) -> str:
    network = policy.network
    if network.mode == "none":
        # Not with the host of the message: a program must not have itself recommended one.
        return (
            f'policy {policy.name} gives programs no network; one that does says network.mode = "allowlist" and'
            ' network.allow = ["HOST:443"], for hosts that you trust with the payload: sandbox policy explain'
            f" {policy.name}"
        )
    return f"names and connections go through a proxy only: {_proxy(policy)}"


def _refused(_match: re.Match[str], policy: Policy) -> str:
    own = "127.0.0.1 and localhost are the sandbox's own, not this host's"
    if policy.network.mode == "none":
        return f"{own}, and policy {policy.name} gives programs no network: sandbox policy explain {policy.name}"
    return f"{own}; others are reached through a proxy only: {_proxy(policy)}"


def _forbidden(_match: re.Match[str], policy: Policy) -> str:
    return f"{_allowed(policy)}: sandbox policy explain {policy.name}" if policy.network.mode != "none" else ""


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

ANY = r"[\s\S]*"
# In the order of what is most telling: one text may match several.
RULES: tuple[Rule, ...] = (
    ("ModuleNotFoundError", r"No module named '([A-Za-z0-9_.]{1,80})'([\s\S]{0,200})", _module),
    ("ImportError", r": (lib[A-Za-z0-9_.+-]{1,60}\.so[0-9.]*): cannot open shared object file", _shared_library),
    ("FileNotFoundError", r"\[Errno 2\] No such file or directory: '([ -~]{1,200})'", _no_file),
    (ANY, r"Tunnel connection failed: 403|ProxyError[\s\S]{0,200}?403 Forbidden", _forbidden),
    (ANY, NO_NAME, _network),
    (ANY, r"Connection refused|Errno 111\]", _refused),
    ("OSError", r"\[Errno 30\] Read-only file system", _read_only),
    (r"(locale\.)?Error", r"unsupported locale setting", lambda *_: LOCALES),
    (ANY, r"\b(net_if_addrs|net_if_stats|if_nameindex|getifaddrs)\b[\s\S]*OSError", lambda *_: INTERFACES),
)
