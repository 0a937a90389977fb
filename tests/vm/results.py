"""What comes out of the machine: a report and an exit status of each user's tests, and the journal.

None of it is trusted.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Collection
from pathlib import Path
from xml.etree import ElementTree

JOURNAL = "journal.txt"
MAX_RESULT_BYTES = 64 << 20
NO_RESULTS = 2
NOTHING_COLLECTED = 5  # pytest's own: its options left no test


def unpack(data: bytes, directory: Path, users: Collection[str]) -> int:
    """Write `kernel.xml` and `journal.txt`, and return one exit status for the tests of all these users.

    `data` is a tar file; the machine is not trusted with names in it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = read(data, {JOURNAL, *(f"{user}/{name}" for user in users for name in ("junit.xml", "status"))})
    if JOURNAL in found:
        (directory / JOURNAL).write_bytes(found[JOURNAL])
    try:
        report = merged([found[f"{user}/junit.xml"] for user in users if f"{user}/junit.xml" in found])
        statuses = {int(found.get(f"{user}/status", NO_RESULTS)) for user in users}
    except (ElementTree.ParseError, ValueError):
        return NO_RESULTS
    (directory / "kernel.xml").write_bytes(report)
    return exit_status(statuses)


def read(data: bytes, names: Collection[str]) -> dict[str, bytes]:
    """Return the files of a tar file that have these names and a sensible size."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() and member.size <= MAX_RESULT_BYTES else None
            if stream is not None and member.name in names:
                found[member.name] = stream.read()
    return found


def merged(reports: list[bytes]) -> bytes:
    """Return one JUnit report that has all suites of these."""
    root = ElementTree.Element("testsuites")
    for report in reports:
        root.extend(ElementTree.fromstring(report).iter("testsuite"))
    together: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return together


def exit_status(statuses: set[int]) -> int:
    """Return the worst of pytest's exit statuses; options may leave one user without a test, but not all."""
    return max(statuses - {NOTHING_COLLECTED} or statuses)
