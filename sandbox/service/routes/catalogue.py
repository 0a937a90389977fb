"""What a caller may use, and how the service and its host are."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from functools import partial
from pathlib import Path

from aiohttp import web

from sandbox import __version__, templates
from sandbox.doctor import examine
from sandbox.engine.protocol import ImageRecord
from sandbox.errors import AccessDenied, SandboxError
from sandbox.image.admission import ENVIRONMENTS
from sandbox.policy.explain import explain
from sandbox.service.answers import document
from sandbox.service.door.access import Caller
from sandbox.service.state import CALLER, STATE
from sandbox.wire.answers import (
    Health,
    HostReport,
    ImageList,
    ListedImage,
    ListedPolicy,
    ListedTemplate,
    PolicyList,
    PolicyValue,
    RunCounts,
    ShownPolicy,
    ShownTemplate,
    TemplateList,
)


async def get_policies(request: web.Request) -> web.Response:
    """List the policies that the caller may use."""
    book, caller = request.app[STATE].policies, request[CALLER]
    usable = [book.get(name).policy for name in book.names() if allowed(caller, name)]
    return document(
        PolicyList(policies=tuple(ListedPolicy(name=p.name, description=p.description, hash=p.hash) for p in usable))
    )


def allowed(caller: Caller, policy: str) -> bool:
    """Tell whether a caller may use a policy."""
    try:
        caller.may_use(policy)
    except AccessDenied:
        return False
    return True


def may_know(caller: Caller, policy: str) -> bool:
    """Tell whether a caller may know of a policy: all know those that they may use, maintainers know all."""
    return caller.may_maintain or allowed(caller, policy)


async def get_policy(request: web.Request) -> web.Response:
    """Show every value of one policy, and what it means."""
    name = request.match_info["name"]
    request[CALLER].may_use(name)
    loaded = request.app[STATE].policies.get(name)
    rows = (
        PolicyValue(key=row.key, value=row.value, unit=row.unit, meaning=row.meaning, origin=row.origin)
        for row in explain(loaded)
    )
    policy = loaded.policy
    return document(ShownPolicy(name=name, description=policy.description, hash=policy.hash, values=tuple(rows)))


async def get_templates(request: web.Request) -> web.Response:
    """List the built-in scripts."""
    del request
    found = map(templates.get, templates.names())
    return document(TemplateList(templates=tuple(ListedTemplate(name=t.name, summary=t.summary) for t in found)))


async def get_template(request: web.Request) -> web.Response:
    """Show one built-in script with its sample payload."""
    found = templates.get(request.match_info["name"])
    sample = json.loads(found.payload_json)
    return document(ShownTemplate(name=found.name, summary=found.summary, code=found.code, payload=sample))


async def get_images(request: web.Request) -> web.Response:
    """List the images that are here; environments have a route of their own."""
    state = request.app[STATE]
    found: list[ImageRecord] = await asyncio.to_thread(state.engine.images)
    named = [(name, record) for record in found for name in record.names if not name.startswith(f"{ENVIRONMENTS}:")]
    return document(
        ImageList(images=tuple(ListedImage(name=name, digest=record.digest) for name, record in sorted(named)))
    )


async def get_health(request: web.Request) -> web.Response:
    """Tell how the service is at this moment; asks nobody else."""
    state, caller = request.app[STATE], request[CALLER]
    broken = state.policies.problems
    problems = [f"policy {name}: {reason}" for name, reason in broken.items() if may_know(caller, name)]
    if state.history.problem:
        problems.append(f"history: {state.history.problem}")
    counts = state.admission.counts()
    return document(
        Health(
            status="stopping" if state.admission.draining else "degraded" if problems or broken else "ok",
            problems=tuple(problems),
            version=__version__,
            since=round(state.began, 3),
            uptime_s=round(time.time() - state.began, 1),
            runs=RunCounts(running=counts.running, waiting=counts.waiting),
            pool=state.pool.counts(),
            cells=state.cells.counts(),
            memory_mib=memory_mib(),
        )
    )


def memory_mib() -> float:
    """Return how much memory this process has: without those that take bodies apart, Podman's and the sandboxes'."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / (1 << 20), 1)


async def get_doctor(request: web.Request) -> web.Response:
    """Report what this host can enforce; of the policies, those that the caller may know of."""
    state, caller = request.app[STATE], request[CALLER]

    def base_image_present(_: object) -> bool:
        try:
            state.engine.image("localhost/sandbox-python:latest")
        except SandboxError:
            return False
        return True

    report = await asyncio.to_thread(
        examine,
        policy_dirs=state.policies.directories,
        facts=lambda _: state.facts,
        base_image_present=base_image_present,
    )
    policies = {name: reason for name, reason in report.policies.items() if may_know(caller, name)}
    return document(HostReport(usable=report.usable, capabilities=report.capabilities, policies=policies))


async def get_metrics(request: web.Request) -> web.Response:
    """Give the counters in Prometheus's text format; of the runs by policy, those whose policy the caller may use.

    Whoever may maintain sees every policy.
    """
    metrics, caller = request.app[STATE].metrics, request[CALLER]
    text = metrics.render(partial(may_know, caller))
    return web.Response(body=text, headers={"Content-Type": metrics.content_type})
