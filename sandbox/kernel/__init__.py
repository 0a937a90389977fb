"""What the kernel says of processes: who belongs to whom, what they hold, what ended them.

Imports nothing of ours. Read `process`, then `family`, `memory`, `oom`.
"""
