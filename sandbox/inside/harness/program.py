"""One run of the user's code, in the child process."""

from __future__ import annotations

import gc
import os
import sys

from sandbox.inside.harness.channel import Nobody
from sandbox.inside.harness.compiling import compile_program, execute
from sandbox.inside.harness.directory import forget_harness
from sandbox.inside.harness.failures import error_record, location_of, traceback_text, type_and_message
from sandbox.inside.harness.json_text import from_json, json_chunks, json_record
from sandbox.inside.harness.limits import CHUNK_BYTES, MAX_TOPIC_CHARS, MAX_WARNING_CHARS, MAX_WARNINGS
from sandbox.inside.harness.process import (
    LIBRARIES,
    add_libraries,
    address_space,
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
from sandbox.inside.harness.sources import SourceLoader, show_own_lines, shown_name
from sandbox.inside.harness.streams import hear_of_the_end, open_streams
from sandbox.inside.harness.text import clean
from sandbox.inside.harness.values import Converter, ResultTooLargeError, type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

    from sandbox.inside.harness.channel import Channel


MAX_LOOKED_AT = 200  # files and directories that a program may have left
SHOWN_LEFT = 5
PASSING = (".pyc", ".tmp", ".lock", "-journal", "-wal", "-shm")
RESERVE_BYTES = 8 << 20
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
        self.filename = shown_name(job["filename"], app_dir)
        self.pid = os.getpid()
        self.given = set(os.listdir(app_dir))
        self.helpers: Helpers | None = None
        # Address space to give back when memory runs out, so that the error can still be told.
        self.reserve = address_space(RESERVE_BYTES)

    def run(self, started: float) -> NoReturn:
        """Run the program, report, and leave this process; never returns."""
        status = 1
        try:
            status = self._run(started)
        except BaseException as error:
            # Reporting itself failed: a closed channel, or no memory left.
            self._complain(error)
        finally:
            leave(status)

    def _run(self, started: float) -> int:
        error: BaseException | None = None
        status = 0
        namespace: dict[str, Any] = {}
        try:
            try:
                namespace = self._namespace(started)
                source = self._source(namespace)
                execute(compile_program(source, self.filename), namespace)
            finally:
                self.reserve = None
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
        if error is not None:
            self._send_error(error)
            return status
        return self._send_result(namespace)

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
        source = bytes(self.parts.pop("code", b"")).decode("utf-8", "surrogateescape")
        source = source[1:] if source.startswith("\ufeff") else source
        namespace["__loader__"] = SourceLoader(source)
        show_own_lines(source, self.filename, namespace["__file__"])
        return source

    def _namespace(self, started: float) -> dict[str, Any]:
        job = self.job
        payload = self._parsed("payload", b"null")
        message = self._parsed("message", b"{}")
        if not isinstance(message, dict):
            raise TypeError(f"the message must be a JSON object, not {type_name(message)}")
        message["payload"] = payload
        message.setdefault("topic", job["topic"])
        helpers = self.helpers = Helpers(self.channel, self.app_dir, started)
        # Preloaded modules may hold on to the main module that they have seen.
        module = sys.modules["__main__"] if job["preloaded"] else type(sys)("__main__")
        module.__dict__.update(
            __builtins__=__builtins__,
            __file__=os.path.join(self.app_dir, os.path.basename(self.filename)),
            payload=payload,
            topic=job["topic"],
            timestamp=job["timestamp"],
            previous_result=payload,
            execution_id=job["run_id"],
            node_id=job["node_id"],
            original_message=message,
            msg=dict(message),
            log=helpers.log,
            save_file=helpers.save_file,
            read_file=helpers.read_file,
            run_command=helpers.run_command,
        )
        sys.modules["__main__"] = module
        return module.__dict__

    def _parsed(self, part: str, absent: bytes) -> Any:
        try:
            return from_json(self.parts.pop(part, b"") or absent)
        except ValueError as error:
            raise ValueError(f"the {part} is not valid JSON: {error}") from None
        except RecursionError:
            raise ValueError(f"the {part} is nested too deeply") from None

    def _left_behind(self) -> list[str]:
        """Return a warning of files that the program wrote and did not save, if it never saved any."""
        if self.helpers is None or self.helpers.saved:
            return []
        try:
            found = sorted(_files_below(self.app_dir, self.given))
        except Exception:
            return []
        if not found:
            return []
        content = f", read_file({found[0]!r}, binary=True)" if "/" in found[0] else ""
        advice = f"save_file({os.path.basename(found[0])!r}{content}) hands one over"
        more = ", ..." if len(found) > SHOWN_LEFT else ""
        return [f"files end with the run unless they are saved: {advice} (left: {', '.join(found[:SHOWN_LEFT])}{more})"]

    def _send_error(self, error: BaseException) -> None:
        self.channel.send(b"X", error_record(error, self.filename))

    def _send_result(self, namespace: dict[str, Any]) -> int:
        """Convert and send the result; M comes last and makes it count."""
        max_bytes = self.job["limits"]["result_bytes"]
        warnings = list(self.warnings)
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
                meta["output_topic"] = clean(str(topic), MAX_TOPIC_CHARS)
            warnings += self._left_behind()
            meta["warnings"] = [clean(text, MAX_WARNING_CHARS) for text in warnings[:MAX_WARNINGS]]
            self.channel.send(b"M", json_record(meta, ()))
        except ResultTooLargeError:
            self.channel.send(b"Z")
            return 1
        except BaseException as error:
            self._send_error(error)
            return 1
        return 0


def _files_below(top: str, given: set[str]) -> Iterator[str]:
    """Yield the files below `top` that may be meant for somebody, among the first that are there.

    No link is followed.
    """
    looked = 0
    directories = [""]
    while directories:
        directory = directories.pop()
        with os.scandir(os.path.join(top, directory)) as entries:
            for entry in entries:
                looked += 1
                if looked > MAX_LOOKED_AT:
                    return
                name = os.path.join(directory, entry.name)
                if name in given or entry.name.startswith((".", "_")) or not name.isprintable():
                    continue
                if entry.is_dir(follow_symlinks=False):
                    directories.append(name)
                elif entry.is_file(follow_symlinks=False) and not name.endswith(PASSING):
                    yield name


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
    sys.argv[:] = [job["filename"]]  # in place: preloaded modules may hold on to the list
    add_libraries(LIBRARIES)  # once more: the job may have brought variables of its own
    report_by_traceback()
    if job["preloaded"]:
        reseed()
    return [warning] if warning else []


def rehearse(app_dir: str) -> None:
    """Run a program of nothing: what first uses cost (imports, caches, pages to copy) is paid before the job.

    The program finds no trace of it but a few compiled modules of the standard library, imported already.
    """
    import atexit  # noqa: F401 - for the end
    import fcntl  # noqa: F401 - for save_file()
    import resource  # noqa: F401 - for the limits

    main_module = sys.modules["__main__"]
    job: dict[str, Any] = dict.fromkeys(("topic", "timestamp", "run_id", "node_id"), "")
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
