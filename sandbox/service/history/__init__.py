"""What is kept of runs: the history in SQLite, saved files and answers, without secrets, bounded in size and age.

Imports `run` and what is above it. Read `row`, then `history`, `keeping`, `record`.
"""
