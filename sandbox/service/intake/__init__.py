"""What comes in: bytes of a request, counted and spooled, taken apart beside the service, and checked.

Imports the words, `run` and `environment.requirements`. Read `reading`, then `asked`, `parser`.
"""
