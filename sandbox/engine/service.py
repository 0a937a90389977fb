"""Podman's REST service as a process of ours: it has its own socket, is seen to die, and ends with all it started."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from sandbox.engine.program import last_line, missing_podman, reaching_environment, scope_prefix
from sandbox.errors import EngineUnavailable

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
# Each service has a socket of its own: one that ends slowly removes its socket last of all.
_numbers = itertools.count()


def listened_on(path: Path) -> bool:
    """Tell whether somebody listens on a socket and has room for who connects."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # noqa: FBT003 - takes it by position alone; the queue of one that hangs may be full
        return probe.connect_ex(str(path)) == 0


class PodmanService:
    """One `podman system service`. It becomes ready while the caller goes on; `socket` is where it listens then.

    Start it in a thread that lives on: the kernel ends it with the thread that started it.
    """

    def __init__(self, runtime_path: str, *, runtime_dir: Path) -> None:
        """Start it with this OCI runtime. Raises `EngineUnavailable` without Podman."""
        self.socket = runtime_dir / f"engine-{os.getpid()}-{next(_numbers)}.sock"
        self.socket.unlink(missing_ok=True)  # of an earlier process with our number
        # --pdeathsig: the service must not outlive us, also when we are killed with SIGKILL.
        command = [
            *scope_prefix(),
            "setpriv", "--pdeathsig", "TERM", "podman", "--runtime", runtime_path, "--log-level", "error",
            "system", "service", "--time", "0", f"unix://{self.socket}",
        ]  # fmt: skip # a command line
        # A file and not a pipe: nobody reads while the service runs, and a full pipe would stop it.
        self._complaints = tempfile.TemporaryFile(dir=runtime_dir)  # noqa: SIM115 - closed in stop()
        try:
            self._process = subprocess.Popen(
                command,
                env=reaching_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._complaints,
                cwd="/",
                start_new_session=True,
            )
        except FileNotFoundError:
            self._complaints.close()
            raise missing_podman() from None

    def wait_ready(self) -> None:
        """Wait until it listens. Raises `EngineUnavailable`."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.listens():
            if self.ended():
                self._complaints.seek(0)
                reason = self._complaints.read().decode(errors="replace")
                raise EngineUnavailable(
                    f"Podman's service ended at once: {last_line(reason)}", hint="run `sandbox doctor`"
                )
            if time.monotonic() > deadline:
                raise EngineUnavailable(
                    f"Podman's service did not open its socket within {START_TIMEOUT_S:g} s",
                    hint="run `sandbox doctor`",
                )
            time.sleep(0.001)

    def listens(self) -> bool:
        """Tell whether somebody listens on its socket."""
        return listened_on(self.socket)

    def ended(self) -> bool:
        """Tell whether its process has ended."""
        # Not poll(): while the process is not reaped, its number, and so its group's, can't be another's.
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def stop(self, *, at_once: bool = False) -> None:
        """End it, `at_once` without asking it to, and remove its socket. A second call does nothing."""
        if self._process.returncode is None:
            if not at_once:
                self._signal(signal.SIGTERM)
                deadline = time.monotonic() + STOP_TIMEOUT_S
                while not self.ended() and time.monotonic() < deadline:
                    time.sleep(0.005)
            self._signal(signal.SIGKILL)  # also what a process that was killed left behind
            self._process.wait()
        self._complaints.close()
        self.socket.unlink(missing_ok=True)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def remove_dead_sockets(runtime_dir: Path) -> None:
    """Remove the sockets of processes that ended without closing their engine.

    A number that is no process here may be one in another pid namespace: where somebody listens, the socket stays.
    """
    for path in runtime_dir.glob("engine-*.sock"):
        if not Path("/proc", path.stem.split("-")[1]).exists() and not listened_on(path):
            path.unlink(missing_ok=True)
