"""Called as root, the command line becomes the unprivileged user `sandbox` before it touches Podman."""

from __future__ import annotations

import os
import pwd
from collections.abc import Collection
from pathlib import Path

import click

from sandbox.errors import NotEnforceable
from sandbox.places import home

USER = "sandbox"
MAX_DESCRIPTORS = 65_536
PRIVATE_VARIABLES = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "DBUS_SESSION_BUS_ADDRESS")


def leave_root(*, quiet: bool = False, with_index: bool = False, keep: Collection[int] = ()) -> None:
    """Give up root for good; does nothing for other users. Raises `NotEnforceable` when there is nobody to become.

    `with_index` takes root's own pip configuration along, in variables; `keep` are the descriptors that are meant for
    us.
    """
    if os.geteuid() != 0:
        return
    try:
        account = pwd.getpwnam(USER)
    except KeyError:
        raise NotEnforceable(
            f"root never runs a container, and there is no user {USER!r} to do it",
            hint="run scripts/setup, or call as another user",
        ) from None
    if account.pw_uid == 0:
        raise NotEnforceable(f"the user {USER!r} is root by another name", hint="give it a user id of its own")
    if with_index:
        from sandbox.index.pip_config import environment_for_handover

        index = environment_for_handover(os.environ, home())
        os.environ.clear()
        os.environ.update(index)
    runtime = Path(f"/run/user/{account.pw_uid}")
    if not runtime.exists():  # a reboot empties /run, and without systemd nobody makes it again
        runtime.parent.mkdir(mode=0o755, exist_ok=True)
        runtime.mkdir(mode=0o700)
        os.chown(runtime, account.pw_uid, account.pw_gid)
    os.initgroups(USER, account.pw_gid)
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    for name in PRIVATE_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(HOME=account.pw_dir, USER=USER, LOGNAME=USER, XDG_RUNTIME_DIR=str(runtime))
    os.umask(0o022)
    close_descriptors(keep)
    if not quiet:
        click.echo(f"sandbox: called as root, going on as user {USER!r}", err=True)


def close_descriptors(keep: Collection[int]) -> None:
    """Close all but the first three and those to `keep`: what root had open is not the user's to use."""
    first = 3
    for kept in sorted(keep):
        os.closerange(first, kept)
        first = kept + 1
    os.closerange(first, MAX_DESCRIPTORS)
