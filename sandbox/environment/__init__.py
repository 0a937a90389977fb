"""Libraries for runs: from requirements to a lock with hashes, fetched and installed in sandboxes, kept as an image.

Imports `run`, `image`, `index` and what is above them. Read `requirements`, then `lock`, `identity`, `installation`,
`environments`.
"""
