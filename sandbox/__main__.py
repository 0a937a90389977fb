"""`python -m sandbox`: the same as the `sandbox` command."""

import signal

# Until there is something to clean up, Ctrl-C ends the process at once and without a traceback;
# `run_command` takes it over before anything is started.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from sandbox.cli.main import main  # noqa: E402 - after the line above, on purpose

main()
