"""The runner behind a private Unix socket.

Imports everything but `installed`, `cli` and `client`. Read `server`, then `application` and `door`, `intake`,
`routes`, `history`.
"""
