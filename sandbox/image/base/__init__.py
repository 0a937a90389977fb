"""The base image, made from Debian's packages without a registry.

Imports `engine` and `image`. Read `bootstrap`, then `layer`.
"""
