"""The HTTP side: which route does what, who the caller is, and one shape for every error."""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from sandbox.errors import Internal, SandboxError
from sandbox.service.answers import document, error_answer, signed, translated
from sandbox.service.door.access import Access
from sandbox.service.intake.reading import BODY, Intake
from sandbox.service.openapi import openapi
from sandbox.service.routes import catalogue, environments, later, maintenance, runs
from sandbox.service.routes.queries import asked_for
from sandbox.service.state import CALLER, STATE, PolicyBook, State
from sandbox.wire.answers import Description

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

LOG = logging.getLogger("sandbox.service")
# What stands around a payload: code, files' base64, names.
BODY_HEADROOM_BYTES = 8 << 20
CLIENT_GONE = 499  # nobody reads it
# A name in an address may have braces, which aiohttp takes for no part of one unless it is told so.
BRACED = re.compile(r"\{(\w+)\}")


async def get_openapi(_: web.Request) -> web.Response:
    """Give the description of this API (OpenAPI 3.1)."""
    return document(Description(**openapi(ROUTES)))


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/runs", runs.post_run),
    ("GET", "/v1/runs", runs.get_runs),
    ("GET", "/v1/runs/{id}", runs.get_run),
    ("DELETE", "/v1/runs/{id}", runs.delete_run),
    ("GET", "/v1/runs/{id}/result", later.get_result),
    ("GET", "/v1/runs/{id}/files", later.get_files),
    ("GET", "/v1/runs/{id}/files/{name}", runs.get_file),
    ("POST", "/v1/environments", environments.post_environment),
    ("GET", "/v1/environments", environments.get_environments),
    ("GET", "/v1/environments/{id}", environments.get_environment),
    ("DELETE", "/v1/environments/{id}", environments.delete_environment),
    ("POST", "/v1/check", runs.post_check),
    ("GET", "/v1/policies", catalogue.get_policies),
    ("GET", "/v1/policies/{name}", catalogue.get_policy),
    ("GET", "/v1/templates", catalogue.get_templates),
    ("GET", "/v1/templates/{name}", catalogue.get_template),
    ("GET", "/v1/images", catalogue.get_images),
    ("GET", "/v1/health", catalogue.get_health),
    ("GET", "/v1/doctor", catalogue.get_doctor),
    ("GET", "/v1/metrics", catalogue.get_metrics),
    ("GET", "/v1/openapi.json", get_openapi),
    ("POST", "/v1/maintenance/prune", maintenance.post_prune),
    ("POST", "/v1/maintenance/stop-all", maintenance.post_stop_all),
)


def application(state: State, access: Access) -> web.Application:
    """Return the application; `access` tells who asks."""
    intake = Intake(
        largest_bytes=partial(largest_body_bytes, state.policies), budget_bytes=state.config.queue.bodies_mib << 20
    )
    app = web.Application(middlewares=[answered, asked_for, identified(access, intake)])
    app.on_response_prepare.append(signed)
    app[STATE] = state
    for method, path, handler in ROUTES:
        app.router.add_route(method, BRACED.sub(r"{\1:[^/]+}", path), handler)
    return app


def largest_body_bytes(policies: PolicyBook) -> int:
    """Return how large a body may be under the policies that hold now: a payload may be written in twice its bytes."""
    largest_mib = max((policy.policy.limits.payload_mib for policy in policies.all()), default=1)
    return (2 * largest_mib << 20) + BODY_HEADROOM_BYTES


def identified(access: Access, intake: Intake) -> Middleware:
    """Return the middleware that finds out who asks, from the socket itself, and only then takes the body."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport is None:
            raise ConnectionResetError
        caller = request[CALLER] = await access.caller(request.transport.get_extra_info("socket"))
        async with intake.body(request, caller.uid) as body:
            request[BODY] = body
            return await handler(request)

    return middleware


@web.middleware
async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into the one shape that clients know."""
    try:
        return await handler(request)
    except SandboxError as error:
        request.app[STATE].metrics.error(error.code)
        return error_answer(error)
    except web.HTTPException as answer:
        return error_answer(translated(answer, request))
    except asyncio.CancelledError:
        raise
    except Exception as error:
        if isinstance(error, ConnectionError) and gone(request):
            return web.Response(status=CLIENT_GONE)
        LOG.exception("a request failed: %s %s", request.method, request.path)
        return error_answer(Internal("the service has a defect", hint="its log says more; report this"))


def gone(request: web.Request) -> bool:
    """Tell whether nobody is left to answer."""
    return request.transport is None or request.transport.is_closing()
