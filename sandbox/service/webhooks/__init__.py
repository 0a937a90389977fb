"""Telling other services that a run has ended: which addresses are allowed, and how they are called.

Imports `egress` and the basic modules (`errors`, `models` and their like). Read `rules`, then `sending`.
"""
