"""What is read out of the tiers' reports: functions, not cases, and the slowest of them."""

from __future__ import annotations

from pathlib import Path

from tests.reports import cases, counts, slowest

REPORT = """<testsuites><testsuite tests="5">
<testcase classname="tests.unit.test_a" name="test_one[a]" time="1.5"/>
<testcase classname="tests.unit.test_a" name="test_one[b[0]]" time="2"><failure/></testcase>
<testcase classname="tests.unit.test_b" name="test_one" time="3"/>
<testcase classname="tests.unit.test_b" name="test_two" time="0.1"><error/></testcase>
<testcase classname="tests.unit.test_b" name="test_three" time="0"><skipped/></testcase>
</testsuite></testsuites>"""


def report(directory: Path) -> Path:
    path = directory / "unit.xml"
    path.write_text(REPORT)
    return path


def test_a_function_counts_once_and_its_cases_one_by_one(tmp_path: Path) -> None:
    assert counts(cases([report(tmp_path)])) == (3, 4, 2, 2, 1)


def test_the_cases_of_a_function_are_summed_and_the_slowest_is_first(tmp_path: Path) -> None:
    assert slowest(cases([report(tmp_path)]), 2) == [
        ("tests.unit.test_a::test_one", 3.5, 2),
        ("tests.unit.test_b::test_one", 3.0, 1),
    ]


def test_a_report_that_is_missing_or_cut_off_has_no_test(tmp_path: Path) -> None:
    cut = tmp_path / "cut.xml"
    cut.write_text(REPORT[:200])
    assert counts(cases([cut, tmp_path / "none.xml"])) == (0, 0, 0, 0, 0)
