"""Which images a sandbox may be started from, and the base image that we build.

Imports `engine` and what is above it. Read `admission`, then `files`, `verdicts`; `base` builds.
"""
