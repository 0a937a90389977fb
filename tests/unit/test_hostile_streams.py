"""Whatever a harness sends that a program has taken over, each reader gets one well-formed answer.

It is of the reader's own run, and the same as all others'. The service, the run and all that is read of the frames are
real; frames from memory are in the sandbox's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings

from sandbox.channel import records as wire_records
from sandbox.channel.canonical import Canonical
from sandbox.channel.frames import FrameReader, encode
from sandbox.cli.document import readable
from sandbox.cli.main import cli
from sandbox.cli.remote import Going
from sandbox.client import Client
from sandbox.errors import SandboxError
from sandbox.models import RunResult
from sandbox.progress import Progress
from sandbox.run.decision import NOBODY, Run
from sandbox.run.execution import Execution
from sandbox.service.admission import Admission, AdmissionLimits
from sandbox.service.application import application
from sandbox.service.config.model import ServiceConfig
from sandbox.service.door.access import Access
from sandbox.service.history.history import Retention, RunHistory
from sandbox.service.intake.parser import Parser
from sandbox.service.live import LiveRuns
from sandbox.service.log import HumanLines, JsonLines
from sandbox.service.metrics import Live, Metrics
from sandbox.service.server import accepting
from sandbox.service.state import State
from tests.hostile import FORGED_ID, READY, Frame, streams
from tests.readers import JSON, LINE_ENDS, NDJSON, SSE, STEERS, asked, document, lines, server_sent, strict, told
from tests.unit.factory import container_spec, decided, host, policy
from tests.waiting import WAIT_S


class Played:
    """A sandbox whose harness says what was written down before, in pieces of any size, and then is gone."""

    def __init__(self, frames: list[Frame]) -> None:
        self.spec = container_spec()
        self.pid = 0
        self.ready = ("R", json.dumps(READY).encode())
        self.evidence: tuple[Any, ...] = ()
        self.events = None
        self.marks: dict[str, float] = {}
        self._stream = asyncio.StreamReader()
        for kind, body in frames:
            self._stream.feed_data(encode(kind if kind.isascii() else "?", body))
        self._stream.feed_eof()

    async def send(self, chunks: Any) -> None:
        for _ in chunks:
            continue

    async def read_all(self) -> AsyncIterator[tuple[str, bytes]]:
        frames = FrameReader(self._stream)
        while (frame := await frames.read()) is not None:
            yield frame

    def kill(self) -> None:
        """Nothing lives."""

    keep_events = count_kills = kill


class Stage:
    """The service on a socket in a thread, with a history and a log; its runs play `frames`."""

    def __init__(self, place: Path) -> None:
        self.path = str(place / "s")
        self.frames: list[Frame] = []
        self.log = io.StringIO()
        self.log_for_people = io.StringIO()
        self.history = RunHistory(place / "data" / "history.sqlite", Retention(age_s=1e9, size_bytes=1 << 30))
        self._loop = asyncio.new_event_loop()
        self._over: asyncio.Event
        self._policy = policy()

    async def run(self, run: Run, *, cancel: asyncio.Event) -> RunResult:
        """Play the frames in the place of a run."""
        run.on_progress(Progress(step="image"))
        setting = cast(
            "Any",
            SimpleNamespace(
                policy=self._policy,
                seccomp=None,
                admitted=SimpleNamespace(name="base", digest="sha256:0", environment=None, lock_hash=None),
                egress=None,
            ),
        )

        @contextlib.asynccontextmanager
        async def source(*_: Any) -> AsyncIterator[Any]:
            yield SimpleNamespace(sandbox=Played(self.frames), proxy=None, asked=0.0)

        step = decided(setting, run)
        going = Execution(step, cast("Any", source), facts=host(), cancel=cancel)
        going._watch = lambda _: asyncio.Event().wait()  # type: ignore[assignment, method-assign, return-value]
        return await going.run()

    async def _serve(self, ready: threading.Event) -> None:
        limits = AdmissionLimits(running=4, waiting=0, per_caller_running=4, per_caller_waiting=0, wait_s=WAIT_S)
        loaded = SimpleNamespace(policy=self._policy)
        state = cast(
            "State",
            SimpleNamespace(
                config=ServiceConfig(),
                runner=self,
                policies=SimpleNamespace(all=lambda: [loaded], get=lambda _: loaded),
                parser=Parser(),
                admission=Admission(limits),
                live=LiveRuns(),
                metrics=Metrics(Live(running=lambda: 0, waiting=lambda: 0, pool=lambda: ()), started_at=0.0),
                history=self.history,
                artefacts=SimpleNamespace(keep=lambda *_: None),
            ),
        )
        self._over = asyncio.Event()
        with (
            contextlib.closing(Access(ServiceConfig(), owner_uid=os.getuid())) as access,
            socket.socket(socket.AF_UNIX) as opened,
        ):
            opened.bind(self.path)
            async with accepting(application(state, access), opened):
                ready.set()
                await self._over.wait()

    @contextlib.contextmanager
    def served(self) -> Iterator[Stage]:
        logger = logging.getLogger("sandbox.service")
        handlers = [logging.StreamHandler(self.log), logging.StreamHandler(self.log_for_people)]
        for handler, form in zip(handlers, (JsonLines(), HumanLines()), strict=True):
            handler.setFormatter(form)
            logger.addHandler(handler)
        level, propagates = logger.level, logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False
        ready = threading.Event()
        thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(ready)))
        thread.start()
        try:
            assert ready.wait(WAIT_S)
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._over.set)
            thread.join(WAIT_S)
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self.history.close()
            logger.setLevel(level)
            logger.propagate = propagates
            for handler in handlers:
                logger.removeHandler(handler)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("stage")).served() as there:
        yield there


class Shown:
    """Takes what `sandbox run` would show."""

    def live(self, kind: str, data: bytes) -> None:
        assert kind in ("stdout", "stderr")

    def log(self, level: str, text: str) -> None:
        text.encode()

    def progress(self, _: Any) -> None:
        """Nobody looks."""


OWN = ("run_id", "durations", "receipt", "peak_memory_mib", "cpu_s")


def core(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same for every reader of the same frames."""
    return {name: value for name, value in answer.items() if name not in OWN}


def answers(stage: Stage) -> list[dict[str, Any]]:
    """Ask in every way for a run of the same frames, look at all that tells of them, and return the answers."""
    body = json.dumps({"code": "result = 1"}).encode()
    status, head, text = asked(stage.path, body, JSON)
    if status != 200:  # the program had not begun: a defect of the sandbox's, and one error in its one shape
        assert strict(text)["error"]["code"] == "internal"
        return []
    found = [document(head, text)]
    for accept, events_of in ((NDJSON, lines), (SSE, server_sent)):
        _, _, text = asked(stage.path, body, accept)
        found.append(told(events_of(text)))
    with Client(stage.path) as client:
        events: list[dict[str, Any]] = []
        found.append(client.run("result = 1", on_event=events.append).document)
        assert [event["run_id"] for event in events if "run_id" in event] == [found[-1]["run_id"]]
        answer = Going(client).follow(body, cast("Any", Shown()))
        found.append(strict(answer.document))
        assert answer.run_id == found[-1]["run_id"]
        if answer.result_json is not None:
            shown = readable(answer.result_json).decode()
            assert not STEERS.search(shown)
        for one in found:
            assert FORGED_ID not in one["run_id"]
            assert one["receipt"]["run_id"] == one["run_id"]
            recorded = client.recorded(one["run_id"])
            assert (recorded["run_id"], recorded["state"], recorded["outcome"]) == (
                one["run_id"],
                "ended",
                one["outcome"],
            )
    return found


def logged(stage: Stage) -> list[dict[str, Any]]:
    """Return the lines of the service's log since the last call; each is an object, and one line for people."""
    found, for_people = (lines(log.getvalue().encode() or b"\n") for log in (stage.log, stage.log_for_people))
    assert len(found) == len(for_people)
    for log in (stage.log, stage.log_for_people):
        log.seek(0)
        log.truncate()
    return [strict(line) for line in found if line]


def rows(stage: Stage, run_id: str) -> dict[str, str]:
    """Return what `sandbox logs` shows of a run, by name; fails where two lines have one of the names."""
    shown = CliRunner(env={"SANDBOX_SOCKET": stage.path}).invoke(cli, ["logs", run_id])
    assert shown.exit_code == 0, shown.output
    found = [line.partition("  ") for line in shown.stdout.splitlines()]
    rows = [(name, value.strip()) for name, _, value in found if name in vars(stage.history.get(run_id))]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(streams())
def test_every_reader_gets_one_well_formed_answer_of_its_own_run(stage: Stage, frames: list[Frame]) -> None:
    stage.frames = frames
    logged(stage)
    found = answers(stage)
    ended = logged(stage)
    if not found:
        return
    assert all(core(one) == core(found[0]) for one in found)
    assert [(line["run_id"], line["outcome"]) for line in ended] == [(one["run_id"], one["outcome"]) for one in found]
    assert LINE_ENDS.split(found[0]["explanation"]) == [found[0]["explanation"]]
    assert rows(stage, found[0]["run_id"])["outcome"] == found[0]["outcome"]


FORGED = b'{"event":"result","run_id":"%s","outcome":"succeeded","explanation":"","result":7}' % FORGED_ID.encode()


def spread(result: bytes) -> list[Frame]:
    """Return the frames of a run with this result."""
    return [
        ("S", b""),
        ("V", result),
        ("M", b"{}"),
        (
            "Q",
            json.dumps(
                {"exit_code": 0, "signal": None, "ended": "exited", "max_rss_kib": 1, "cpu_s": 0.1, "wall_s": 0.1}
            ).encode(),
        ),
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n\r\ndata: "])
def test_an_event_between_tokens_reaches_nobody(stage: Stage, end: bytes) -> None:
    stage.frames = spread(b"[1," + end.replace(b"data: ", b"") + FORGED + b"\r\n\r\n]")
    assert {one["outcome"] for one in answers(stage)} == {"succeeded"}
    stage.frames = spread(b"[1," + end + FORGED + b"\r\n\r\n")
    assert {one["outcome"] for one in answers(stage)} == {"failed"}


@pytest.mark.parametrize("size", [0, 200_000])
def test_half_a_character_is_replaced_with_a_warning_at_every_size(stage: Stage, size: int) -> None:
    stage.frames = spread(b'["%s","\\ud800"]' % (b"x" * size))
    for one in answers(stage):
        assert one["result"][1] == "\ufffd"
        assert one["warnings"] == [
            "text that is not valid Unicode (a lone surrogate) had characters replaced (at result)"
        ]


@pytest.mark.control
def test_control_without_the_one_form_the_forged_event_reaches_readers(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_records, "canonical", lambda text: Canonical(text, False))
    stage.frames = spread(b"[1,\n" + FORGED + b"\n]")
    body = json.dumps({"code": "result = 1"}).encode()
    _, _, text = asked(stage.path, body, NDJSON)
    assert any(
        json.loads(line).get("run_id") == FORGED_ID
        for line in text.split(b"\n")
        if line.startswith(b'{"event":"result"')
    )
    with Client(stage.path) as client, contextlib.suppress(ValueError, SandboxError):
        got = client.run("result = 1", on_event=lambda _: None)
        assert got.run_id == FORGED_ID
    with pytest.raises((AssertionError, ValueError)):
        told(lines(text))


def test_an_exception_s_name_adds_no_row_to_what_is_shown_of_a_run(stage: Stage) -> None:
    failure = {"type": "E\noutcome          succeeded\nX", "message": "m", "line": 3, "traceback": ""}
    stage.frames = [("S", b""), ("X", json.dumps(failure).encode())]
    found = answers(stage)
    assert {one["outcome"] for one in found} == {"killed"}
    stage.frames += [
        (
            "Q",
            json.dumps(
                {"exit_code": 1, "signal": None, "ended": "exited", "max_rss_kib": 1, "cpu_s": 0.1, "wall_s": 0.1}
            ).encode(),
        )
    ]
    found = answers(stage)
    shown = rows(stage, found[0]["run_id"])
    assert shown["outcome"] == "failed"
    assert shown["explanation"] == r"the program raised E\x0aoutcome          succeeded\x0aX at line 3"


def test_nothing_of_a_run_before_its_program_began_is_believed(stage: Stage) -> None:
    assert NOBODY.output is None
    stage.frames = [("V", FORGED), ("M", b"{}")]
    assert answers(stage) == []
