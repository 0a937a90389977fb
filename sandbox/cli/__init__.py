"""The command line: the only part that prints or chooses an exit status.

Imports everything. Read `main`, then `run`, `ending`.
"""
