"""What `scripts/test` reads out of the JUnit reports of its tiers: how many tests ran, and which took longest.

    python -m tests.reports counts REPORT …       functions, cases, passed, failed, skipped; all zero without a report
    python -m tests.reports slowest N REPORT …    the test functions that took longest, the seconds of their cases summed

A test function counts once, in however many cases it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test case of a report. `status` is passed, failed or skipped."""

    function: str
    seconds: float
    status: str


def cases(reports: Iterable[Path]) -> Iterator[Case]:
    """Yield the cases of all reports that can be read."""
    for report in reports:
        try:
            root = ElementTree.parse(report).getroot()
        except (OSError, ElementTree.ParseError):
            continue
        for element in root.iter("testcase"):
            inner = {child.tag for child in element}
            status = "failed" if inner & {"failure", "error"} else "skipped" if "skipped" in inner else "passed"
            name = f"{element.get('classname', '')}::{element.get('name', '').partition('[')[0]}"
            yield Case(function=name, seconds=float(element.get("time", 0)), status=status)


def counts(found: Iterable[Case]) -> tuple[int, int, int, int, int]:
    """Return how many functions and cases ran, and how many cases passed, failed, and were skipped."""
    every = list(found)
    ran = [case for case in every if case.status != "skipped"]
    failed = sum(case.status == "failed" for case in ran)
    return len({case.function for case in ran}), len(ran), len(ran) - failed, failed, len(every) - len(ran)


def slowest(found: Iterable[Case], number: int) -> list[tuple[str, float, int]]:
    """Return the functions that took longest, each with its seconds and the number of its cases."""
    seconds: dict[str, float] = {}
    times: dict[str, int] = {}
    for case in found:
        seconds[case.function] = seconds.get(case.function, 0.0) + case.seconds
        times[case.function] = times.get(case.function, 0) + 1
    ordered = sorted(seconds.items(), key=lambda entry: (-entry[1], entry[0]))
    return [(function, took_s, times[function]) for function, took_s in ordered[:number]]


def main(words: list[str]) -> None:
    """Print what was asked for."""
    if words[0] == "counts":
        print(*counts(cases(map(Path, words[1:]))))
    else:
        for function, took_s, number in slowest(cases(map(Path, words[2:])), int(words[1])):
            print(f"{took_s:8.1f} s  {number:4d} {'case ' if number == 1 else 'cases'}  {function}")


if __name__ == "__main__":
    main(sys.argv[1:])
