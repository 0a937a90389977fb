"""`python -m tests.wire_fuzz`: frames of a hostile harness, made by a fuzzer that watches which branches they reach.

Exit status 0 only where nothing crashes.

Needs atheris (`pip install atheris`), which has wheels for some versions of Python only and is nothing that the project
installs:
tests/unit/test_wire_fuzz.py looks at the same without it. What reaches new branches is kept in `--corpus` and tried
first the next time; what crashes is written there as `crash-…`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
from pathlib import Path
from typing import Any

try:
    atheris: Any = importlib.import_module("atheris")
except ImportError:
    sys.exit("atheris is not installed for this Python: pip install atheris")

with atheris.instrument_imports(
    include=["sandbox.channel.frames", "sandbox.channel.canonical", "sandbox.channel.records"]
):
    from sandbox.channel.collector import Collector
    from sandbox.channel.frames import FROM_HARNESS, FrameReader, ProtocolViolation, RunCaps, encode

LIMITS = RunCaps(output_bytes=300, result_bytes=200, files_bytes=500, files_count=3, log_records=4)
START = encode("R", b'{"protocol": 1, "python": [3, 12, 1], "implementation": "cpython"}') + encode("S")
# Bodies that are right, one of each kind, for the fuzzer to bend.
RIGHT = {
    "R": b'{"protocol": 1, "python": [3, 12, 1], "implementation": "cpython"}',
    "L": b'{"level": "info", "message": "m"}',
    "F": b'{"name": "a.txt", "size": 4}',
    "f": b"abcd",
    "V": b"[1]",
    "A": b"{}",
    "M": b'{"output_topic": "t", "warnings": []}',
    "X": b'{"type": "ValueError", "message": "no", "traceback": "", "line": 1, "cause": "memory"}',
    "Q": b'{"exit_code": 0, "signal": null, "ended": "exited", "max_rss_kib": 1, "cpu_s": 0.1, "wall_s": 0.1}',
}


def look(data: bytes) -> None:
    """Read a stream as a run does; raises for anything but a violation, and for what is past the caps.

    The first byte says whether a good start comes before it, and where the stream is cut in two.
    """
    collector = Collector(LIMITS)
    cut, stream = (data[0], data[1:]) if data else (0, b"")
    stream = START + stream if cut & 1 else stream

    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(stream[:cut])
        asyncio.get_running_loop().call_soon(end, reader)
        source = FrameReader(reader)
        while collector.quit is None and (frame := await source.read()) is not None:
            collector.feed(*frame)

    def end(reader: asyncio.StreamReader) -> None:
        reader.feed_data(stream[cut:])
        reader.feed_eof()

    try:
        LOOP.run_until_complete(asyncio.wait_for(read(), 5))
        for committed in (collector.result_json, collector.additional_data_json):
            text = committed()
            assert text is None or len(text) <= LIMITS.result_bytes
            assert text is None or json.loads(text) is not ...
    except ProtocolViolation:
        pass
    assert len(collector.stdout) + len(collector.stderr) <= LIMITS.output_bytes
    assert len(collector.logs) <= LIMITS.log_records
    assert len(collector.files) <= LIMITS.files_count
    assert sum(len(file.content) for file in collector.files) <= LIMITS.files_bytes


LOOP = asyncio.new_event_loop()


def main() -> None:
    """Fuzz for as long as was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.wire_fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--corpus", type=Path, default=Path("build/wire-fuzz"))
    arguments = parser.parse_args()
    corpus: Path = arguments.corpus
    corpus.mkdir(parents=True, exist_ok=True)
    for kind in FROM_HARNESS:
        (corpus / f"seed-{ord(kind)}").write_bytes(b"\x01" + encode(kind, RIGHT.get(kind, b"1")))
    (corpus / "seed-all").write_bytes(b"\x01" + b"".join(encode(kind, RIGHT.get(kind, b"1")) for kind in "OELFfVAMXQ"))
    options = [
        f"-max_total_time={arguments.seconds}",
        "-max_len=4096",
        "-timeout=10",
        "-rss_limit_mb=1024",
        f"-artifact_prefix={corpus}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], look)
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main()
