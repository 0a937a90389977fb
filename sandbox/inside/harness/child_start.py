"""Runs first in every Python process that a program starts, which then finds the program's variables and functions.

It is joined with what it imports of ours, and lies below the harness as the module `sitecustomize`, which Python looks
for; `sandbox.inside.harness.handing_on` leads there. Whoever runs or imports the program's own file there (spawn and
forkserver of `multiprocessing` do, and a program that starts itself again) has its names, and a top-level `return` and
`await`. What is not used is not loaded: most processes that a program starts have nothing to do with it.
"""

from __future__ import annotations

import os
import sys

from sandbox.inside.harness.handing_on import (
    LENGTH_BYTES,
    MODULE,
    PATH_VARIABLE,
    VARIABLE,
    hand_on,
    read_stored,
)
from sandbox.inside.harness.unseen import unseen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any


class End:
    """The program's end of the channel, as a socket has it: what is written is one packet."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._descriptor

    def send(self, data: bytes) -> int:
        """Send one packet. Raises OSError."""
        return os.write(self._descriptor, data)


class Inherited:
    """What was handed on, of which most is read when it is first needed. Raises OSError, ValueError."""

    def __init__(self, descriptor: int, library: str) -> None:
        from marshal import loads

        size = int.from_bytes(read_stored(descriptor, 0, LENGTH_BYTES), "big")
        self.facts: dict[str, Any] = loads(  # noqa: S302 - our own, from a process that is no more trusted than this one
            read_stored(descriptor, LENGTH_BYTES, size)
        )
        self.path = os.path.realpath(self.facts["path"])
        self.descriptors = (descriptor, self.facts["channel"])
        self._parts_begin = LENGTH_BYTES + size
        self._library = library
        self._harness: Any = None

    def harness(self) -> Any:
        """Return the harness, whose functions a process shares with the program."""
        if self._harness is None:
            from importlib.machinery import SourceFileLoader

            module = type(sys)("harness")
            SourceFileLoader("harness", os.path.join(self._library, "harness.py")).exec_module(module)
            self._harness = module
        return self._harness

    def functions(self) -> Any:
        """Return the program's functions, at work in this process."""
        channel = self.harness().Channel(End(self.facts["channel"]))
        return self.harness().Helpers(channel, self.facts["directory"], self.facts["started"])

    def variables(self) -> dict[str, Any]:
        """Return the program's variables, as it was given them."""
        parts, offset = [], self._parts_begin
        for size in self.facts["sizes"]:
            parts.append(read_stored(self.descriptors[0], offset, size))
            offset += size
        if not parts:
            os.write(2, b"sandbox: the message is too large for a new process, which has no payload and no msg\n")
            return dict(self.facts["given"])
        found: dict[str, Any] = self.harness().variables(self.facts["given"], *parts)
        return found

    @unseen
    def run(self, namespace: dict[str, Any], typed: str) -> None:
        """Run the program's file in a namespace; `typed` is what the file was called to have it run."""
        harness = self.harness()
        if typed in sys.path:  # Python takes what it can run, other than plain files, for a place of modules
            sys.path[sys.path.index(typed)] = os.path.dirname(self.path)
        with open(self.path, "rb") as file:
            source = harness.text_of(file.read())
        namespace.update(self.variables(), **sys.modules[MODULE].helpers.by_name())
        namespace["__loader__"] = harness.SourceLoader(source)
        namespace["__spec__"] = None  # as for every file that is run: `multiprocessing` goes by it
        try:
            harness.execute(harness.compile_program(source, self.path), namespace)
        except RuntimeError as error:
            if namespace["__name__"] == "__mp_main__" and "bootstrapping phase" in str(error):
                self._end_program(error)
            raise

    def _end_program(self, error: RuntimeError) -> None:
        """End a program that starts processes without asking whether it is the first: a pool would do so for ever.

        The first process to find out tells its error as the program's own, and waits for the end of all.
        """
        import fcntl
        import signal

        try:
            fcntl.lockf(self.descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        End(self.facts["channel"]).send(b"X" + self.harness().error_record(error, self.path))
        os.kill(self.facts["program"], signal.SIGKILL)
        signal.pause()


class Finder:
    """Finds the program's file where Python is told to run it, and gives code that runs it with its names."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._typed = path

    def __call__(self, typed: str) -> Finder:
        """Return the finder for a path, if that is the program's file. Raises ImportError."""
        if os.path.basename(typed) != os.path.basename(self._path) or os.path.realpath(typed) != self._path:
            raise ImportError(typed)
        found = Finder(self._path)
        found._typed = typed
        return found

    def find_spec(self, name: str, _target: object = None) -> Any:
        """Return where `__main__` comes from, and nothing else."""
        spec: Any = type(sys.__spec__)
        return spec(name, self, origin=self._path) if name == "__main__" else None

    def get_code(self, _name: str) -> CodeType:
        """Return the code that runs the program's file, in the namespace that it is itself run in."""
        return compile(f"__import__({MODULE!r}).run(globals(), {self._typed!r})", "<the program>", "exec")


def module_of(inherited: Inherited) -> ModuleType:
    """Return the module with the program's functions, which are made when they are first asked for."""
    module = type(sys)(MODULE)

    def found(name: str) -> Any:
        if name == "helpers":
            module.helpers = inherited.functions()  # type: ignore[attr-defined]
        elif name == "Helpers":
            module.Helpers = type(module.helpers)  # type: ignore[attr-defined]
        else:
            raise AttributeError(f"module {MODULE!r} has no attribute {name!r}")
        return vars(module)[name]

    module.__dict__.update(__getattr__=found, run=inherited.run)
    return module


def take_over(startup: str) -> None:
    """Take what was handed on, leave no trace in the environment, and let the image's own start-up code follow."""
    sys.path[:] = [entry for entry in sys.path if entry != startup]
    rest = [entry for entry in os.environ.pop(PATH_VARIABLE, "").split(":") if entry not in ("", startup)]
    if rest:
        os.environ[PATH_VARIABLE] = ":".join(rest)
    descriptor = int(os.environ.pop(VARIABLE, "-1"))
    try:
        inherited = Inherited(descriptor, os.path.dirname(startup))
    except (OSError, ValueError):  # a process between has closed it
        return
    for kept in inherited.descriptors:
        os.set_inheritable(kept, False)  # noqa: FBT003
    hand_on(inherited.descriptors[1], lambda: descriptor, startup)
    sys.modules[MODULE] = module_of(inherited)
    sys.path_hooks.insert(0, Finder(inherited.path))


def follow_on(name: str) -> None:
    """Import what else has this file's name. Raises what that raises."""
    own = sys.modules.pop(name)
    try:
        __import__(name)
    except ImportError as error:
        sys.modules[name] = own
        if error.name != name:
            raise


if __name__ == "sitecustomize":
    take_over(os.path.dirname(__file__))
    follow_on(__name__)
