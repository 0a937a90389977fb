"""Hands on what a program has, its variables and functions, to the Python processes that it starts.

A fork has everything by itself. A new interpreter (`subprocess`, spawn and forkserver of `multiprocessing`, loky,
`os.exec*`, `os.system`) has nothing, and all of these start it through few functions, which close every descriptor that
they are not told to keep.
So they are told to keep two: the program's end of the channel, and a file that has a name no more, with all that the
program was given. A variable says which; Python's own search path leads to the start-up code that reads them,
`sandbox.inside.harness.child_start`. They are the program's own already: nothing is handed on that it could not pass
itself.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any


# Under this name every process of a program has the module with its functions, which are pickled by it.
MODULE = "sandbox_program"
VARIABLE = "SANDBOX_PROGRAM"
PATH_VARIABLE = "PYTHONPATH"
STARTUP = "children"  # the directory of the start-up code, beside the harness
# A message beyond that is not kept for new interpreters: it would take the program's room.
MAX_KEPT_BYTES = 16 << 20
LENGTH_BYTES = 8


def hand_on(channel: int, file: Callable[[], int], startup: str) -> None:
    """Have every program that this process starts keep the descriptors of the channel and of the `file`, see `stored`.

    Where the file can't be made, or one of them is closed, programs start without.
    """
    import _posixsubprocess
    import sys

    known = {channel: identity(channel)}

    def given() -> tuple[int, ...]:
        if identity(channel) != known[channel]:
            return ()
        try:
            descriptor = file()
            same = identity(descriptor) == known.setdefault(descriptor, identity(descriptor))
            return (descriptor, channel) if same else ()
        except OSError as error:
            why = f"sandbox: a new process does without the program's variables and functions: {error.strerror}\n"
            os.write(2, why.encode())
            return ()

    start = getattr(_posixsubprocess.fork_exec, "__wrapped__", _posixsubprocess.fork_exec)

    def fork_exec(args: Any, paths: Any, close: Any, kept: Any, cwd: Any, env: Any, *more: Any) -> Any:
        more_kept = given()
        if more_kept:
            kept = tuple(sorted({*kept, *more_kept}))
            named = dict(entry.split(b"=", 1) for entry in (_inherited_environment() if env is None else env))
            env = [name + b"=" + value for name, value in _with_startup(named, startup, more_kept[0]).items()]
        return start(args, paths, close, kept, cwd, env, *more)

    fork_exec.__wrapped__ = start  # type: ignore[attr-defined]
    _posixsubprocess.fork_exec = fork_exec
    if hasattr(sys.modules.get("subprocess"), "_fork_exec"):
        sys.modules["subprocess"]._fork_exec = fork_exec  # type: ignore[attr-defined]
    for name in ("posix_spawn", "posix_spawnp"):  # which subprocess uses since Python 3.13
        setattr(os, name, _spawning(getattr(os, name), given, startup))
    os.execve = _replacing(os.execve, given, startup)
    os.execv = lambda path, argv: os.execve(path, argv, os.environ)  # noqa: S606 - what the program asked for
    os.system = _system


def _inherited_environment() -> Iterator[bytes]:
    """Yield the environment that a new program inherits: C's, which libraries may have changed behind Python's back."""
    import ctypes

    environ: Any = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    place = 0
    while environ and (entry := environ[place]) is not None:
        if b"=" in entry:
            yield entry
        place += 1


def identity(descriptor: int) -> tuple[int, int] | None:
    """Return what tells an open file from another that has its number later, or None for a closed one."""
    try:
        state = os.fstat(descriptor)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _spawning(spawn: Any, given: Callable[[], tuple[int, ...]], startup: str) -> Any:
    """Return `posix_spawn`, handing on."""
    spawn = getattr(spawn, "__wrapped__", spawn)
    close_from = getattr(os, "POSIX_SPAWN_CLOSEFROM", None)

    def posix_spawn(path: Any, argv: Any, env: Any, *, file_actions: Any = (), **more: Any) -> Any:
        kept = given()
        if kept:
            actions = []
            for action in file_actions or ():
                closing = _inheritable(action[1], kept) if action[0] == close_from else ()
                actions += [(os.POSIX_SPAWN_CLOSE, one) for one in closing] if action[0] == close_from else [action]
            file_actions = [*actions, *((os.POSIX_SPAWN_DUP2, one, one) for one in kept)]
            pairs = (os.environ if env is None else env).items()
            env = _with_startup({os.fsencode(key): os.fsencode(value) for key, value in pairs}, startup, kept[0])
        return spawn(path, argv, env, file_actions=file_actions, **more)

    posix_spawn.__wrapped__ = spawn  # type: ignore[attr-defined]
    return posix_spawn


def _replacing(replace: Any, given: Callable[[], tuple[int, ...]], startup: str) -> Any:
    """Return `execve`, handing on."""
    replace = getattr(replace, "__wrapped__", replace)

    def execve(path: Any, argv: Any, env: Any) -> Any:
        kept = given()
        if kept:
            pairs = {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
            env = _with_startup(pairs, startup, kept[0])
        try:
            for one in kept:
                os.set_inheritable(one, True)  # noqa: FBT003
            replace(path, argv, env)
        finally:  # it could not be started
            for one in kept:
                os.set_inheritable(one, False)  # noqa: FBT003

    execve.__wrapped__ = replace  # type: ignore[attr-defined]
    return execve


def _system(command: Any) -> int:
    """Do what `os.system` does, through a function that hands on."""
    import sys

    sys.audit("os.system", os.fsencode(command))
    try:
        environment = dict(entry.split(b"=", 1) for entry in _inherited_environment())
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", command], environment)
    except OSError:
        return -1
    return os.waitpid(pid, 0)[1]


def _inheritable(first: int, kept: tuple[int, ...]) -> list[int]:
    """Return the descriptors from `first` on that a new program would have, but for those that it is to keep."""
    found = []
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            if descriptor >= first and descriptor not in kept and os.get_inheritable(descriptor):
                found.append(descriptor)
        except OSError:  # that of the listing, closed by now
            continue
    return found


def _with_startup(env: dict[bytes, bytes], startup: str, descriptor: int) -> dict[bytes, bytes]:
    """Return an environment that leads Python to its start-up code."""
    path = PATH_VARIABLE.encode()
    places = [os.fsencode(startup), *filter(None, [env.get(path)])]
    return {**env, path: b":".join(places), VARIABLE.encode(): handed(descriptor).encode()}


def handed(descriptor: int) -> str:
    """Return how a file is handed on: by its number, and by what tells it from another that a shell gave that number.

    Raises OSError.
    """
    state = os.fstat(descriptor)
    return f"{descriptor}:{state.st_dev}:{state.st_ino}"


def taken_over(text: str) -> int:
    """Return the descriptor of a file that was handed on. Raises OSError when it is not there, ValueError."""
    descriptor = int(text.partition(":")[0])
    if handed(descriptor) != text:
        raise OSError("another file has the number")
    return descriptor


def stored(head: bytes, parts: Iterable[bytes | bytearray]) -> int:
    """Return the descriptor of a file without a name: the length of `head`, `head`, and the parts. Raises OSError."""
    path = os.path.join(os.environ.get("TMPDIR") or "/tmp", f".{os.urandom(16).hex()}")  # noqa: S108
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(path)
        for part in (len(head).to_bytes(LENGTH_BYTES, "big"), head, *parts):
            view = memoryview(part)
            while view:
                view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_stored(descriptor: int, offset: int, size: int) -> bytes:
    """Return a piece of such a file, whose position other processes share. Raises OSError."""
    data = b""
    while len(data) < size:
        piece = os.pread(descriptor, size - len(data), offset + len(data))
        if not piece:
            raise OSError("the file with the program's variables is too short")
        data += piece
    return data
