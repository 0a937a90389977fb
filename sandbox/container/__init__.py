"""One container for one run: decided (`spec`), started, read back (`verify`), watched, removed.

Imports `image`, `host`, `engine`, `policy`, `channel` and what is above them. Read `spec`, then `verify`, `container`,
`sandbox`, `standby`, `pool`.
"""
