"""Log lines: JSON for programs, words for people, and nothing in them that breaks a line."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.service import log
from sandbox.service.config.model import Log
from sandbox.service.history.row import RunRow
from sandbox.service.log import WAITING_LINES, run_ended, set_up
from tests.waiting import WAIT_S, until

ROW = RunRow(
    run_id="a1",
    caller=1001,
    caller_name="alice",
    received=100.0,
    ended=100.25,
    policy="small",
    outcome="succeeded",
    node_id="n",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Give the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@contextlib.contextmanager
def lines(stream: io.StringIO, **settings: Any) -> Iterator[io.StringIO]:
    """Log into a stream, which has it all after the block."""
    with set_up(Log(**settings), stream):
        yield stream


def test_the_end_of_a_run_is_one_line_with_a_field_for_each_fact() -> None:
    with lines(io.StringIO()) as stream:
        run_ended(ROW)
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "level": "info",
        "logger": "sandbox.service",
        "message": "run a1 of alice under small: succeeded after 250 ms",
        "run_id": "a1",
        "caller": "alice",
        "policy": "small",
        "outcome": "succeeded",
        "duration_ms": 250.0,
    }


def test_on_a_terminal_it_is_a_sentence() -> None:
    with lines(Terminal()) as stream:
        run_ended(ROW)
    assert re.fullmatch(r"\d\d:\d\d:\d\d run a1 of alice under small: succeeded after 250 ms\n", stream.getvalue())


@pytest.mark.parametrize(
    ("setting", "stream", "human"),
    [("auto", Terminal, True), ("auto", io.StringIO, False), ("human", io.StringIO, True), ("json", Terminal, False)],
)
def test_the_setting_comes_before_what_the_stream_is(setting: str, stream: type[io.StringIO], human: bool) -> None:
    with lines(stream(), format=setting) as written:
        logging.getLogger("sandbox.x").warning("careful")
    assert written.getvalue().endswith("warning: careful\n") == human
    assert written.getvalue().startswith("{") != human


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_comes_from_outside_breaks_no_line(stream: type[io.StringIO]) -> None:
    with lines(stream()) as written:
        run_ended(
            RunRow(
                run_id="a1",
                caller=1,
                caller_name="x",
                received=1.0,
                policy="\x1b[31m\n{}\u2028" + "y" * 1000,
                outcome="not_found",
            )
        )
    assert len(written.getvalue().splitlines()) == 1
    assert written.getvalue().isascii()
    assert "\x1b" not in written.getvalue()
    assert len(written.getvalue()) < 500


def test_a_traceback_comes_along_and_a_level_leaves_lines_out() -> None:
    with lines(io.StringIO(), level="error") as stream:
        logging.getLogger("sandbox.x").warning("left out")
        try:
            raise ValueError("a defect")
        except ValueError:
            logging.getLogger("sandbox.x").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["level"] == "error"
    assert "ValueError: a defect" in json.loads(line)["traceback"]


def test_a_log_that_nobody_reads_keeps_nobody_waiting_and_says_how_much_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log, "LAST_S", 30.0)
    reading, writing = os.pipe()
    count = said = 2 * WAITING_LINES
    read: list[str] = []
    with os.fdopen(writing, "w") as stream, os.fdopen(reading) as reader:
        with set_up(Log(), stream):
            for number in range(count):  # many times what a pipe holds; with a plain StreamHandler it never ends
                logging.getLogger("sandbox.x").info("line %d", number)
            there = threading.Thread(target=lambda: read.extend(reader))
            there.start()

            def told_after_one_more() -> list[str]:
                nonlocal said
                logging.getLogger("sandbox.x").info("one more")
                said += 1
                return [line for line in read if "are lost" in line]

            until(told_after_one_more)
        stream.close()
        there.join(10)
    found = [json.loads(line) for line in read]
    numbers = [int(line["message"].split()[1]) for line in found if line["message"].startswith("line ")]
    lost = sum(int(line["message"].split()[0]) for line in found if "are lost" in line["message"])
    others = sum(line["message"] == "one more" for line in found)
    assert numbers == sorted(set(numbers)), "what is kept is in order"
    assert WAITING_LINES <= len(numbers) < count
    assert len(numbers) + others + lost == said, "each line is there, or told as lost"


def test_the_end_of_the_service_does_not_wait_for_whoever_reads_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LAST_S", 0.1)
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")

    def whole_life() -> None:
        with set_up(Log(), stream):
            for number in range(5_000):
                logging.getLogger("sandbox.x").info("line %d", number)

    life = threading.Thread(target=whole_life, daemon=True)
    life.start()
    life.join(WAIT_S)
    waits = life.is_alive()
    os.close(reading)  # which ends the thread's write, too
    assert not waits
    with contextlib.suppress(BrokenPipeError):
        stream.close()
