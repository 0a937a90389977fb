"""The processes that take bodies apart: the same answer as at once, and limits that hold.

Nobody waits for somebody else's text.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.errors import Internal, InvalidRequest, PolicyDenied, SandboxError
from sandbox.service.intake import asked, parser
from sandbox.service.intake.asked import UnknownPolicy, run_asked
from sandbox.service.intake.parser import Parser, ParserProcess
from sandbox.service.intake.parser_program import CPU_S
from sandbox.service.intake.spool import SMALL_BYTES, Spool
from tests.unit.factory import KNOWN
from tests.waiting import until_async

LARGE = SMALL_BYTES + 1


def spooled(body: bytes, piece_bytes: int = 32 << 10) -> Spool:
    """Return a body as it comes, in pieces."""
    spool = Spool()
    for start in range(0, len(body), piece_bytes):
        spool.add(body[start : start + piece_bytes])
    return spool


def fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="module")
def process() -> Iterator[ParserProcess]:
    """Return one process for many bodies."""
    one = ParserProcess()
    yield one
    one.close()


def found(process: ParserProcess, body: bytes, kind: str = "run") -> Any:
    """Return what the process makes of a body: what is asked for, with large parts, or the error's kind and words."""
    try:
        return asyncio.run(process.asked(kind, spooled(body), KNOWN, uid=1))
    except (InvalidRequest, PolicyDenied, UnknownPolicy) as error:
        return type(error), str(error)


def at_once(body: bytes) -> Any:
    try:
        wanted, parts = run_asked(body, KNOWN)
    except (InvalidRequest, PolicyDenied, UnknownPolicy) as error:
        return type(error), str(error)
    return wanted, [bytes(memoryview(part)) for part in parts]


def turn(act: Callable[[Parser], Awaitable[None]], **options: float) -> None:
    """Do something with a new parser, and end it."""

    async def scene() -> None:
        both = Parser(**options)
        try:
            await act(both)
        finally:
            both.close()

    asyncio.run(scene())


def pid_of(process: ParserProcess) -> int:
    assert process._process is not None
    return process._process.pid


# ---- the same answer

VALUES = st.recursive(
    st.one_of(st.none(), st.integers(-9, 99_999), st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)
FIELDS = st.lists(
    st.tuples(
        st.sampled_from(
            ["payload", "message", "files", "code", "cod\\u0065", "requirements", "policy", "limits", "env"]
        ),
        VALUES,
    ),
    max_size=6,
)
CHANGE = st.none() | st.tuples(
    st.integers(0), st.sampled_from([b"", *(char.encode() for char in '"[]{},:1\\ \x01')]), st.booleans()
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FIELDS, st.booleans(), CHANGE, st.sampled_from([None, 0, 2]))
def test_what_the_process_makes_of_a_body_is_what_is_made_of_it_at_once(
    process: ParserProcess,
    fields: list[tuple[str, Any]],
    plain: bool,
    change: tuple[int, bytes, bool] | None,
    indent: int | None,
) -> None:
    members = ", ".join(
        f'"{name}": {json.dumps(value, ensure_ascii=plain, indent=indent)}'
        for name, value in [*fields, ("code", "result = payload")]
    )
    body = b"{%s}" % members.encode()
    if change is not None:
        place, put, instead = change
        at = place % (len(body) + 1)
        body = body[:at] + put + body[at + instead :]
    assert found(process, body) == at_once(body)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "payload": "x" * (3 * LARGE),
            "message": {"m": ["é"] * LARGE},
            "files": {"a": "YWJj" * LARGE, "b": "", "c": "YQ=="},
        },
        {"payload": [{"a": None}] * 200_000, "env": {"LANG": "x" * 900_000}, "secrets": {"A": "b"}},
        {
            "code": "# /// script\n# dependencies = ['six']\n# ///",
            "topic": "t" * 60_000,
            "limits": {"timeout_s": 0.5},
            "wait_for_end": True,
        },
        {
            "requirements": ["six", "tiny<2"],
            "preload": ["json"],
            "image": "i",
            "node_id": "n",
            "notify": {"url": "http://a/"},
        },
        {"code": "x" * (1 << 20)},
        {"code": "x" * (9 << 20)},
        {"policy": "no such"},
        {"payload": ["[" * 70_000]},
        {"message": []},
    ],
)
def test_however_large_a_body_is_and_whatever_it_has(process: ParserProcess, fields: dict[str, Any]) -> None:
    body = json.dumps({"code": "1", **fields}).encode()
    assert found(process, body) == at_once(body)


@given(st.sampled_from(["requirements", "code"]), st.data())
def test_no_way_to_write_json_has_libraries_parsed_in_the_service(name: str, data: st.DataObject) -> None:
    """Whatever names libraries goes to the process, however its characters are written."""

    def written(text: str) -> str:
        return "".join(
            data.draw(st.sampled_from([char, f"\\u{ord(char):04x}", *(["\\/"] if char == "/" else [])]))
            for char in text
        )

    value = f'["{written("six")}"]' if name == "requirements" else f'"{written("# /// script")}\\n# ///"'
    body = f'{{"code": "1", "{written(name)}": {value}}}'.encode()
    with pytest.MonkeyPatch.context() as patched:
        for parse in ("parse_libraries", "parse_script"):
            patched.setattr(asked, parse, lambda *_: pytest.fail("parsed in the service"))
        patched.setattr(ParserProcess, "asked", lambda *_, **__: asyncio.sleep(0, "elsewhere"))
        answer: Any = asyncio.run(Parser().asked("run", spooled(body), KNOWN, uid=1))
        assert answer == "elsewhere"


def test_a_short_body_without_libraries_needs_no_process() -> None:
    async def act(both: Parser) -> None:
        wanted, parts = await both.asked("run", spooled(b'{"code": "result = 1", "payload": [1]}'), KNOWN, uid=1)
        assert (wanted.request.code, parts) == ("result = 1", [b"[1]", b"{}"])
        assert both._small._process is both._large._process is None

    turn(act)


# ---- limits

STUCK = "def stuck(body, code_kib):\n    while True: pass\n"
GREEDY = "def stuck(body, code_kib):\n    return [bytes(len(body)) for _ in range(1000)]\n"


def with_kind(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Have the process take bodies apart with other code, as if a parser were that bad."""
    lines = f"from sandbox.service.intake import parser_program as parsing\n{text}parsing.KINDS['run'] = stuck\n"
    monkeypatch.setattr(
        parser,
        "PROGRAM",
        parser.PROGRAM.replace("from sandbox.service.intake.parser_program import main;", "").replace(
            "main()", f"exec({lines!r}); parsing.main()"
        ),
    )


@pytest.mark.parametrize(("text", "options"), [(STUCK, {"most_s": 0.3}), (GREEDY, {})], ids=["time", "memory"])
def test_a_body_that_takes_too_much_is_refused_and_the_next_one_is_not(
    monkeypatch: pytest.MonkeyPatch, text: str, options: dict[str, float]
) -> None:
    body = json.dumps({"code": "1", "payload": "x" * LARGE}).encode()

    async def act(both: Parser) -> None:
        await both.asked("run", spooled(body), KNOWN, uid=1)
        with monkeypatch.context() as patched:
            with_kind(patched, text)
            both._large._end()
            with pytest.raises(InvalidRequest, match="too much time or memory"):
                await both.asked("run", spooled(body), KNOWN, uid=1)
        wanted, parts = await both.asked("run", spooled(body), KNOWN, uid=1)
        assert (wanted.request.code, len(parts[0])) == ("1", LARGE + 2)

    turn(act, **options)


def test_the_process_ends_itself_when_it_has_had_its_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kind(monkeypatch, "parsing.CPU_S = 0\n" + STUCK)
    ends: list[int] = []

    async def act(both: Parser) -> None:
        end = both._small._end

        def seen() -> None:
            if both._small._process is not None:
                ends.append(both._small._process.wait())
            end()

        monkeypatch.setattr(both._small, "_end", seen)
        with pytest.raises(InvalidRequest, match="too much time or memory"):
            await both.asked("run", spooled(b'{"code": "1", "requirements": ["six"]}'), KNOWN, uid=1)

    turn(act)
    assert ends[0] == -signal.SIGXCPU
    assert CPU_S >= 1


@pytest.mark.parametrize("program", ["raise SystemExit", "import no_such_module", "import time; time.sleep(60)"])
def test_a_process_that_does_not_come_up_is_not_the_body_s_fault(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(parser, "PROGRAM", program)
    monkeypatch.setattr(parser, "MOST_S", 0.5)

    async def act(both: Parser) -> None:
        with pytest.raises(Internal, match="could not be started"):
            await both.asked("run", spooled(b'{"code": "1", "requirements": ["six"]}'), KNOWN, uid=1)

    turn(act, most_s=0.5)


@pytest.mark.parametrize(("missing", "code"), [("memfd_create", "queue_full"), ("socketpair", "internal")])
def test_without_a_descriptor_left_the_answer_says_to_try_again(
    monkeypatch: pytest.MonkeyPatch, missing: str, code: str
) -> None:
    def none_left(*_: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def act(both: Parser) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(os if missing == "memfd_create" else socket, missing, none_left)
            with pytest.raises(SandboxError) as told:
                await both.asked("run", spooled(b'{"code": "1", "requirements": ["six"]}'), KNOWN, uid=1)
        assert told.value.code == code
        assert "try again" in told.value.hint
        await both.asked("run", spooled(b'{"code": "1", "requirements": ["six"]}'), KNOWN, uid=1)

    turn(act)


def test_a_defect_is_told_without_the_caller_s_text_and_the_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kind(monkeypatch, "def stuck(body, code_kib):\n    raise KeyError(bytes(body))\n")

    async def act(both: Parser) -> None:
        for _ in range(2):
            with pytest.raises(Internal, match=r"defect: KeyError in <string>, line 3") as told:
                await both.asked("run", spooled(b'{"code": "s3cret", "requirements": ["six"]}'), KNOWN, uid=1)
            assert "s3cret" not in str(told.value)
            pids.add(pid_of(both._small))

    pids: set[int] = set()
    turn(act)
    assert len(pids) == 1


def test_small_bodies_do_not_wait_for_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(both: Parser) -> None:
        await both.asked("run", spooled(b'{"code": "1", "requirements": ["six"]}'), KNOWN, uid=1)
        with monkeypatch.context() as patched:
            with_kind(patched, STUCK)
            waiting = asyncio.create_task(both.asked("run", spooled(b'{"code": "%s"}' % (b"x" * LARGE)), KNOWN, uid=1))
            await until_async(lambda: both._large._process)
        wanted, _ = await both.asked("run", spooled(b'{"code": "2", "requirements": ["six"]}'), KNOWN, uid=1)
        assert (wanted.request.code, waiting.done()) == ("2", False)
        os.kill(pid_of(both._large), signal.SIGKILL)
        with pytest.raises((InvalidRequest, Internal)):  # it may not have begun
            await waiting

    turn(act)


def test_who_has_few_bodies_does_not_wait_for_all_that_another_one_has() -> None:
    async def act(both: Parser) -> None:
        body = b'{"code": "1", "requirements": ["six"]}'
        ended: list[int] = []

        async def ask(uid: int) -> None:
            await both.asked("run", spooled(body), KNOWN, uid=uid)
            ended.append(uid)

        await asyncio.gather(*(ask(uid) for uid in [1] * 30 + [2] * 2))
        assert {place for place, uid in enumerate(ended) if uid == 2} <= set(range(1, 6))

    turn(act)


def test_who_goes_away_leaves_nothing_behind_and_the_next_one_gets_an_answer_of_its_own() -> None:
    async def act(both: Parser) -> None:
        body = b'{"code": "%d", "payload": "' + b"x" * LARGE + b'"}'
        await both.asked("run", spooled(body.replace(b"%d", b"0")), KNOWN, uid=1)
        before = fds()
        for number in range(1, 20):
            gone = [
                asyncio.create_task(both.asked("run", spooled(body.replace(b"%d", b"9")), KNOWN, uid=1))
                for _ in range(3)
            ]
            await asyncio.sleep(0.0005 * number)
            for task in gone:
                task.cancel()
            ended = await asyncio.gather(*gone, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) or one[0].request.code == "9" for one in ended)  # type: ignore[index]
            wanted, _ = await both.asked("run", spooled(body.replace(b"%d", b"%d" % number)), KNOWN, uid=1)
            assert wanted.request.code == str(number)
        assert fds() == before

    turn(act)


def test_the_process_has_no_descriptor_and_no_variable_of_the_service_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SANDBOX_TEST_SECRET", "s3cret")
    one = ParserProcess()
    with open("/dev/null", "rb") as held:
        os.set_inheritable(held.fileno(), True)
        asyncio.run(one.asked("run", spooled(b'{"code": "1", "requirements": ["six"]}'), KNOWN, uid=1))
        place = Path(f"/proc/{pid_of(one)}")
        assert {entry.name for entry in (place / "fd").iterdir()} == {"0", "1", "2"}
        assert b"s3cret" not in (place / "environ").read_bytes()
    assert one._channel is not None
    one._channel.close()  # as the kernel does when the service is gone
    assert one._process is not None
    assert one._process.wait(10) == 0
    one.close()


def test_no_module_is_taken_from_the_directory_that_the_service_was_started_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Anybody may write to it, as to /tmp."""
    for name in ("json", "sandbox", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'taken')!r}, 'w')")
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    one = ParserProcess()
    wanted, _ = found(one, b'{"code": "1", "requirements": ["six"]}')
    one.close()
    assert wanted.request.code == "1"
    assert not (tmp_path / "taken").exists()


def test_a_long_program_takes_nothing_of_what_the_next_one_may(process: ParserProcess) -> None:
    for _ in range(3):  # four bytes for each character, once one of them needs four
        body = json.dumps({"code": "\U0001f600" + "a" * (13 << 20)}, ensure_ascii=False).encode()
        wanted, _ = asyncio.run(process.asked("run", spooled(body), {"default": 16 << 10}, uid=1))
        assert len(wanted.request.code) == (13 << 20) + 1


def test_memory_comes_back(process: ParserProcess) -> None:
    body = b'{"code": "1", "payload": "' + b"x" * (64 << 20) + b'"}'

    def rss_kib(pid: int | str) -> int:
        return int(
            next(
                line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")
            ).split()[1]
        )

    found(process, b'{"code": "1", "requirements": ["six"]}')
    before = rss_kib(pid_of(process)), rss_kib("self")
    for _ in range(3):
        found(process, body)
    after = rss_kib(pid_of(process)), rss_kib("self")
    assert after[0] < before[0] + (8 << 10)
    assert after[1] < before[1] + (80 << 10)  # this process' allocator is not the service's
