"""What an administrator allows: sections of a TOML file, their order (a child never allows more than its parent), seccomp profiles.

Imports the words and `egress.rules`. Read `sections`, then `model`, `load`, `order`, `explain`.
"""
