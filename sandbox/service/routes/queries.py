"""What may follow the `?` of each route, with the schema that describes it. Anything else is refused."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sandbox.errors import InvalidRequest
from sandbox.service.history.reader import MAX_LISTED
from sandbox.service.history.record import ENDINGS
from sandbox.service.routes.runs import USUALLY_LISTED
from sandbox.toml_file import shown

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

TEXT = {"type": "string"}
QUERIES: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("GET", "/v1/runs"): {
        "node": TEXT,
        "outcome": {"type": "string", "enum": list(ENDINGS)},
        "before": TEXT,
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": USUALLY_LISTED},
    }
}


@web.middleware
async def asked_for(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a route does not know: an answer that leaves it out would be to another question."""
    resource = request.match_info.route.resource
    if resource is not None:
        check_query([name for name, _ in request.query.items()], QUERIES.get((request.method, resource.canonical), {}))
    return await handler(request)


def check_query(names: list[str], known: dict[str, dict[str, Any]]) -> None:
    """Raise `InvalidRequest` for a name that is not `known`, or comes twice."""
    for place, name in enumerate(names):
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            suggestion = f"; did you mean {nearest[0]}?" if nearest else ""
            raise InvalidRequest(
                f"the address asks for {shown(name[:80])}, which this route does not know{suggestion}",
                hint=f"it takes {', '.join(known)}" if known else "it takes nothing behind a `?`",
            )
        if name in names[:place]:
            raise InvalidRequest(f"the address has `{name}` twice", hint="send it once")
