"""Which route takes and gives what."""

from __future__ import annotations

from typing import Any

import msgspec

from sandbox.wire import answers, events, requests, run


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """What a route takes and gives. One without `answer` gives bytes or text of another type, `content_type`.

    `events` are those of its stream, `going_on` what it says (202) of a run that has not ended, `prefer` what it knows
    of RFC 7240.
    """

    body: type[msgspec.Struct] | None = None
    body_needed: bool = True
    answer: type[msgspec.Struct] | None = None
    content_type: str = "application/json"
    status: int = 200
    events: Any = None
    going_on: str = ""
    prefer: str = ""


# The events of streams, by the names that they have outside.
STREAMS: dict[Any, str] = {events.RunEvent: "RunEvent", events.BuildEvent: "BuildEvent"}
WIRE: dict[tuple[str, str], Route] = {
    ("POST", "/v1/runs"): Route(
        body=requests.RunBody,
        answer=run.RunDocument,
        events=events.RunEvent,
        prefer="respond-async, wait=SECONDS",
        going_on=(
            "With `Prefer: respond-async`: the run goes on; Location says where it is, and its result comes from there."
        ),
    ),
    ("GET", "/v1/runs"): Route(answer=answers.RunList),
    ("GET", "/v1/runs/{id}"): Route(answer=answers.RecordedRun),
    ("DELETE", "/v1/runs/{id}"): Route(answer=answers.Cancelling, status=202),
    ("GET", "/v1/runs/{id}/result"): Route(
        answer=run.RunDocument, prefer="wait=SECONDS", going_on="The run goes on; Retry-After says when to ask again."
    ),
    ("GET", "/v1/runs/{id}/files"): Route(answer=answers.FileList),
    ("GET", "/v1/runs/{id}/files/{name}"): Route(content_type="application/octet-stream"),
    ("POST", "/v1/environments"): Route(
        body=requests.EnvironmentBody, answer=answers.BuiltEnvironment, events=events.BuildEvent
    ),
    ("GET", "/v1/environments"): Route(answer=answers.EnvironmentList),
    ("GET", "/v1/environments/{id}"): Route(answer=answers.ShownEnvironment),
    ("DELETE", "/v1/environments/{id}"): Route(answer=answers.Removed),
    ("POST", "/v1/check"): Route(body=requests.CheckBody, answer=answers.CodeCheck),
    ("GET", "/v1/policies"): Route(answer=answers.PolicyList),
    ("GET", "/v1/policies/{name}"): Route(answer=answers.ShownPolicy),
    ("GET", "/v1/templates"): Route(answer=answers.TemplateList),
    ("GET", "/v1/templates/{name}"): Route(answer=answers.ShownTemplate),
    ("GET", "/v1/images"): Route(answer=answers.ImageList),
    ("GET", "/v1/health"): Route(answer=answers.Health),
    ("GET", "/v1/doctor"): Route(answer=answers.HostReport),
    ("GET", "/v1/metrics"): Route(content_type="text/plain"),
    ("GET", "/v1/openapi.json"): Route(answer=answers.Description),
    ("POST", "/v1/maintenance/prune"): Route(body=requests.PruneBody, body_needed=False, answer=answers.Pruned),
    ("POST", "/v1/maintenance/stop-all"): Route(answer=answers.Stopped),
}
