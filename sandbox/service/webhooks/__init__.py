"""Telling other services that a run has ended: which addresses are allowed, and how they are called.

Imports `egress` and the words. Read `rules`, then `sending`.
"""
