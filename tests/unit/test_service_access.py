"""Who may do what with the service: what the kernel says of a peer, and what the configuration makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import AccessDenied
from sandbox.service.admission import Quota
from sandbox.service.config.model import AccessRules, Restricted, Runners, ServiceConfig, Socket
from sandbox.service.door.access import (
    MAX_GROUPS,
    NAMES_S,
    Access,
    Caller,
    Identity,
    Peer,
    decide,
    identify,
    peer_of,
    restricted,
)
from sandbox.service.server import opened

OWNER = 1500
USUAL = Quota(running=4, waiting=100)
NOBODYS_UID = 3_999_999_999


def who(user: str, *groups: str, uid: int = 2000) -> Identity:
    return Identity(uid=uid, user=user, groups=frozenset(groups))


def decided(identity: Identity, rules: AccessRules | None = None, *, group: str | None = "nodered") -> Caller:
    return decide(identity, rules or AccessRules(), owner_uid=OWNER, socket_group=group, usual=USUAL)


def refused(identity: Identity, rules: AccessRules | None = None, *, group: str | None = "nodered") -> AccessDenied:
    with pytest.raises(AccessDenied) as caught:
        decided(identity, rules, group=group)
    return caught.value


def runners(*users: str, policies: tuple[str, ...] = ("default",), running: int | None = None) -> Runners:
    return Runners(users=users, policies=policies, max_running=running)


# ---- the second socket ----------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [0, OWNER, 2000])
def test_on_the_second_socket_nobody_is_more_than_a_caller_under_the_policies_named(uid: int) -> None:
    rules = Restricted(path="/run/r/s.sock", policies=("default",), max_running=2)
    caller = restricted(who("x", uid=uid), rules, usual=USUAL)
    caller.may_use("default")
    for policy in ("strict", "/etc/x.toml"):
        with pytest.raises(AccessDenied):
            caller.may_use(policy)
    with pytest.raises(AccessDenied):
        caller.must_maintain()
    assert caller.quota == Quota(running=2, waiting=USUAL.waiting)
    assert caller.uid > 0xFFFF_FFFF  # nobody's number on the first socket: its runs are not theirs
    assert caller.name == "x (restricted)"


@pytest.mark.parametrize(
    "spelled", ["{}/r/s.sock", "{}//r/s.sock", "{}/r/./s.sock", "{}/r/s.sock/", "{}/r/../r/s.sock"]
)
def test_the_second_socket_is_known_however_its_path_is_spelled(spelled: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        config = ServiceConfig(
            socket=Socket(path=f"{directory}/s.sock"),
            restricted=Restricted(path=spelled.format(directory), policies=("default",)),
        )
        Path(directory, "r").mkdir(mode=0o700)
        with contextlib.ExitStack() as held:
            first, second = opened(config, (), held)
            for listener, maintains in ((first, True), (second, False)):
                asker = held.enter_context(socket.socket(socket.AF_UNIX))
                asker.connect(listener.socket.getsockname())
                accepted = held.enter_context(listener.socket.accept()[0])
                caller = asyncio.run(Access(config, owner_uid=os.geteuid()).caller(accepted))
                assert caller.may_maintain == maintains


# ---- without [access] ----------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [0, OWNER])
def test_owner_and_root_may_do_everything(uid: int) -> None:
    for rules in (AccessRules(), AccessRules(runners=(runners("alice"),), maintainers=("alice",))):
        caller = decided(who("x", uid=uid), rules, group=None)
        caller.may_use("strict")
        caller.must_maintain()
        assert caller.quota == USUAL


def test_member_of_the_sockets_group_runs_under_every_policy_and_does_not_maintain() -> None:
    caller = decided(who("alice", "users", "nodered"))
    caller.may_use("strict")
    with pytest.raises(AccessDenied, match="the user alice may not maintain this service"):
        caller.must_maintain()


def test_stranger_is_told_which_group_to_join() -> None:
    error = refused(who("bob", "users"))
    assert error.message == "the user bob may not use this service"
    assert "usermod -aG nodered bob" in error.hint
    assert error.http_status == 403


def test_without_a_group_everybody_else_is_a_stranger() -> None:
    assert "for its owner alone" in refused(who("bob", "nodered", ""), group=None).hint


# ---- with [access] -------------------------------------------------------------------------------


def test_only_those_who_are_named_run_once_somebody_is() -> None:
    rules = AccessRules(runners=(runners("alice"),))
    decided(who("alice"), rules).may_use("default")
    assert "an entry of [[access.runners]]" in refused(who("bob", "nodered"), rules).hint


def test_policy_that_was_not_granted_is_refused_naming_those_that_were() -> None:
    caller = decided(who("alice"), AccessRules(runners=(runners("alice", policies=("default", "reports")),)))
    caller.may_use("reports")
    with pytest.raises(AccessDenied, match="may not run under the policy strict") as caught:
        caller.may_use("strict")
    assert "default, reports" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["/etc/x/default.toml", "./default.toml", "default.toml", "../default", "default\n", "", "*", "Default"]
)
@pytest.mark.parametrize("granted", [("*",), ("default",)])
def test_policy_by_path_is_refused_to_everybody(name: str, granted: tuple[str, ...]) -> None:
    caller = decided(who("alice"), AccessRules(runners=(runners("alice", policies=granted),)))
    with pytest.raises(AccessDenied, match="is not the name of a policy"):
        caller.may_use(name)


def test_members_of_a_named_group_have_its_rights() -> None:
    rules = AccessRules(runners=(runners("@staff"),), maintainers=("@ops",))
    assert not decided(who("alice", "staff"), rules).may_maintain
    assert decided(who("carol", "staff", "ops"), rules).may_maintain
    refused(who("staff"), rules)  # a user with the name of a group


def test_user_is_not_taken_for_a_group_of_the_same_name() -> None:
    refused(who("bob", "alice"), AccessRules(runners=(runners("alice"),)))


def test_first_entry_that_names_somebody_holds() -> None:
    rules = AccessRules(runners=(runners("alice", running=1), runners("@staff", policies=("*",), running=9)))
    alice, carol = (decided(who(name, "staff"), rules) for name in ("alice", "carol"))
    assert (alice.policies, alice.quota) == (("default",), Quota(running=1, waiting=USUAL.waiting))
    assert (carol.policies, carol.quota.running) == (("*",), 9)


def test_waiting_may_be_forbidden() -> None:
    entry = Runners(users=("alice",), policies=("*",), max_queued=0)
    assert decided(who("alice"), AccessRules(runners=(entry,))).quota == Quota(running=USUAL.running, waiting=0)


def test_maintainer_maintains_and_does_not_run() -> None:
    caller = decided(who("alice"), AccessRules(maintainers=("alice",)))
    caller.must_maintain()
    with pytest.raises(AccessDenied, match="may maintain this service, but not run"):
        caller.may_use("default")


def test_naming_maintainers_takes_nothing_from_the_group() -> None:
    decided(who("bob", "nodered"), AccessRules(maintainers=("alice",))).may_use("default")


def test_number_counts_whatever_its_name_is() -> None:
    rules = AccessRules(runners=(runners("uid 2000"),))
    assert decided(who("uid 2000"), rules).name == "uid 2000"
    decided(who("alice"), rules)
    refused(who("uid 2000", uid=2001), rules)


def asked(connection: socket.socket, config: ServiceConfig | None = None, *, owner_uid: int) -> Caller:
    with contextlib.closing(Access(config or ServiceConfig(), owner_uid=owner_uid)) as access:
        return asyncio.run(access.caller(connection))


# ---- who is on the other end ---------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    yield ends
    for end in ends:
        end.close()


def test_kernel_names_process_user_and_groups_of_a_peer() -> None:
    name = f"sandbox-test-access-{os.getpid()}"
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('\\0' + sys.argv[1]); s.recv(1)"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        listener.settimeout(30)
        with subprocess.Popen([sys.executable, "-c", code, name]) as child:
            connection, _ = listener.accept()
            with connection:
                peer = peer_of(connection)
        assert child.returncode == 0
    assert (peer.pid, peer.uid, peer.gid) == (child.pid, os.geteuid(), os.getegid())
    assert peer.groups is not None
    assert set(peer.groups) == set(os.getgroups())


def test_identity_has_the_names_of_the_processs_groups(pair: tuple[socket.socket, socket.socket]) -> None:
    identity = identify(peer_of(pair[0]))
    assert identity.uid == os.geteuid()
    assert grp.getgrgid(os.getegid()).gr_name in identity.groups


def test_user_without_an_account_is_called_by_number() -> None:
    peer = Peer(pid=1, uid=NOBODYS_UID, gid=NOBODYS_UID, groups=(0, NOBODYS_UID))
    assert identify(peer) == Identity(
        uid=NOBODYS_UID, user=f"uid {NOBODYS_UID}", groups=frozenset({grp.getgrgid(0).gr_name})
    )


def test_groups_of_the_account_count_where_the_kernel_does_not_tell() -> None:
    names = identify(Peer(pid=1, uid=0, gid=NOBODYS_UID)).groups
    assert names == {grp.getgrgid(gid).gr_name for gid in os.getgrouplist("root", 0)}


def test_more_groups_than_there_is_room_for_is_no_error() -> None:
    class Crowded:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            if option == socket.SO_PEERCRED:
                return struct.pack("=iII", 5, 6, 7)
            assert size == 4 * MAX_GROUPS
            raise OSError(34, "Numerical result out of range")

    assert peer_of(Crowded()) == Peer(pid=5, uid=6, gid=7)  # type: ignore[arg-type]  # no test can join 257 groups


def test_access_knows_the_owner_by_the_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    assert asked(pair[0], owner_uid=os.geteuid()).may_maintain


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_access_refuses_who_is_neither_owner_nor_member(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(AccessDenied, match="may not use this service"):
        asked(pair[0], owner_uid=NOBODYS_UID)
    mine = ServiceConfig(socket=Socket(group=grp.getgrgid(os.getegid()).gr_name))
    assert not asked(pair[0], mine, owner_uid=NOBODYS_UID).may_maintain


# ---- names are remembered, and looked up where they hold nobody up


class Directory:
    """An account directory that counts who asks it, and answers when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[Peer] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, peer: Peer) -> Identity:
        self.asked.append(peer)
        assert self.open.wait(30)
        return identify(peer)


def with_directory(scene: Callable[[Access, Directory, list[float]], Coroutine[Any, Any, None]]) -> None:
    """Act a scene with an access that asks a directory of the test's, by a clock that the test moves."""
    directory, now = Directory(), [1_000.0]
    with contextlib.closing(
        Access(ServiceConfig(), owner_uid=os.geteuid(), names=directory, clock=lambda: now[0])
    ) as access:
        asyncio.run(scene(access, directory, now))


def test_many_requests_of_one_user_ask_the_account_directory_once_and_after_a_while_again(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    async def scene(access: Access, directory: Directory, now: list[float]) -> None:
        for _ in range(100):
            await access.caller(pair[0])
        assert len(directory.asked) == 1
        now[0] += NAMES_S
        await access.caller(pair[0])
        assert len(directory.asked) == 2

    with_directory(scene)


def test_a_directory_that_hangs_does_not_hold_the_event_loop(pair: tuple[socket.socket, socket.socket]) -> None:
    async def scene(access: Access, directory: Directory, now: list[float]) -> None:
        del now
        directory.open.clear()
        waiting = asyncio.create_task(access.caller(pair[0]))
        for _ in range(1_000):
            await asyncio.sleep(0)  # would never come to an end if the look-up were in the loop
        assert not waiting.done()
        directory.open.set()
        assert (await waiting).may_maintain

    with_directory(scene)
