"""`python -m sandbox`: the same as the `sandbox` command."""

# The compiled part alone: the package `signal` imports `enum`, and Ctrl-C could come meanwhile.
import _signal  # type: ignore[import-not-found] # it has no stub

# Until there is something to clean up, Ctrl-C ends the process at once and without a traceback;
# `run_command` takes it over before anything is started.
_signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from sandbox.cli.main import main  # noqa: E402 - after the line above, on purpose

main()
