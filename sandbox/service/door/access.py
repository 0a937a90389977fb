"""Who is on the other end of a connection, and what the configuration lets them do.

The kernel says who (`peer_of`), the account database has the names (`identify`), `decide` is pure; `Access` is the
three in a row.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import socket
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from sandbox.errors import AccessDenied
from sandbox.policy.directories import NAME
from sandbox.policy.model import ANY
from sandbox.renewing_cache import RenewingCache
from sandbox.service.admission import Quota
from sandbox.service.config.model import AccessRules, Restricted, Runners, ServiceConfig
from sandbox.toml_file import shown

UCRED = struct.Struct("=iII")
SO_PEERGROUPS = 59  # Linux 4.13; the socket module doesn't name it
MAX_GROUPS = 256  # what getsockopt of the socket module has room for
RESTRICTED = 1 << 32  # above every number of a user: callers of the second socket share no runs with those of the first
# Names of users and groups are looked up again after so long, at the latest.
NAMES_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The process that connected, as it was when it did. `groups` has the numbers of all its groups, or is None."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A user by number and name, with the names of the groups that count for it."""

    uid: int
    user: str
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Somebody with a right to use the service. `policies` has names, or `*` for every policy."""

    uid: int
    name: str
    may_maintain: bool
    policies: tuple[str, ...]
    max_running: int
    max_queued: int

    @property
    def quota(self) -> Quota:
        """Return how much of this caller may run and wait at once."""
        return Quota(running=self.max_running, waiting=self.max_queued)

    def must_maintain(self) -> None:
        """Check that this caller may maintain. Raises `AccessDenied`."""
        if not self.may_maintain:
            raise AccessDenied(
                f"the user {self.name} may not maintain this service",
                hint="its owner, root and the users that access.maintainers of its configuration names may do this",
            )

    def uses(self, policy_name: str) -> bool:
        """Tell whether a policy of this name is among those of this caller."""
        return ANY in self.policies or policy_name in self.policies

    def may_use(self, policy_name: str) -> None:
        """Check that runs of this caller may be under a policy. Raises `AccessDenied`, for every path too."""
        if not self.policies:
            raise AccessDenied(
                f"the user {self.name} may maintain this service, but not run anything",
                hint="ask its administrator for an entry of [[access.runners]]",
            )
        if not NAME.fullmatch(policy_name):
            raise AccessDenied(
                f"{shown(policy_name)} is not the name of a policy, and by path the service takes none",
                hint="put the file where the service finds its policies, and ask for its name",
            )
        if not self.uses(policy_name):
            raise AccessDenied(
                f"the user {self.name} may not run under the policy {policy_name}",
                hint=(
                    f"ask for one of these: {', '.join(self.policies)}; or ask the administrator of the service for"
                    " this one"
                ),
            )


class Access:
    """Tells who asks and what they may do, by the configuration of a service that the user `owner_uid` runs.

    The names that belong to a peer come from `names` (by default `identify`), which may wait for a directory service:
    it is asked in a thread, and its answers are believed for `NAMES_S`.
    """

    def __init__(
        self,
        config: ServiceConfig,
        *,
        owner_uid: int,
        names: Callable[[Peer], Identity] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._owner_uid = owner_uid
        self._names = names or identify
        self._identities: RenewingCache[Peer, Identity] = RenewingCache(NAMES_S, clock=clock)
        # Threads of its own: a directory service that hangs must not take those that runs need.
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="identify")

    async def caller(self, connection: socket.socket) -> Caller:
        """Return who is on the other end of an accepted connection. Raises `AccessDenied`."""
        peer = replace(peer_of(connection), pid=0)  # the names follow from the other numbers
        loop = asyncio.get_running_loop()
        ask = partial(loop.run_in_executor, self._threads, self._names, peer)
        identity = await self._identities.get(peer, ask)
        if connection.getsockname() == self._config.restricted.path:
            return restricted(identity, self._config.restricted, usual=self._config.queue.limits.quota)
        return decide(
            identity,
            self._config.access,
            owner_uid=self._owner_uid,
            socket_group=self._config.socket.group,
            usual=self._config.queue.limits.quota,
        )

    def close(self) -> None:
        """Look up nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def peer_of(connection: socket.socket) -> Peer:
    """Return who connected, as the kernel vouches for it (SO_PEERCRED). Raises `OSError` for other kinds of sockets."""
    pid, uid, gid = UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MAX_GROUPS)
    except OSError:  # an older kernel, or more groups than there is room for
        return Peer(pid=pid, uid=uid, gid=gid)
    return Peer(pid=pid, uid=uid, gid=gid, groups=struct.unpack(f"={len(raw) // 4}I", raw))


def identify(peer: Peer) -> Identity:
    """Return the names that belong to the numbers of a peer; it may wait for a directory service.

    The groups are those of the process, which the kernel goes by at the socket, too; those of the account only where
    the kernel does not tell.
    """
    try:
        account = pwd.getpwuid(peer.uid)
    except KeyError:
        account = None
    gids = {peer.gid, *(peer.groups or ())}
    if peer.groups is None and account is not None:
        gids |= set(os.getgrouplist(account.pw_name, account.pw_gid))
    user = account.pw_name if account is not None else f"uid {peer.uid}"
    return Identity(uid=peer.uid, user=user, groups=frozenset(filter(None, map(_group_name, gids))))


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def decide(
    identity: Identity, access: AccessRules, *, owner_uid: int, socket_group: str | None, usual: Quota
) -> Caller:
    """Return what somebody may do; `usual` holds where no entry says otherwise.

    Raises `AccessDenied` for nothing at all.
    """
    if identity.uid in {0, owner_uid}:
        return _caller(identity, usual, policies=(ANY,), may_maintain=True)
    may_maintain = _named(identity, access.maintainers)
    entry: Runners | None = next((entry for entry in access.runners if _named(identity, entry.users)), None)
    if entry is not None:
        quota = Quota(
            running=usual.running if entry.max_running is None else entry.max_running,
            waiting=usual.waiting if entry.max_queued is None else entry.max_queued,
        )
        return _caller(identity, quota, policies=entry.policies, may_maintain=may_maintain)
    if not access.runners and socket_group is not None and socket_group in identity.groups:
        return _caller(identity, usual, policies=(ANY,), may_maintain=may_maintain)
    if may_maintain:
        return _caller(identity, usual, policies=(), may_maintain=True)
    raise AccessDenied(
        f"the user {identity.user} may not use this service",
        hint=_way_in(identity, access, socket_group),
        user=identity.user,
    )


def restricted(identity: Identity, rules: Restricted, *, usual: Quota) -> Caller:
    """Return what whoever came by the second socket may do. It is somebody else than the same user on the first one."""
    quota = Quota(
        running=usual.running if rules.max_running is None else rules.max_running,
        waiting=usual.waiting if rules.max_queued is None else rules.max_queued,
    )
    apart = replace(identity, uid=identity.uid | RESTRICTED, user=f"{identity.user} (restricted)")
    return _caller(apart, quota, policies=rules.policies, may_maintain=False)


def _caller(identity: Identity, quota: Quota, *, policies: tuple[str, ...], may_maintain: bool) -> Caller:
    return Caller(
        uid=identity.uid,
        name=identity.user,
        may_maintain=may_maintain,
        policies=policies,
        max_running=quota.running,
        max_queued=quota.waiting,
    )


def _named(identity: Identity, entries: Sequence[str]) -> bool:
    for entry in entries:
        if entry.startswith("@"):
            if entry[1:] in identity.groups:
                return True
        elif entry.startswith("uid "):
            if entry[4:] == str(identity.uid):
                return True
        elif entry == identity.user:
            return True
    return False


def _way_in(identity: Identity, access: AccessRules, socket_group: str | None) -> str:
    if access.runners:
        return f"its administrator can name {identity.user}, or a group of theirs, in an entry of [[access.runners]]"
    if socket_group is None:
        return "it is for its owner alone; its administrator can let a group in, by socket.group in the configuration"
    return (
        f"members of the group {socket_group} may: as root, usermod -aG {socket_group} {identity.user}, "
        "then log in again or restart the program"
    )
