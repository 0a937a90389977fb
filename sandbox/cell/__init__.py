"""Cells: namespaces, places and a filter of its own for each run, in a warm container of its caller's node.

Imports `container` and what is above it. Read `spec`, then `cell`, `verify`, `warm`.
"""
