"""What a real service gives, route by route, is what docs/openapi.json says: no field more, none less."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.index.pip_config import VARIABLES
from sandbox.wire.routes import WIRE
from tests.described import NDJSON, SSE, check_answer
from tests.integration.package_index import package_index, wheel
from tests.integration.service import Service, served
from tests.integration.test_service import raw

POLICY = 'extends = "default"\nbuild.allow_addresses = ["127.0.0.1"]\nhistory.output = "all"\nhistory.payloads = true\n'
PLAIN = "application/json"
PROGRAM = """
import sys
print("out"); sys.stdout.buffer.write(b"\\xff"); print("err", file=sys.stderr)
log("careful", "warning"); save_file("a.bin", b"\\0\\1")
import greeting
"""
CODE = {
    "succeeds": PROGRAM + "result = greeting.WORDS",
    "fails": PROGRAM + "raise ValueError('no')",
    "is no Python": "result = (",
}


class Asker:
    """Asks a service, checks each answer, and notes which routes gave what."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.seen: set[tuple[str, str, int, str]] = set()

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        accept: str = PLAIN,
        status: int = 200,
        prefer: str = "",
        **names: str,
    ) -> Any:
        """Ask one route, whose names in braces are `names`, and return what it gave."""
        address = re.sub(r"\{(\w+)\}", lambda found: names[found[1]], path)
        got, headers, said = raw(self._service, method, address, body, accept=accept, prefer=prefer)
        assert got == status, said
        kind = headers["Content-Type"].partition(";")[0]
        assert kind == accept or "json" not in accept
        check_answer(method, path, got, kind, said)
        self.seen.add((method, path, got, kind))
        return json.loads(said) if kind == PLAIN else said


@pytest.fixture(scope="module")
def asker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    home = tmp_path_factory.mktemp("wire")
    (home / "policies").mkdir()
    (home / "policies" / "local.toml").write_text(POLICY)
    with package_index() as index, pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_INDEX_URL", index.url)
        index.add(wheel("greeting", "1.0", {"greeting.py": "WORDS = 'hello'\n"}))
        with served(home, XDG_CACHE_HOME=str(home / "cache")) as running:
            yield Asker(running)
            with running.client() as client:
                for environment in client.environments():
                    client.remove_environment(environment["id"])


def body(code: str, **fields: Any) -> dict[str, Any]:
    """Return a run under the policy that keeps everything."""
    return {"code": code, "policy": "local", "payload": {"a": 1}, "requirements": ["greeting"], **fields}


def test_every_route_gives_what_its_description_says(asker: Asker) -> None:
    libraries = {"requirements": ["greeting"], "policy": "local"}
    asker.ask("POST", "/v1/environments", libraries, NDJSON)
    for kind in (SSE, PLAIN):
        asker.ask("POST", "/v1/environments", libraries, kind)
    (environment,) = asker.ask("GET", "/v1/environments")["environments"]
    assert asker.ask("GET", "/v1/environments/{id}", id=environment["id"])["egress"]
    runs(asker)
    for code in CODE.values():
        asker.ask("POST", "/v1/check", {"code": code})
    for path in ("policies", "templates"):
        for row in asker.ask("GET", f"/v1/{path}")[path]:
            asker.ask("GET", f"/v1/{path}/{{name}}", name=row["name"])
    for path in ("images", "health", "doctor", "metrics", "openapi.json"):
        asker.ask("GET", f"/v1/{path}", accept=PLAIN if path != "metrics" else "text/plain")
    asker.ask("POST", "/v1/maintenance/prune", {"unused_s": 0.001, "dry_run": True})
    asker.ask("DELETE", "/v1/environments/{id}", id=environment["id"])
    asker.ask("POST", "/v1/maintenance/stop-all")
    assert {(method, path) for method, path, _, _ in asker.seen} == set(WIRE)
    assert {(method, path) for method, path, _, kind in asker.seen if kind == NDJSON} == {
        key for key, route in WIRE.items() if route.events
    }
    assert {(method, path) for method, path, status, _ in asker.seen if status == 202} == {
        key for key, route in WIRE.items() if route.going_on or route.status == 202
    }


def runs(asker: Asker) -> None:
    """Run what succeeds, fails, and is no program, in every way; look at it, end one, and be refused."""
    for code in CODE.values():
        found = [asker.ask("POST", "/v1/runs", body(code), kind) for kind in (PLAIN, NDJSON, SSE)]
        asker.ask("GET", "/v1/runs/{id}", id=found[0]["run_id"])
    asker.ask("GET", "/v1/runs")
    saved = asker.ask("POST", "/v1/runs", body(CODE["succeeds"]))["run_id"]
    (file,) = asker.ask("GET", "/v1/runs/{id}/files", id=saved)["files"]
    asker.ask("GET", "/v1/runs/{id}/files/{name}", id=saved, name=file["name"], accept="application/octet-stream")
    later = asker.ask("POST", "/v1/runs", body("import time; time.sleep(60)"), prefer="respond-async", status=202)[
        "run_id"
    ]
    asker.ask("GET", "/v1/runs/{id}/result", id=later, status=202)
    asker.ask("GET", "/v1/runs/{id}", id=later)
    asker.ask("GET", "/v1/runs")
    asker.ask("DELETE", "/v1/runs/{id}", id=later, status=202)
    asker.ask("GET", "/v1/runs/{id}/result", id=later, prefer="wait=60")
    asker.ask("POST", "/v1/runs", {"code": 1}, status=400)
    asker.ask("GET", "/v1/runs/{id}", id="none", status=404)
