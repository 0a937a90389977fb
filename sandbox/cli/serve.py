"""`sandbox serve`: the runner behind a private Unix socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from pathlib import Path
from typing import Any

import click

from sandbox.cli.handover import leave_root
from sandbox.service.door import systemd

# A thread that works on a large result gives way to the event loop after so long; Python's own 5 ms add up to stalls.
SWITCH_S = 0.0005


@click.command("serve")
@click.option("--config", "config_path", metavar="FILE", help="The configuration file; see `sandbox config show`.")
@click.option(
    "--restart",
    is_flag=True,
    help=(
        "Start no service here. Restart those that systemd runs from this installation, and say "
        "how to restart the others."
    ),
)
@click.pass_obj
def serve(obj: dict[str, Any], *, config_path: str | None, restart: bool) -> int:
    """Serve runs on a Unix socket until SIGTERM or Ctrl-C. SIGHUP reads the policies again."""
    if restart:
        return restart_services()
    inherited = systemd.listen_fds(os.environ, os.getpid())
    leave_root(with_index=True, keep=inherited)
    # Secrets pass through this process: it must not be found in a core dump.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from sandbox import places
    from sandbox.container.standby import Places
    from sandbox.policy.directories import policy_directories
    from sandbox.service import allocator, log
    from sandbox.service.config.load import load_config
    from sandbox.service.door.connections import more_descriptors
    from sandbox.service.server import serve

    config = load_config(Path(config_path) if config_path is not None else None, os.environ).config
    os.environ.update(config.proxy.variables())
    more_descriptors()
    allocator.give_back()
    sys.setswitchinterval(SWITCH_S)
    where = Places(
        runtime_dir=places.runtime_dir(),
        cache_dir=places.cache_dir(),
        data_dir=places.data_dir(),
        policy_dirs=policy_directories(obj["policy_dirs"]),
    )
    with log.set_up(config.log):
        asyncio.run(serve(config, where, inherited=inherited))
    return 0


def restart_services() -> int:
    """Have systemd restart what runs from this installation; tell how for what was started by hand."""
    from sandbox.cli.screen import escaped
    from sandbox.errors import SandboxError
    from sandbox.installed import services as running

    failed = 0
    for service in running.services():
        if service.uid != os.geteuid() and os.geteuid() != 0:
            click.echo(
                f"process {service.pid} is a service of user id {service.uid}: that user, or root, may restart it"
            )
        elif not service.unit:
            click.echo(
                escaped(
                    f"process {service.pid} is a service that was started by hand, and goes on with what it has loaded;"
                    f" to restart it: {service.by_hand()}"
                )
            )
        else:
            try:
                running.with_systemd(service, "restart")
                click.echo(f"restarted: {escaped(service.unit)}")
            except SandboxError as error:
                failed = error.exit_status
                click.echo(escaped(f"{error.message}\n  what to do: {error.hint}"), err=True)
    return failed
