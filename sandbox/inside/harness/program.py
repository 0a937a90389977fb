"""One run of the user's code, in the child process."""

from __future__ import annotations

import gc
import os
import sys

from sandbox.inside.harness.channel import Nobody
from sandbox.inside.harness.compiling import compile_program, execute
from sandbox.inside.harness.directory import DIRECTORY, forget_harness
from sandbox.inside.harness.failures import error_record, location_of, traceback_text, type_and_message
from sandbox.inside.harness.handing_on import MAX_KEPT_BYTES, MODULE, STARTUP, hand_on, handed, stored
from sandbox.inside.harness.json_text import HALF_REPLACED, from_json, json_chunks, json_record, whole_text
from sandbox.inside.harness.leavings import Leavings
from sandbox.inside.harness.limits import CHUNK_BYTES, MAX_TOPIC_CHARS, MAX_WARNING_CHARS, MAX_WARNINGS
from sandbox.inside.harness.process import (
    LIBRARIES,
    add_libraries,
    address_space,
    call_own_hook,
    exit_status,
    leave,
    report_by_traceback,
    reseed,
    set_dumpable,
    set_limits,
    set_local_time,
    wait_for_threads,
)
from sandbox.inside.harness.program_functions import Helpers
from sandbox.inside.harness.sources import SourceLoader, own_name, show_own_lines, write_own
from sandbox.inside.harness.streams import hear_of_the_end, open_streams
from sandbox.inside.harness.text import clean, text_of
from sandbox.inside.harness.values import Converter, ResultTooLargeError, type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from sandbox.inside.harness.channel import Channel


RESERVE_BYTES = 8 << 20
GIVEN = ("topic", "timestamp", "run_id", "node_id")
# For what has buffers of its own on these pipes: other Python programs, and what is written in Fortran.
UNBUFFERED = {"PYTHONUNBUFFERED": "1", "GFORTRAN_UNBUFFERED_PRECONNECTED": "y"}


class Program:
    """One run of the user's code in the child process."""

    def __init__(
        self,
        job: dict[str, Any],
        parts: dict[str, bytes | bytearray],
        channel: Channel,
        app_dir: str,
        warnings: list[str] | None = None,
    ) -> None:
        self.job = job
        self.warnings = warnings or []
        self.parts = parts
        self.channel = channel
        self.app_dir = app_dir
        self.filename = job.get("own_name") or own_name(job["filename"], app_dir)
        self.path = os.path.join(app_dir, self.filename)
        self.pid = os.getpid()
        self.leavings = Leavings(app_dir, self.filename, job.get("before"), handed_over=job.get("save_new", False))
        self.helpers: Helpers | None = None
        self.names: dict[str, Any] = {}
        # Address space to give back when memory runs out, so that the error can still be told.
        self.reserve = address_space(RESERVE_BYTES)

    def run(self, started: float) -> NoReturn:
        """Run the program, report, and leave this process; never returns."""

        def begin() -> None:
            try:
                namespace = self._namespace(started)
                source = self._source(namespace)
                self._settle(started)
                execute(compile_program(source, self.filename), namespace)
            finally:
                self.reserve = None

        self.report(begin)

    def run_again(self, names: dict[str, Any], helpers: Helpers, begin: Callable[[], None]) -> NoReturn:
        """Do the same in an interpreter that has taken the place of the program's first, by `os.exec*`."""
        self.names, self.helpers = names, helpers
        self.report(begin)

    def report(self, begin: Callable[[], None]) -> NoReturn:
        """Have the program run, report what came of it, and leave this process; never returns."""
        status = 1
        try:
            status = self._reported(begin)
        except BaseException as error:
            # Reporting itself failed: a closed channel, or no memory left.
            self._complain(error)
        finally:
            leave(status)

    def _reported(self, begin: Callable[[], None]) -> int:
        error: BaseException | None = None
        status = 0
        try:
            try:
                begin()
            except BaseException as raised:
                call_own_hook(raised)
                raise
        except SystemExit as leaving:
            status = exit_status(leaving.code)
            error = leaving if status else None
        except BaseException as raised:
            error, status = raised, 1
        if os.getpid() != self.pid:
            # A forked copy fell off the end of the program: it has no result to give.
            if error is not None and not isinstance(error, SystemExit):
                self._complain(error)
            return status
        wait_for_threads()
        if self.helpers is not None:
            self.warnings += self.leavings.hand_over(self.helpers)
        if error is not None:
            self._send_error(error)
            return status
        return self._send_result(self.names)

    def _complain(self, error: BaseException) -> None:
        try:
            # Importing `traceback` costs some MB, which a fork bomb would multiply into an end for want of memory.
            if "traceback" in sys.modules:
                text = traceback_text(error, self.filename)
            else:
                kind, message = type_and_message(error)
                text = f"{kind}: {message} (line {location_of(error, self.filename)[0]}, in a forked process)\n"
            os.write(2, text.encode("utf-8", "backslashreplace"))
        except BaseException:  # nobody is left to tell
            return

    def _source(self, namespace: dict[str, Any]) -> str:
        source = text_of(self.parts.get("code", b""))
        namespace["__loader__"] = SourceLoader(source)
        show_own_lines(source, self.filename, namespace["__file__"])
        return source

    def _namespace(self, started: float) -> dict[str, Any]:
        job = self.job
        helpers = self.helpers = Helpers(self.channel, self.app_dir, started)
        # Preloaded modules may hold on to the main module that they have seen.
        module = sys.modules["__main__"] if job["preloaded"] else type(sys)("__main__")
        module.__dict__.update(
            __builtins__=__builtins__,
            __file__=self.path,
            **variables(job, self.parts.get("payload", b""), self.parts.get("message", b"")),
            **helpers.by_name(),
        )
        sys.modules["__main__"] = module
        self.names = module.__dict__
        return self.names

    def _settle(self, started: float) -> None:
        """Let the program lie in its directory, and other processes of it find what this one has."""
        sys.argv[:] = [self.filename]  # in place: preloaded modules may hold on to the list
        try:
            write_own(self.path, self.parts.pop("code", b""))
        except OSError as error:
            self.warnings.append(f"the script does not lie in {self.app_dir}: {error.strerror}")
        module = sys.modules[MODULE] = type(sys)(MODULE)
        module.__dict__.update(Helpers=Helpers, helpers=self.helpers)
        parts = [self.parts.pop(part, b"") for part in ("payload", "message")]
        if sum(map(len, parts)) > MAX_KEPT_BYTES:
            parts = []
        facts = {
            "program": self.pid,
            "path": self.path,
            "directory": self.app_dir,
            "channel": handed(self.channel.fileno()),
            "started": started,
            "given": {name: self.job[name] for name in GIVEN},
            "sizes": [len(part) for part in parts],
            "job": {
                "own_name": self.filename,
                "before": self.leavings.before,
                "save_new": self.job.get("save_new", False),
                "limits": {"result_bytes": self.job["limits"]["result_bytes"]},
            },
        }
        made: list[int] = []

        def file() -> int:
            from marshal import dumps

            if not made:
                made.append(stored(dumps(facts, 2), parts))
            return made[0]

        hand_on(self.channel.fileno(), file, os.path.join(DIRECTORY, STARTUP))

    def _send_error(self, error: BaseException) -> None:
        self.channel.send(b"X", error_record(error, self.filename))

    def _send_result(self, namespace: dict[str, Any]) -> int:
        """Convert and send the result; M comes last and makes it count."""
        max_bytes = self.job["limits"]["result_bytes"]
        warnings = self.warnings
        try:
            for kind, name in ((b"V", "result"), (b"A", "additional_data")):
                value = namespace.get(name)
                if name in namespace and (kind == b"V" or value is not None):
                    converter = Converter(name, max_bytes)
                    self.channel.send_json(kind, json_chunks(value, converter))
                    warnings += converter.warnings()
            meta: dict[str, Any] = {}
            topic = namespace.get("output_topic")
            if topic is not None:
                if not isinstance(topic, str):
                    warnings.append(f"output_topic is a {type_name(topic)} and became text")
                whole = whole_text(str(topic))
                if whole != str(topic):
                    topic = whole
                    warnings.append(f"{HALF_REPLACED} (at output_topic)")
                meta["output_topic"] = clean(str(topic), MAX_TOPIC_CHARS)
            if self.helpers is not None:
                warnings += self.leavings.warning(self.helpers)
            meta["warnings"] = [clean(text, MAX_WARNING_CHARS) for text in warnings[:MAX_WARNINGS]]
            self.channel.send(b"M", json_record(meta, ()))
        except ResultTooLargeError:
            self.channel.send(b"Z")
            return 1
        except BaseException as error:
            self._send_error(error)
            return 1
        return 0


def variables(given: dict[str, Any], payload: bytes | bytearray, message: bytes | bytearray) -> dict[str, Any]:
    """Return the variables that a program finds: what it was `given`, and the two parts as they came."""
    value = _parsed("payload", payload or b"null")
    whole = _parsed("message", message or b"{}")
    if not isinstance(whole, dict):
        raise TypeError(f"the message must be a JSON object, not {type_name(whole)}")
    whole["payload"] = value
    whole.setdefault("topic", given["topic"])
    return {
        "payload": value,
        "topic": given["topic"],
        "timestamp": given["timestamp"],
        "previous_result": value,
        "execution_id": given["run_id"],
        "node_id": given["node_id"],
        "original_message": whole,
        "msg": dict(whole),
    }


def _parsed(part: str, text: bytes | bytearray) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise ValueError(f"the {part} is not valid JSON: {error}") from None


def become_program(out: int, err: int, app_dir: str, *, preloaded: bool) -> None:
    """Turn the forked child into a process of its own, with nothing of the supervisor's, as far as no job is needed."""
    import _signal as signal  # type: ignore[import-not-found] # the package `signal` imports enum

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
        os.close(source)
    set_dumpable(1)  # or /dev/stdout and /proc/self/fd would be out of its own reach
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # when memory runs out, the program dies and the supervisor reports it
    except OSError:  # a read-only /proc costs only the better report
        pass
    add_libraries(LIBRARIES)
    sys.path.insert(0, app_dir)
    forget_harness()
    os.environ.update(UNBUFFERED)
    hear_of_the_end()
    if not preloaded:
        # Preloaded modules hold on to the streams they have seen, and stay out of the collector's way: it would look at
        # every object of theirs, and so copy the pages that the two processes share.
        open_streams()
        gc.unfreeze()


def take_on(job: dict[str, Any]) -> list[str]:
    """Make the program's process what the job asks for; return what is to be warned of."""
    os.environ.update(job["env"])
    warning = set_local_time()
    set_limits(job["limits"])
    add_libraries(LIBRARIES)  # once more: the job may have brought variables of its own
    report_by_traceback()
    if job["preloaded"]:
        reseed()
    return [warning] if warning else []


def rehearse(app_dir: str) -> None:
    """Run a program of nothing: what first uses cost (imports, caches, pages to copy) is paid before the job.

    The program finds no trace of it but a few compiled modules of the standard library, imported already.
    """
    import _posixsubprocess  # noqa: F401 - for the processes that it starts
    import atexit  # noqa: F401 - for the end
    import fcntl  # noqa: F401 - for save_file()
    import marshal  # noqa: F401 - likewise
    import resource  # noqa: F401 - for the limits

    main_module = sys.modules["__main__"]
    job: dict[str, Any] = dict.fromkeys(GIVEN, "")
    job.update(filename="script.py", limits={"result_bytes": CHUNK_BYTES}, preloaded=False)
    parts: dict[str, bytes | bytearray] = {
        "code": b"result = payload",
        "payload": b'{"a": [1, 2.5, "b"]}',
        "message": b'{"topic": ""}',
    }
    program = Program(job, parts, Nobody(), app_dir)  # type: ignore[arg-type]
    namespace = program._namespace(0.0)
    execute(compile_program(program._source(namespace), program.filename), namespace)
    program._send_result(namespace)
    sys.modules["__main__"] = main_module
    sys.modules["linecache"].clearcache()
