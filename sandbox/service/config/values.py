"""What a value of the configuration has to be: paths, names, addresses. Each returns it, or raises what is wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sandbox.errors import InvalidRequest
from sandbox.policy.directories import NAME as POLICY_NAME
from sandbox.policy.model import ANY
from sandbox.proxies import parse_proxy
from sandbox.service.webhooks.rules import address_of

MAX_PATH_BYTES = 107  # of sun_path, without the byte that ends it
# Directory services have names such as "domain users@example.org".
GROUP = re.compile(r"[^\s:@,/\x00-\x1f\x7f]([^:,/\x00-\x1f\x7f]{0,253}[^\s:,/\x00-\x1f\x7f])?")
MODE = re.compile(r"0?[0-7]{3}")
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def socket_path(path: str) -> str:
    """Return the path of a socket."""
    if not path.startswith("/") or not path.isprintable() or len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ValueError(f"must be an absolute path of at most {MAX_PATH_BYTES} bytes, as the path of a socket must be")
    return str(Path(path))  # one spelling: callers are told apart by the name of the socket that they came by


def restricted_path(path: str | None) -> str | None:
    """Return the path of the second socket, if there is one."""
    return None if path is None else socket_path(path)


def directory_value(path: str) -> str:
    """Return the path of a directory."""
    if not path.startswith("/") or not path.isprintable():
        raise ValueError("must be an absolute path")
    return path


def key_file_value(path: str | None) -> str | None:
    """Return the path of a file with a key, if there is one."""
    return path if path is None else directory_value(path)


def proxy_value(url: str | None) -> str | None:
    """Return the address of a proxy, if there is one."""
    if url is None:
        return None
    try:
        proxy = parse_proxy(url, "it")
    except InvalidRequest:
        raise ValueError("must be the address of an HTTP proxy, such as http://proxy.example.com:3128") from None
    if proxy.login:
        raise ValueError("must have no login: write USER:PASSWORD into a file, and name that in proxy.login_file")
    return proxy.shown


def webhook_value(url: str) -> str:
    """Return an address that webhooks may go to."""
    try:
        address = address_of(url)
    except InvalidRequest as error:
        raise ValueError(f"can't be a rule: {error.message}") from None
    if "?" in url:
        raise ValueError("must have no query: what it covers is decided by the path")
    return address.url


def mode_value(text: str | None) -> str | None:
    """Return the mode of a socket, if there is one."""
    if text is None:
        return None
    bits = int(text, 8) if MODE.fullmatch(text) else 0
    if bits & 0o600 != 0o600 or bits & ~0o660:
        raise ValueError('must be "0600" or, for the members of the group, "0660": nobody else may reach the socket')
    return text


def group_value(name: str | None) -> str | None:
    """Return the name of a group, if there is one."""
    if name is not None and not GROUP.fullmatch(name):
        raise ValueError("must be a group's name")
    return name


def who(name: str) -> str:
    """Return a user, a group with "@", or a number with "uid"."""
    if not GROUP.fullmatch(name.removeprefix("@")):
        raise ValueError('must be a user, "@" and a group, or "uid" and a number')
    return name


def granted(name: str) -> str:
    """Return the name of a policy, or "*"."""
    if name != ANY and not POLICY_NAME.fullmatch(name):
        raise ValueError('must be the name of a policy, or "*" for all of them')
    return name


def policy_value(name: str) -> str:
    """Return the name of a policy."""
    if not POLICY_NAME.fullmatch(name):
        raise ValueError("must be the name of a policy")
    return name


def module_value(name: str) -> str:
    """Return the name of a module."""
    if not MODULE.fullmatch(name):
        raise ValueError("must be the name of a module, such as numpy or os.path")
    return name
