"""The only way out of a sandbox: a proxy on a Unix socket, with an allow-list of exact hosts and ports.

Imports the basic modules (`errors`, `models` and their like). Read `rules`, then `proxy`, `connection`, `upstream`.
"""
