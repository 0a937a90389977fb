"""Runs over HTTP, with a runner that only pretends.

They show statuses, streams, what is held for those who do not read, and the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandbox.errors import EngineUnavailable, PolicyDenied
from sandbox.models import LogRecord, Outcome, RunRequest, RunResult, SavedFile
from sandbox.progress import Progress
from sandbox.run.decision import Run
from sandbox.service import answers, server
from sandbox.service.admission import Admission, AdmissionLimits
from sandbox.service.application import application
from sandbox.service.config.model import Queue, ServiceConfig, Socket
from sandbox.service.door.access import Access, Identity, Peer
from sandbox.service.history.keeping import Keeping
from sandbox.service.history.kept_answers import Results
from sandbox.service.history.record import mask_of
from sandbox.service.history.secret_mask import Mask
from sandbox.service.intake.budget import Budget
from sandbox.service.intake.parser import Parser
from sandbox.service.live import LiveRuns
from sandbox.service.metrics import Live, Metrics
from sandbox.service.routes import work
from sandbox.service.routes.events import Events
from sandbox.service.server import accepting, drained
from sandbox.service.state import State
from sandbox.service.webhooks.sending import WebhookSender
from tests.unit.factory import policy
from tests.waiting import WAIT_S, until_async

POLICY = policy()
LOADED = SimpleNamespace(policy=POLICY)
STRANGER = 4_000_000
CLOCK = itertools.count(0.0, 1_000.0).__next__  # no name is believed for long
CONFIG = ServiceConfig(socket=Socket(path="/s", group="g"))
NDJSON = "application/x-ndjson"


@pytest.fixture(autouse=True)
def soon_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the clients that read nothing little time at the end of each test."""
    monkeypatch.setattr(server, "SENT_S", 0.1)


class Pretended:
    """A runner whose runs do what their code says; `go` lets those that wait end."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running = 0
        self.cleaned = False

    async def run(self, run: Run, *, cancel: asyncio.Event) -> RunResult:
        """Do it."""
        wanted, follow = run.request, run.follow
        if wanted.code == "refused":
            raise PolicyDenied("no", hint="ask")
        run.on_progress(Progress(step="image"))
        self.running += 1
        files: tuple[SavedFile, ...] = ()
        if wanted.code == "late":
            raise EngineUnavailable("gone", hint="wait")
        if wanted.code == "defect":
            raise RuntimeError("a defect")
        if wanted.code == "fails later":
            await self.go.wait()
            raise EngineUnavailable("gone", hint="wait")
        if wanted.code == "waits":
            await self.go.wait()
        if wanted.code == "until cancelled":
            await cancel.wait()
        if wanted.code == "hangs":
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)
                self.cleaned = True
        if wanted.code == "tells":
            assert follow.output
            assert follow.log
            assert follow.file
            follow.output("stdout", b"out")
            follow.output("stderr", b"\xff")
            follow.log(LogRecord(level="warning", message="careful", elapsed_s=0.5))
            follow.file("a.bin", bytearray(b"\x00\x01" * 100_000))
        if wanted.code == "saves":
            files = (SavedFile(name="a", content=b"x" * (4 << 20)),)
        size = int(wanted.code.removeprefix("mib ")) << 20 if wanted.code.startswith("mib ") else 1
        result = b'"%s"' % (b"x" * size)
        return RunResult(run_id=run.id, outcome=Outcome.SUCCEEDED, result_json=result, files=files)


class Scene:
    """The service's routes on a socket, in front of pretended runs."""

    def __init__(self, path: str, *, running: int, waiting: int, budget_mib: int, results_mib: int = 64) -> None:
        self.path = path
        self.runner = Pretended()
        self.ended: list[Any] = []
        self.history = SimpleNamespace(
            began=lambda row: None,
            ended=self.ended.append,
            flush=lambda timeout_s: True,
            get=lambda run_id, caller: next(
                (row for row in self.ended if row.run_id == run_id and caller in (None, row.caller)), None
            ),
        )
        self.stranger = False  # whether requests come from another user, who may run, too
        self.keep_files = asyncio.Event()
        self.clients: list[asyncio.StreamWriter] = []
        self.metrics = Metrics(Live(running=lambda: 0, waiting=lambda: 0, pool=lambda: ()), started_at=0.0)
        limits = AdmissionLimits(
            running=running, waiting=waiting, per_caller_running=running, per_caller_waiting=waiting, wait_s=WAIT_S
        )
        loop = asyncio.get_running_loop()

        def keep(run_id: str, owner: int, files: Any) -> None:
            asyncio.run_coroutine_threadsafe(cast("Any", self.keep_files.wait()), loop).result(WAIT_S)

        self.state = cast(
            "State",
            SimpleNamespace(
                config=ServiceConfig(queue=Queue(running=running, bodies_mib=budget_mib)),
                runner=self.runner,
                policies=SimpleNamespace(all=lambda: [LOADED], get=lambda name: LOADED),
                parser=Parser(),
                admission=Admission(limits),
                live=LiveRuns(),
                metrics=self.metrics,
                history=self.history,
                artefacts=SimpleNamespace(keep=keep, list=lambda *_: ()),
                results=Results(Keeping(Path(path).with_name("results"), max_bytes=results_mib << 20, age_s=1_000)),
                webhooks=WebhookSender(()),
            ),
        )

    async def ask(
        self, code: str, *, accept: str = "application/json", **more: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a run on a connection of its own."""
        body = json.dumps({"code": code, **more}).encode()
        reader, writer = await asyncio.open_unix_connection(self.path, limit=1 << 16)
        head = "POST /v1/runs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: %s\r\nContent-Length: %d\r\n\r\n"
        writer.write((head % (accept, len(body))).encode() + body)
        await writer.drain()
        self.clients.append(writer)
        return reader, writer

    async def answer(self, code: str, *, accept: str = "application/json", **more: Any) -> tuple[int, str, bytes]:
        """Send a run, and return the answer's status, head and body."""
        reader, writer = await self.ask(code, accept=accept, **more)
        head, _, body = (await asyncio.wait_for(reader.read(-1), WAIT_S)).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), head.decode(), body

    async def events(self, code: str) -> list[dict[str, Any]]:
        """Return the events of a run."""
        status, _, body = await self.answer(code, accept=NDJSON)
        assert status == 200, body
        return [json.loads(line) for line in whole(body).splitlines()]

    def name(self, peer: Peer) -> Identity:
        """Tell who asks: the kernel's word can't be had for another user here."""
        return Identity(uid=STRANGER if self.stranger else peer.uid, user="u", groups=frozenset({"g"}))

    def errors(self, code: str) -> bool:
        """Tell whether one answer with this error was counted."""
        return f'sandbox_errors_total{{code="{code}"}} 1.0' in self.metrics.render().decode()


def whole(chunks: bytes) -> bytes:
    """Return the body that came in chunks."""
    body = b""
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        body, chunks = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


def play(
    tmp_path: Path,
    act: Callable[[Scene], Awaitable[None]],
    *,
    running: int = 4,
    waiting: int = 0,
    budget_mib: int = 512,
    drain_s: float | None = None,
) -> bool:
    """Serve, act and stop; tell whether a run that hung was cleaned up by then."""
    cleaned: list[bool] = []

    async def scene() -> None:
        here = Scene(str(tmp_path / "s"), running=running, waiting=waiting, budget_mib=budget_mib)
        with (
            contextlib.closing(Access(CONFIG, owner_uid=-1, names=here.name, clock=CLOCK)) as access,
            contextlib.closing(here.state.parser),
            socket.socket(socket.AF_UNIX) as opened,
        ):
            opened.bind(here.path)
            async with accepting(application(here.state, access), opened):
                await act(here)
                if drain_s is not None:
                    await drained(here.state, drain_s)
            cleaned.append(here.runner.cleaned)
            for client in here.clients:
                client.transport.abort()
            await asyncio.sleep(0)

    asyncio.run(scene())
    return cleaned[0]


# ---- what is refused is refused by its status, also in a stream


def test_what_is_refused_before_it_begins_has_its_own_status_in_a_stream_too(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        status, head, body = await here.answer("refused", accept=NDJSON)
        assert (status, "application/json" in head) == (403, True)
        error = json.loads(body)["error"]
        assert (error["code"], len(error["run_id"]), error["facts"]) == ("policy_denied", 32, {})
        assert here.errors("policy_denied")

    play(tmp_path, act)


def test_a_full_queue_is_429_with_retry_after_in_a_stream_too(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        _, writer = await here.ask("waits")
        await until_async(lambda: here.runner.running, 1)
        status, head, body = await here.answer("1", accept=NDJSON)
        assert (status, "Retry-After: 1" in head, json.loads(body)["error"]["code"]) == (429, True, "queue_full")
        assert here.errors("queue_full")
        writer.close()

    play(tmp_path, act, running=1)


@pytest.mark.parametrize(("code", "error"), [("late", "engine_unavailable"), ("defect", "internal")])
def test_an_error_that_comes_later_is_an_event_and_counted(tmp_path: Path, code: str, error: str) -> None:
    async def act(here: Scene) -> None:
        events = await here.events(code)
        assert [event["event"] for event in events] == ["accepted", "progress", "error"]
        assert events[-1]["error"]["code"] == error
        if error != "internal":
            assert events[-1]["error"]["run_id"] == events[0]["run_id"]
            assert events[-1]["error"]["facts"] == {}
        assert here.errors(error)

    play(tmp_path, act)


def test_a_stream_has_output_logs_with_their_level_and_files_before_the_result(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        events = await here.events("tells")
        assert [event["event"] for event in events] == [
            "accepted",
            "progress",
            "stdout",
            "stderr",
            "log",
            "file",
            "result",
        ]
        out, broken, log, file, result = events[2:]
        assert (out["text"], broken["text"], broken["base64"]) == ("out", "\\xff", "/w==")
        assert {name: log[name] for name in ("level", "text", "elapsed_s")} == {
            "level": "warning",
            "text": "careful",
            "elapsed_s": 0.5,
        }
        assert (file["name"], file["size_bytes"], file["content_base64"][:4]) == ("a.bin", 200_000, "AAEA")
        assert (result["outcome"], result["result"]) == ("succeeded", "x")

    play(tmp_path, act)


# ---- what waits for a slow client


def test_output_in_tiny_pieces_waits_in_memory_that_stays_in_proportion() -> None:
    budget = Budget(1 << 30)
    part = budget.part(1)
    events = Events(part)
    for _ in range(200_000):
        events.output("stdout", b"x")
    assert 200_000 <= part.size_bytes < 210_000
    assert len(events._waiting) < 10
    events.output("stderr", b"y")
    events.output("stdout", b"z")
    assert [event.stream for event in list(events._waiting)[-3:]] == ["stdout", "stderr", "stdout"]  # type: ignore[attr-defined]
    events.leave()
    assert part.size_bytes == 0


def test_bodies_of_every_size_are_taken(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        for kib in (1, 15, 16, 17, 31, 32, 33, 40, 48, 60, 63, 64, 65, 96, 129, 300):
            status, _, _ = await here.answer("plain", payload="x" * (kib << 10))
            assert status == 200, f"{kib} KiB"

    play(tmp_path, act)


@pytest.mark.parametrize("accept", ["application/json", NDJSON])
def test_who_does_not_read_its_answers_gets_no_more_until_it_does(tmp_path: Path, accept: str) -> None:
    async def act(here: Scene) -> None:
        unread: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        while len(unread) < 20:
            reader, writer = await here.ask("mib 4", accept=accept)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
            if b" 200 " not in head:
                assert b" 429 " in head
                assert b"answers that you have not read" in await reader.read(1000)
                writer.close()
                break
            unread.append((reader, writer))
            await until_async(lambda: len(here.ended), len(unread))  # its answer is there, and counted
        assert len(unread) in (2, 3), "half of 16 MiB"
        for reader, writer in unread:
            assert len(await reader.read(-1)) > 4 << 20
            writer.close()
        assert (await here.answer("1"))[0] == 200

    play(tmp_path, act, budget_mib=16)


def test_requests_that_waited_while_answers_came_that_nobody_reads_are_not_run(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        asked = [await here.ask("mib 4") for _ in range(10)]
        heads = [await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S) for reader, _ in asked]
        assert sum(b" 200 " in head for head in heads) == here.runner.running
        assert here.runner.running in (2, 3), "half of 16 MiB"
        assert sum(b" 429 " in head for head in heads) == 10 - here.runner.running

    play(tmp_path, act, budget_mib=16, running=1, waiting=10)


def test_a_result_counts_before_the_next_run_begins(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        for _ in range(10):
            await here.ask("saves")  # its files are on their way to the disk, and it gave its turn back
        await until_async(lambda: here.state.admission.counts().waiting, 0)
        assert here.runner.running in (2, 3), "half of 16 MiB"
        here.keep_files.set()

    play(tmp_path, act, budget_mib=16, running=1, waiting=10)


def test_a_client_that_reads_but_too_slowly_is_cut_off_and_its_part_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "WRITE_TIMEOUT_S", 0.4)
    monkeypatch.setattr(answers, "LEAST_RATE", 1 << 30)

    async def act(here: Scene) -> None:
        reader, writer = await here.ask("mib 16")
        got = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(32 << 10):  # each piece in far less than the time for one
                got += len(data)
                await asyncio.sleep(0.01)
        assert 32 << 10 <= got < 16 << 20
        writer.close()
        assert (await here.answer("mib 16"))[0] == 200, "the control: one that reads"

    play(tmp_path, act, budget_mib=1)


# ---- runs that go on without their clients


def test_an_error_of_a_run_whose_client_has_left_is_in_the_history_and_nowhere_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(here: Scene) -> None:
        for accept in ("application/json", NDJSON):
            _, writer = await here.ask("fails later", accept=accept, wait_for_end=True)
            await until_async(lambda: here.runner.running, 1)
            writer.close()
            await asyncio.sleep(0.05)
            here.runner.go.set()
            await until_async(lambda: len(here.ended), 1)
            assert here.ended.pop().outcome == "engine_unavailable"
            here.runner.go.clear()
            here.runner.running = 0
            await asyncio.sleep(0.01)
            gc.collect()

    play(tmp_path, act)
    assert "never retrieved" not in caplog.text
    assert not caplog.records


def test_a_run_that_goes_on_without_its_client_is_taken_though_its_body_is_most_of_the_budget(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        for accept in ("application/json", NDJSON):
            assert (await here.answer("1", accept=accept, wait_for_end=True, payload="x" * (3 << 20)))[0] == 200
        assert (await here.answer("mib 1", payload="x" * (3 << 20)))[0] == 200, "nothing of the others is held"

    play(tmp_path, act, budget_mib=1)


# ---- the end


def test_a_client_that_does_not_read_and_a_run_that_goes_on_do_not_keep_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STOP_GRACE_S", 0.1)
    over = asyncio.Event()

    async def act(here: Scene) -> None:
        for code, accept in (
            ("mib 4", "application/json"),
            ("mib 4", NDJSON),
            ("until cancelled", NDJSON),
            ("hangs", "application/json"),
        ):
            await here.ask(code, accept=accept)
        await until_async(lambda: here.runner.running, 4)
        over.set()

    async def in_time() -> bool:
        return await asyncio.wait_for(asyncio.to_thread(play, tmp_path, act, drain_s=0.1), WAIT_S / 2)

    assert asyncio.run(in_time()), "what it used was still being given back"
    assert over.is_set()


def test_a_run_that_goes_on_without_its_client_gets_its_row_before_the_service_ends(tmp_path: Path) -> None:
    scenes: list[Scene] = []

    async def act(here: Scene) -> None:
        scenes.append(here)
        _, writer = await here.ask("saves", wait_for_end=True)
        await until_async(lambda: here.runner.running, 1)
        writer.close()
        asyncio.get_running_loop().call_later(0.3, here.keep_files.set)

    play(tmp_path, act, drain_s=5.0)
    assert [row.outcome for row in scenes[0].ended] == ["succeeded"]


def test_runs_that_wait_hold_nothing_of_what_looks_for_their_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[Mask] = []

    def recorded(wanted: RunRequest) -> Mask:
        masks.append(mask_of(wanted))
        return masks[-1]

    monkeypatch.setattr(work, "mask_of", recorded)
    secrets = {"KEY": "a value\n" * 100}

    async def act(here: Scene) -> None:
        asked = [asyncio.create_task(here.answer(code, secrets=secrets)) for code in ("waits", "late")]
        await until_async(lambda: here.state.admission.counts().waiting, 1)
        assert [mask.takes_long and "_forms" not in vars(mask) for mask in masks] == [True, True]
        here.runner.go.set()
        assert [status for status, _, _ in await asyncio.gather(*asked)] == [200, 503]
        assert all(vars(mask)["_forms"] for mask in masks[:2]), "made beside the event loop, before they are needed"

    play(tmp_path, act, running=1, waiting=1)
