"""Runs that are started now and fetched later, over HTTP, with a runner that only pretends."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from operator import not_
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast
from urllib.parse import quote

import pytest

from sandbox.doctor import Report
from sandbox.models import Outcome, RunResult
from sandbox.service.door.access import Caller
from sandbox.service.history.artefacts import Artefact
from sandbox.service.history.keeping import Keeping
from sandbox.service.history.kept_answers import Results
from sandbox.service.history.row import SERVICE_ENDED, RunRow
from sandbox.service.history.secret_mask import Mask
from sandbox.service.history.told import told
from sandbox.service.routes import catalogue
from sandbox.service.state import CALLER, STATE
from sandbox.service.webhooks.sending import WebhookSender
from tests.unit.test_service_runs import NDJSON, Scene, play, soon_over
from tests.waiting import WAIT_S, until_async

__all__ = ["soon_over"]
LATER = "Prefer: respond-async"


async def ask(
    here: Scene, method: str, path: str, *headers: str, body: dict[str, Any] | None = None
) -> tuple[int, dict[str, str], Any]:
    """Send a request; return status, headers (names in lower case) and the document that comes back."""
    data = json.dumps(body).encode() if body is not None else b""
    reader, writer = await asyncio.open_unix_connection(here.path, limit=1 << 26)
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(data)}", *headers]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
    head, _, content = (await asyncio.wait_for(reader.read(-1), WAIT_S)).partition(b"\r\n\r\n")
    writer.close()
    first, *others = head.decode().split("\r\n")
    return (
        int(first.split()[1]),
        {name.lower(): value for name, value in (line.split(": ", 1) for line in others)},
        json.loads(content),
    )


async def start(here: Scene, code: str, *headers: str, **more: Any) -> tuple[int, dict[str, str], Any]:
    return await ask(here, "POST", "/v1/runs", LATER, *headers, body={"code": code, **more})


async def result(here: Scene, run_id: str, *headers: str) -> tuple[int, dict[str, str], Any]:
    return await ask(here, "GET", f"/v1/runs/{run_id}/result", *headers)


def test_a_run_is_started_now_and_its_result_fetched_later_and_again(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        status, headers, begun = await start(here, "waits")
        assert (status, set(begun)) == (202, {"run_id", "state"})
        assert (headers["location"], headers["preference-applied"]) == (f"/v1/runs/{begun['run_id']}", "respond-async")
        status, headers, going = await result(here, begun["run_id"])
        assert (status, headers["retry-after"], going) == (202, "1", {"run_id": begun["run_id"], "state": "image"})
        here.runner.go.set()
        for _ in range(2):
            status, _, document = await result(here, begun["run_id"], "Prefer: wait=20")
            assert (status, document["run_id"], document["result"]) == (200, begun["run_id"], "x")
        assert [(row.outcome, row.detached) for row in here.ended] == [("succeeded", True)]

    play(tmp_path, act)


def test_waiting_is_bounded_by_what_is_asked_for_and_a_run_that_is_over_soon_is_answered_at_once(
    tmp_path: Path,
) -> None:
    async def act(here: Scene) -> None:
        status, _, document = await start(here, "1", "Prefer: wait=20")
        assert (status, document["result"]) == (200, "x")
        assert (await result(here, document["run_id"]))[0] == 200, "and is kept"
        status, _, begun = await start(here, "waits", "Prefer: wait=1")
        assert status == 202
        assert (await result(here, begun["run_id"], "Prefer: wait=1"))[0] == 202

    play(tmp_path, act)


def test_a_client_that_goes_away_changes_nothing_and_a_stream_is_not_begun(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        status, headers, begun = await start(here, "waits", f"Accept: {NDJSON}")
        assert (status, headers["content-type"]) == (202, "application/json")
        here.runner.go.set()
        assert (await result(here, begun["run_id"], "Prefer: wait=20"))[0] == 200

    play(tmp_path, act)


@pytest.mark.parametrize(
    ("code", "status", "error"), [("fails later", 503, "engine_unavailable"), ("defect", 500, "internal")]
)
def test_a_run_that_ends_with_an_error_has_it_as_its_result(tmp_path: Path, code: str, status: int, error: str) -> None:
    async def act(here: Scene) -> None:
        here.runner.go.set()
        begun = (await start(here, code))[2]
        found = await result(here, begun["run_id"], "Prefer: wait=20")
        assert (found[0], found[2]["error"]["code"]) == (status, error)
        assert [row.outcome for row in here.ended] == [error], "and it does not go on for ever in the history"

    play(tmp_path, act)


def test_what_is_refused_at_once_is_answered_at_once_and_not_kept(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        status, _, refused = await start(here, "refused")
        assert (status, refused["error"]["code"]) == (403, "policy_denied")
        assert list((tmp_path / "results").iterdir()) == []

    play(tmp_path, act)


def test_ten_thousand_fill_their_caller_s_part_of_the_queue_and_no_more(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        answers = [await start(here, "waits") for _ in range(50)]
        assert [status for status, *_ in answers] == [202] * 7 + [429] * 43
        assert len(here.state.live) == 7
        here.runner.go.set()
        for _, _, begun in answers[:7]:
            assert (await result(here, begun["run_id"], "Prefer: wait=20"))[0] == 200

    play(tmp_path, act, running=2, waiting=5)


def test_bodies_of_those_that_wait_count_as_their_caller_s(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        statuses = [(await start(here, "waits", payload="x" * (3 << 20)))[0] for _ in range(6)]
        assert statuses == [202] * 2 + [429] * 4, "half of 16 MiB"
        here.runner.go.set()
        await until_async(lambda: len(here.state.live), not_)
        assert (await start(here, "1", payload="x" * (3 << 20)))[0] == 202, "nothing of the others is held"

    play(tmp_path, act, budget_mib=16, running=1, waiting=10)


def test_a_run_that_is_ended_says_so_also_while_it_waits_for_its_turn(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        ids = [(await start(here, "until cancelled"))[2]["run_id"], (await start(here, "waits"))[2]["run_id"]]
        assert (await ask(here, "DELETE", f"/v1/runs/{ids[1]}"))[0] == 202
        found = await result(here, ids[1], "Prefer: wait=20")
        assert (found[0], found[2]["outcome"]) == (200, "cancelled")
        assert (await ask(here, "DELETE", f"/v1/runs/{ids[0]}"))[0] == 202
        assert (await result(here, ids[0], "Prefer: wait=20"))[0] == 200

    play(tmp_path, act, running=1, waiting=5)


def test_a_result_that_is_too_large_says_so_and_pushes_nothing_out(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        small = (await start(here, "1"))[2]["run_id"]
        assert (await result(here, small, "Prefer: wait=20"))[0] == 200
        large = (await start(here, "mib 65"))[2]["run_id"]
        status, _, found = await result(here, large, "Prefer: wait=20")
        assert (status, found["error"]["code"]) == (404, "not_found")
        assert "65 MiB" in found["error"]["message"]
        assert "history.results_mib" in found["error"]["hint"]
        assert (await result(here, small))[0] == 200

    play(tmp_path, act)


def test_another_s_run_is_not_there_while_it_goes_on_nor_later(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        begun = (await start(here, "waits"))[2]["run_id"]
        here.stranger = True
        assert (await result(here, begun))[0] == 404
        assert (await ask(here, "DELETE", f"/v1/runs/{begun}"))[0] == 404
        here.runner.go.set()
        await until_async(lambda: len(here.state.live), not_)
        stranger, files = await result(here, begun), await ask(here, "GET", f"/v1/runs/{begun}/files")
        here.stranger = False
        assert (await result(here, begun))[0] == 200, "the control: its own caller"
        assert (stranger[0], files[0]) == (404, 404)
        assert "no run" in stranger[2]["error"]["message"], "as if it had never been"

    play(tmp_path, act)


def test_what_nobody_kept_is_not_found_with_the_reason(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        row = RunRow(
            run_id="1" * 32, caller=os.getuid(), caller_name="ann", received=1.0, state="ended", outcome="succeeded"
        )
        here.ended += [row, replace(row, run_id="2" * 32, detached=True)]
        here.ended += [replace(row, run_id="3" * 32, detached=True, outcome="killed", explanation=SERVICE_ENDED)]
        for run_id, reason in (
            ("1" * 32, "goes to who asked"),
            ("2" * 32, "not kept any longer"),
            ("4" * 32, "no run"),
            ("..%2f..", "no run"),
        ):
            status, _, found = await result(here, run_id)
            assert status == 404
            assert reason in found["error"]["message"]
            assert "`sandbox run" in found["error"]["hint"] or reason == "not kept any longer", (
                "readers are at the command line, too"
            )
        status, _, found = await result(here, "3" * 32)
        assert (status, found["outcome"], found["explanation"], found["run_id"]) == (
            200,
            Outcome.KILLED.value,
            SERVICE_ENDED,
            "3" * 32,
        )
        _, writer = await here.ask("waits")
        await until_async(lambda: here.runner.running, 1)
        (going,) = here.state.live
        assert (await result(here, going.run_id))[0] == 404, "its client gets the result"
        writer.close()

    play(tmp_path, act)


def test_files_are_listed_by_name_and_size(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        here.ended.append(RunRow(run_id="1" * 32, caller=os.getuid(), caller_name="ann", received=1.0, state="ended"))
        assert (await ask(here, "GET", f"/v1/runs/{'1' * 32}/files"))[2] == {"files": []}
        here.state.artefacts.list = lambda *_: (Artefact(name="a", size_bytes=3),)  # type: ignore[method-assign]
        assert (await ask(here, "GET", f"/v1/runs/{'1' * 32}/files"))[2] == {"files": [{"name": "a", "size_bytes": 3}]}
        here.state.artefacts.list = lambda *_: ()  # type: ignore[method-assign]
        assert (await ask(here, "GET", f"/v1/runs/{'2' * 32}/files"))[0] == 404

    play(tmp_path, act)


@pytest.mark.parametrize(
    "name", ["a{b}.txt", "{", "}{", "a%2Fb", "a%252Fb", "é b", "a?b#c", "..x", "a+b;c=d", "%", "\\"]
)
def test_a_file_of_any_name_is_given(tmp_path: Path, name: str) -> None:
    async def act(here: Scene) -> None:
        here.state.artefacts.get = lambda run_id, owner, name: json.dumps([run_id, name]).encode()  # type: ignore[method-assign]
        answer = await ask(here, "GET", f"/v1/runs/{'1' * 32}/files/{quote(name, safe='')}")
        assert (answer[0], answer[2]) == (200, ["1" * 32, name])

    play(tmp_path, act)


def test_who_waits_for_a_result_and_goes_away_leaves_nothing_behind(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        _, _, begun = await start(here, "waits")
        (live,) = here.state.live
        _, writer = await asyncio.open_unix_connection(here.path)
        writer.write(f"GET /v1/runs/{begun['run_id']}/result HTTP/1.1\r\nHost: x\r\nPrefer: wait=60\r\n\r\n".encode())
        await until_async(lambda: len(live.over._waiters), 1)
        writer.close()
        await until_async(lambda: live.over._waiters, not_)
        here.runner.go.set()

    play(tmp_path, act)


@pytest.mark.parametrize(("maintains", "known"), [(True, {"default", "secret"}), (False, {"default"})])
def test_the_doctor_names_the_policies_that_its_reader_may_know_of(
    monkeypatch: pytest.MonkeyPatch, maintains: bool, known: set[str]
) -> None:
    class Asked(dict[Any, Any]):
        app: ClassVar[dict[Any, Any]] = {STATE: SimpleNamespace(policies=SimpleNamespace(directories=()), facts=None)}

    caller = Caller(uid=1, name="u", may_maintain=maintains, policies=("default",), max_running=1, max_queued=1)
    report = Report(capabilities=(), policies={"default": "", "secret": "no"})
    monkeypatch.setattr(catalogue, "examine", lambda **_: report)
    answer = asyncio.run(catalogue.get_doctor(cast("Any", Asked({CALLER: caller}))))
    found = json.loads(cast("bytes", answer.body))
    assert (found["usable"], set(found["policies"])) == (True, known)


def test_a_list_of_runs_is_short_whatever_those_that_go_on_were_asked_to_have(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        here.state.history.list = lambda **_: ()  # type: ignore[method-assign]
        many = [f"lib{number}=={'1.' * 80}0" for number in range(1_000)]
        _, _, begun = await start(here, "waits", requirements=many)
        _, _, listed = await ask(here, "GET", "/v1/runs")
        (run,) = listed["runs"]
        assert run["run_id"] == begun["run_id"]
        first, *_, last = run["requirements"].split(", ")
        assert first == many[0]
        assert last == f"and {1_001 - len(run['requirements'].split(', '))} more"
        assert len(json.dumps(run)) < 4_000
        here.runner.go.set()

    play(tmp_path, act)


def test_what_the_history_has_of_runs_counts_as_its_reader_s_while_it_is_sent(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        row = RunRow(
            run_id="1" * 32,
            caller=os.getuid(),
            caller_name="ann",
            received=1.0,
            state="ended",
            output=told(RunResult(run_id="1" * 32, outcome=Outcome.FAILED, stdout=b"x" * 600_000), Mask(()), 600_000),
        )
        here.ended.append(row)
        here.state.history.list = lambda **_: (replace(row, explanation="x" * 2_000),) * 300  # type: ignore[method-assign]
        for path in ("/v1/runs", f"/v1/runs/{row.run_id}"):
            reader, writer = await asyncio.open_unix_connection(here.path, limit=1 << 10)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await reader.readline()).endswith(b"200 OK\r\n")
            status, _, answer = await ask(here, "GET", path)
            assert (status, answer["error"]["code"]) == (429, "queue_full"), "the first answer is not read yet"
            writer.close()

            async def status_of(path: str = path) -> int:
                return (await ask(here, "GET", path))[0]

            await until_async(status_of, 200)

    play(tmp_path, act, budget_mib=1)


def test_the_description_of_the_api_is_a_route(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        status, _, found = await ask(here, "GET", "/v1/openapi.json")
        assert (status, found) == (200, json.loads(Path("docs/openapi.json").read_text()))

    play(tmp_path, act)


def test_a_webhook_goes_with_a_run_for_later_to_an_address_that_is_allowed(tmp_path: Path) -> None:
    told: list[tuple[str, ...]] = []

    class Allowed(WebhookSender):
        def tell(self, *said: str) -> None:
            told.append(said)

    async def act(here: Scene) -> None:
        url = "http://127.0.0.1:1880/ended"
        assert (await start(here, "1", notify={"url": url}))[2]["error"]["code"] == "access_denied"
        here.state.__dict__["webhooks"] = Allowed([url])
        status, _, refused = await ask(here, "POST", "/v1/runs", body={"code": "1", "notify": {"url": url}})
        assert (status, "respond-async" in refused["error"]["hint"]) == (400, True)
        assert (await start(here, "1", notify={"url": f"{url}/../admin"}))[0] == 400
        assert here.runner.running == 0, "refused before anything ran"
        for code, outcome in (("1", "succeeded"), ("defect", "internal")):
            begun = (await start(here, code, notify={"url": url}))[2]
            await until_async(lambda: len(here.state.live), not_)
            assert told.pop() == (url, begun["run_id"], outcome)

    play(tmp_path, act)


def test_results_are_there_after_a_restart_for_their_caller(tmp_path: Path) -> None:
    def opened() -> Results:
        return Results(Keeping(tmp_path / "r", max_bytes=1 << 20, age_s=100))

    assert opened().keep("1" * 32, 1001, 503, [b"{", b"}"])
    found = opened().find("1" * 32, 1001)
    assert found is not None
    assert (found.status, found.size_bytes, found.body()) == (503, 2, b"{}")
    assert opened().find("1" * 32, 1002) is None
    assert (tmp_path / "r" / f"1001-{'1' * 32}").stat().st_mode & 0o777 == 0o600
