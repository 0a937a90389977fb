"""What the kernel says about processes: which belong together, what they hold, what ended them.

Imports no other package of ours. Read `process`, then `family`, `memory`, `oom`.
"""
