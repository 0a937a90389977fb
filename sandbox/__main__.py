"""`python -m sandbox`: the same as the `sandbox` command."""

from sandbox.cli.main import main

main()
