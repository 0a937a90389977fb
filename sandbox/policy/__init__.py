"""What an administrator allows: sections of a TOML file, their order, seccomp profiles.

A child never allows more than its parent. Imports the basic modules (`errors`, `models` and their like) and
`egress.rules`. Read `sections`, then `model`, `load`, `order`, `explain`.
"""
