"""Names in the configuration that stand for nothing on this host: mistyped users, groups and policies.

A policy that does not exist is an error: nobody can ever run under it, and policies are files of this very host. A user
or group that does not exist is a warning: it may live in a directory service that is not reachable now, or be created
later, and until then it gives nobody any right. But a missing `socket.group` is an error, as the service will not
start.
"""

from __future__ import annotations

import difflib
import grp
import pwd
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sandbox.policy.model import ANY
from sandbox.service.config.model import ServiceConfig
from sandbox.toml_file import shown


@dataclass(frozen=True, kw_only=True)
class UnknownName:
    """One name that stands for nothing: the sentence about it, and whether it is an error or a warning."""

    message: str
    error: bool


def unknown_names(config: ServiceConfig, policies: Collection[str]) -> list[UnknownName]:
    """Return the names that stand for nothing; `policies` are those that exist.

    It asks the account database, which may wait for a directory service.
    """
    return [*_policies(config, policies), *_accounts(config)]


def _policies(config: ServiceConfig, known: Collection[str]) -> Iterator[UnknownName]:
    runners = list(enumerate(config.access.runners, 1))
    named = [(f"policies in entry {n} of access.runners", name) for n, entry in runners for name in entry.policies]
    named += [("restricted.policies", name) for name in config.restricted.policies]
    named += [(f"policy in entry {n} of pool.warm", kind.policy) for n, kind in enumerate(config.pool.warm, 1)]
    for place, name in named:
        if name != ANY and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            suggestion = f"; did you mean {near[0]}?" if near else ""
            yield UnknownName(message=f"{place}: there is no policy named {name}{suggestion}", error=True)


def _accounts(config: ServiceConfig) -> Iterator[UnknownName]:
    for key, group in (("socket.group", config.socket.group), ("restricted.group", config.restricted.group)):
        if group is not None and not _group_exists(group):
            yield UnknownName(message=f"{key}: there is no group {shown(group)} on this host", error=True)
    named = [("access.maintainers", name) for name in config.access.maintainers]
    runners = list(enumerate(config.access.runners, 1))
    named += [(f"users in entry {n} of access.runners", name) for n, entry in runners for name in entry.users]
    for place, name in named:
        if name.startswith("@") and not _group_exists(name[1:]):
            yield UnknownName(message=f"{place}: there is no group {shown(name[1:])} on this host", error=False)
        elif not name.startswith(("@", "uid ")) and not _user_exists(name):
            yield UnknownName(message=f"{place}: there is no user {shown(name)} on this host", error=False)


def _user_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _group_exists(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True
