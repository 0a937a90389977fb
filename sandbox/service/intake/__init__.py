"""Incoming requests: their bytes are counted and spooled, parsed in a process beside the service, and checked.

Imports the basic modules (`errors`, `models` and their like), `run` and `environment.requirements`. Read `reading`,
then `asked`, `parser`.
"""
