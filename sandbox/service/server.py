"""The service's life: it sets up socket, engine, pool and queue, serves, and ends in order, whatever ended it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from sandbox.cell.cell import WarmContainer
from sandbox.cell.group import CellLimits
from sandbox.cell.warm import CellPool
from sandbox.container.pool import PoolLimits, SandboxPool
from sandbox.container.standby import Places, ReadySandbox
from sandbox.container.workspace import sweep
from sandbox.engine.podman import PodmanEngine
from sandbox.environment.requirements import parse_libraries
from sandbox.errors import Internal, SandboxError
from sandbox.host.probe import probe
from sandbox.models import RunRequest
from sandbox.runner import Runner
from sandbox.service.admission import Admission
from sandbox.service.application import application
from sandbox.service.config.load import ServiceConfig
from sandbox.service.config.model import History as Bounds
from sandbox.service.config.model import Socket
from sandbox.service.config.names import unknown_names
from sandbox.service.door import systemd
from sandbox.service.door.access import Access
from sandbox.service.door.connections import IDLE_S, BoundedServer, most_connections
from sandbox.service.door.listen import BACKLOG, Listener, open_socket
from sandbox.service.handling import Handling
from sandbox.service.history.artefacts import Artefacts
from sandbox.service.history.history import Retention, RunHistory
from sandbox.service.history.keeping import Keeping
from sandbox.service.history.kept_answers import Results
from sandbox.service.history.row import HISTORY
from sandbox.service.intake.parser import Parser
from sandbox.service.metrics import Live, Metrics, Shelved
from sandbox.service.sole_service import sole_service
from sandbox.service.state import PolicyBook, State
from sandbox.service.webhooks.sending import WebhookSender, key_of
from sandbox.wire.answers import CellCounts, PoolCounts

LOG = logging.getLogger("sandbox.service")
# What an image's name stands for is looked up again after so long, at the latest.
IMAGES_S = 20.0
STOP_GRACE_S = 5.0
# When the service stops: how long clients get to take their answers, and how long closing connections may take.
SENT_S = 5.0
CLOSE_S = 0.5
PRUNE_S = 3600.0
SWEEP_S = 120.0
SEEN_S = 7 * 86_400.0
# Connections may take half of the service's descriptors. Of the other half, sandboxes that stand ready (4 each) and
# warm containers of cells (8 each) take half at most.
DESCRIPTORS_EACH_READY = 16
DESCRIPTORS_EACH_WARM = 32


async def serve(config: ServiceConfig, places: Places, *, inherited: Sequence[int] = ()) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the policies again. Raises a `SandboxError` when it can't begin.

    `inherited` are the sockets that systemd handed over, see `systemd.listen_fds`.
    """
    access = Access(config, owner_uid=os.getuid())
    with contextlib.ExitStack() as held:
        held.callback(access.close)
        sockets = [listener.socket for listener in opened(config, inherited, held)]
        async with (
            alone(config, str(sockets[0].getsockname())),
            running(config, places) as state,
            accepting(application(state, access), *sockets),
        ):
            keep_what_is_there()
            for listening in sockets:
                LOG.info("serving on %s", listening.getsockname())
            systemd.notify(os.environ, "READY=1")
            await until_stopped(state)
            systemd.notify(os.environ, "STOPPING=1")
            await drained(state, config.stop.drain_s)


def opened(config: ServiceConfig, inherited: Sequence[int], held: contextlib.ExitStack) -> Iterator[Listener]:
    """Yield the service's sockets, which `held` closes: everybody's, and the restricted one where configured."""
    restricted = config.restricted
    for settings, fds in (
        (config.socket, inherited),
        (Socket(path=restricted.path, group=restricted.group) if restricted.path else None, ()),
    ):
        if settings is not None:
            listener = open_socket(settings, inherited=fds)
            held.callback(listener.close)
            yield listener


@contextlib.asynccontextmanager
async def alone(config: ServiceConfig, socket: str) -> AsyncIterator[None]:
    """Be the one service that uses the history's directory, until the block ends; it listens on `socket`.

    Raises `InvalidRequest`.
    """
    with contextlib.ExitStack() as held:
        await asyncio.to_thread(held.enter_context, sole_service(Path(config.history.directory), socket=socket))
        yield


@contextlib.asynccontextmanager
async def accepting(served: web.Application, *sockets: socket.socket, idle_s: float = IDLE_S) -> AsyncIterator[None]:
    """Serve an application to those who connect, until the block ends; see `BoundedServer` for `idle_s`.

    Each socket has connections of its own.
    """
    handling = Handling()
    # A client that goes away cancels its request, and so its run.
    runner = web.AppRunner(served, handler_cancellation=True, shutdown_timeout=CLOSE_S)
    await runner.setup()
    try:
        if runner.server is None:
            raise Internal("the server was not set up")
        runner.server.request_handler = handling.around(runner.server.request_handler)
        loop = asyncio.get_running_loop()
        total = most_connections() // len(sockets)
        servers = [
            await loop.create_server(
                BoundedServer(runner.server, total=total, idle_s=idle_s), sock=listening, backlog=BACKLOG
            )
            for listening in sockets
        ]
        try:
            yield
        finally:
            for server in servers:
                server.close()
            if ended := await handling.settle(grace_s=SENT_S, end_s=STOP_GRACE_S):
                LOG.warning("%d requests did not end in time and were ended", ended)
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def running(config: ServiceConfig, places: Places) -> AsyncIterator[State]:
    """Bring up everything behind the socket, and take it down again."""
    key = await asyncio.to_thread(key_of, config.webhooks.key_file)
    facts = await asyncio.to_thread(probe, places.runtime_dir)
    engine = PodmanEngine(facts.engine, runtime_dir=places.runtime_dir)
    with contextlib.ExitStack() as held:
        held.callback(engine.close)
        parser = Parser()
        held.callback(parser.close)
        gone = await asyncio.to_thread(partial(sweep, places.runtime_dir, engine, everything=True))
        history = RunHistory(Path(config.history.directory) / HISTORY, retention(config.history))
        held.callback(history.close)
        if history.warning:
            LOG.warning("%s", history.warning)
        interrupted = history.interrupted()
        if gone or interrupted:
            LOG.warning("the service did not end in order: %d sandboxes removed, %d runs ended", gone, interrupted)
        policies = PolicyBook(places.policy_dirs)
        tell_troubles(policies)
        make = partial(ReadySandbox, engine=engine, facts=facts, places=places)
        making = partial(WarmContainer, engine=engine, facts=facts, places=places)
        limits, of_cells = limits_of(config)
        async with (
            SandboxPool(make, limits) as pool,
            CellPool(making, pool.source, of_cells, start_s=pool.start_s) as cells,
        ):
            admission = Admission(config.queue.limits)
            artefacts, results = kept_for_callers(config.history)
            live = Live(
                running=lambda: admission.counts().running,
                waiting=lambda: admission.counts().waiting,
                totals=lambda: totals(pool.counts(), cells.counts()),
                pool=lambda: [Shelved(environment=name, ready=n, starting=m) for name, n, m in pool.levels()],
            )
            state = State(
                config=config,
                facts=facts,
                engine=engine,
                policies=policies,
                pool=pool,
                cells=cells,
                history=history,
                metrics=Metrics(live, started_at=time.time()),
                admission=admission,
                artefacts=artefacts,
                results=results,
                parser=parser,
                webhooks=WebhookSender(config.webhooks.allowed, key=key),
                runner=Runner(
                    lambda: engine,
                    facts,
                    places,
                    source=cells.source,
                    policies=policies.get,
                    images_s=IMAGES_S,
                ),
            )
            await asyncio.to_thread(tell_unknown_names, state)
            async with alongside(prune(state)), alongside(sweep_late(state, places)), alongside(warm(state)):
                yield state


def keep_what_is_there() -> None:
    """Leave out of every later search for garbage what there is now: modules, classes, the configuration.

    They live as long as the process, and looking at them all would stop the event loop for 40 ms now and then
    (https://docs.python.org/3/library/gc.html#gc.freeze).
    """
    gc.collect()
    gc.freeze()


def limits_of(config: ServiceConfig) -> tuple[PoolLimits, CellLimits]:
    """Return what the sandboxes that stand ready, and the warm containers of cells, may take."""
    return (
        PoolLimits(
            memory_mib=config.pool.memory_mib,
            per_kind=config.pool.per_setting,
            idle_s=config.pool.idle_s,
            starters=config.pool.starters,
            most=most_connections() // DESCRIPTORS_EACH_READY,
        ),
        CellLimits(
            memory_mib=config.cells.memory_mib,
            per_node=config.cells.per_node,
            idle_s=config.cells.idle_s,
            most=most_connections() // DESCRIPTORS_EACH_WARM,
        ),
    )


def retention(bounds: Bounds) -> Retention:
    """Return for how long the history keeps what, and how much."""
    return Retention(
        age_s=bounds.age_days * 86_400,
        size_bytes=bounds.size_mib << 20,
        output_age_s=bounds.output_age_days * 86_400,
        output_bytes=bounds.output_mib << 20,
    )


def kept_for_callers(bounds: Bounds) -> tuple[Artefacts, Results]:
    """Return what is kept of runs beside the history: their files, and results that are fetched later."""
    place = Path(bounds.directory)
    return (
        Artefacts(Keeping(place / "files", max_bytes=bounds.files_mib << 20, age_s=bounds.files_age_s)),
        Results(Keeping(place / "results", max_bytes=bounds.results_mib << 20, age_s=bounds.results_age_s)),
    )


def totals(pool: PoolCounts, cells: CellCounts) -> dict[str, float]:
    """Return what was counted of sandboxes, by the names that metrics have for it."""
    return {
        "containers_started_total": pool.started,
        "containers_used_total": pool.taken,
        "containers_retired_total": pool.retired,
        "warm_containers": cells.containers,
        "warm_containers_started_total": cells.started,
        "cells_total": cells.cells,
    }


def tell_troubles(policies: PolicyBook) -> None:
    """Log which policies have a broken file, or one that should say something otherwise."""
    for trouble in policies.troubles():
        LOG.error("%s", trouble)
    for warning in policies.warnings():
        LOG.warning("%s", warning)


def tell_unknown_names(state: State) -> None:
    """Log each name in the configuration that nobody knows; the service goes on, and the name gets nothing by it."""
    known = {*state.policies.names(), *state.policies.problems}
    for name in unknown_names(state.config, known):
        LOG.log(logging.ERROR if name.error else logging.WARNING, "the configuration: %s", name.message)


@contextlib.asynccontextmanager
async def alongside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have something done while the block lasts, and no longer."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def prune(state: State) -> None:
    """Keep history and files within their limits, now and then."""
    while True:
        gone = await asyncio.to_thread(state.history.prune)
        if gone:
            LOG.info("%d runs left the history", gone)
        await asyncio.to_thread(state.artefacts.prune)
        await asyncio.to_thread(state.results.prune)
        await asyncio.sleep(PRUNE_S)


async def sweep_late(state: State, places: Places) -> None:
    """Remove, now and then, containers that came after nobody waited for them any longer."""
    while True:
        await asyncio.sleep(SWEEP_S)
        with contextlib.suppress(SandboxError):
            if gone := await asyncio.to_thread(partial(sweep, places.runtime_dir, state.engine, everything=True)):
                LOG.warning("%d sandboxes removed that nobody waited for any longer", gone)


async def warm(state: State) -> None:
    """Make the kinds of sandboxes ready that the configuration names, and those that were run often.

    Libraries that the configuration asks for and that are missing are installed for it.
    """
    named = [(kind.policy, kind.requirements, kind.preload or None) for kind in state.config.pool.warm]
    often = await asyncio.to_thread(seen_often, state)
    for policy, requirements, modules in dict.fromkeys((*named, *often)):
        try:
            asked = parse_libraries("\n".join(requirements))
            request = RunRequest(code="", policy=policy, requirements=asked, preload=modules)
            async with state.runner.setting(request) as setting:
                if setting.policy.isolation.per_run != "cell":
                    state.pool.warm(setting)
        except SandboxError as error:
            LOG.error("no sandbox is kept ready for policy %s: %s", policy, error)


def seen_often(state: State) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Return what was run most often: policy, libraries, modules. Of environments, those that are still there."""
    store = state.runner.environments().store
    kinds = state.history.often(state.config.pool.warm_seen, since=time.time() - SEEN_S)
    found = []
    for kind in kinds:
        environment = store.record(kind.environment) if kind.environment else None
        if kind.policy in state.policies.names() and (not kind.environment or environment is not None):
            # The history has no hashes; the environment knows exactly what it was asked for.
            requirements = environment.requirements if environment is not None else split(kind.requirements)
            found.append((kind.policy, requirements, split(kind.preload)))
    return found


def split(text: str) -> tuple[str, ...]:
    """Return the parts of a list in a row of the history."""
    return tuple(text.split(", ")) if text else ()


async def until_stopped(state: State) -> None:
    """Return at SIGTERM or SIGINT. SIGHUP reads the policies again; a broken file keeps the old policy and says so."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def reload() -> None:
        systemd.notify(os.environ, systemd.reloading())
        state.policies.reload()
        tell_troubles(state.policies)
        LOG.info("policies read: %s", ", ".join(state.policies.names()))
        loop.run_in_executor(None, tell_unknown_names, state)
        systemd.notify(os.environ, "READY=1")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await stop.wait()


async def drained(state: State, drain_s: float) -> None:
    """Let the runs that go on end within `drain_s`, then end them; nothing new begins."""
    LOG.info("stopping: %d runs have %g s to end", len(state.live), drain_s)
    state.admission.drain()
    if not await state.admission.wait_empty(drain_s):
        LOG.warning("%d runs did not end in time and are cancelled", state.live.cancel_all())
        await state.admission.wait_empty(STOP_GRACE_S)
    await state.live.wait_kept(STOP_GRACE_S)
    if given_up := await state.webhooks.settle(SENT_S):
        LOG.warning("%d webhooks were not sent in time and are given up", given_up)
