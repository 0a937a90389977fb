"""In the machine, as root: give files with a container's ids to a user, as if that user's Podman had made them.

`own.py USER DIRECTORY`. A container's root is the user, all others come from the user's range in /etc/subuid and
/etc/subgid.
"""

import os
import pwd
import sys
from collections.abc import Iterator


def outside(own: int, first: int, inside: int) -> int:
    """Return what an id inside a rootless container is outside of it."""
    return own if inside == 0 else first + inside - 1


def first_of(file: str, user: str) -> int:
    """Return where the user's range begins: subuid(5)."""
    with open(file) as lines:
        return next(int(line.split(":")[1]) for line in lines if line.startswith(f"{user}:"))


def below(directory: str) -> Iterator[str]:
    """Yield a directory and all that lies in it."""
    yield directory
    for place, directories, files in os.walk(directory):
        yield from (os.path.join(place, name) for name in (*directories, *files))


def main(user: str, directory: str) -> None:
    """Change the owner of everything."""
    account = pwd.getpwnam(user)
    uids, gids = first_of("/etc/subuid", user), first_of("/etc/subgid", user)
    for path in below(directory):
        status = os.lstat(path)
        os.lchown(path, outside(account.pw_uid, uids, status.st_uid), outside(account.pw_gid, gids, status.st_gid))


if __name__ == "__main__":
    main(*sys.argv[1:])
