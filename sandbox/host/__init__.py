"""What this machine can enforce: facts, and the probe that finds them.

Imports `engine` and what is above it. Read `facts`, then `probe`.
"""
