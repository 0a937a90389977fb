"""What builds ask the egress proxy for is summed up, bounded, and kept whatever else happens."""

from __future__ import annotations

from pathlib import Path

from sandbox.environment.build_egress import MAX_ROWS, note, read, summed
from sandbox.environment.store import Store
from sandbox.models import EgressRecord


def record(host: str = "index.test", *, reason: str = "", down: int = 10) -> EgressRecord:
    return EgressRecord(host=host, port=443, allowed=not reason, reason=reason, bytes_up=1, bytes_down=down)


def test_records_that_say_the_same_are_one_row_with_their_sums() -> None:
    rows = summed([], "fetch", [record(), record(down=5), record("evil.test", reason="not allowed")], now=7.0)
    same, refused = rows
    assert (same["connections"], same["bytes_up"], same["bytes_down"], same["last"]) == (2, 2, 15, 7.0)
    assert (refused["host"], refused["allowed"], refused["reason"]) == ("evil.test", False, "not allowed")
    assert [row["step"] for row in summed(rows, "resolve", [record()], now=8.0)] == ["fetch", "fetch", "resolve"]


def test_connections_by_a_proxy_are_rows_of_their_own_and_older_rows_say_of_none(tmp_path: Path) -> None:
    by_proxy = EgressRecord(host="index.test", port=443, allowed=True, proxy="http://proxy.test:3128", bytes_down=3)
    path = tmp_path / "x.egress"
    note(path, "fetch", [record(), by_proxy, by_proxy])
    assert [(row["proxy"], row["connections"]) for row in read(path)] == [("", 1), ("http://proxy.test:3128", 2)]
    path.write_text(path.read_text().replace('"proxy": "", ', ""))
    assert [row["proxy"] for row in read(path)] == ["", "http://proxy.test:3128"]


def test_the_newest_rows_are_kept() -> None:
    rows = summed([], "fetch", [record(f"h{number}.test") for number in range(MAX_ROWS + 5)], now=1.0)
    rows = summed(rows, "fetch", [record("h9.test")], now=2.0)
    assert len(rows) == MAX_ROWS
    assert (rows[0]["host"], rows[-1]["host"], rows[-1]["connections"]) == ("h5.test", "h9.test", 2)


def test_a_file_that_is_damaged_or_not_there_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "x.egress"
    assert read(path) == []
    for text in ("", "[", "7", "[7]", '[{"step": "fetch"}]'):
        path.write_text(text)
        assert read(path) == []
    note(path, "fetch", [record()])
    assert [row["host"] for row in read(path)] == ["index.test"]


def test_an_environment_keeps_what_its_request_asked_for_and_takes_it_along(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.note_egress("request", "resolve", [record()])
    store.note_egress("request", "fetch", [record()])
    store.keep_egress("environment", "request")
    assert [row["step"] for row in store.egress("environment")] == ["resolve", "fetch"]
    store.forget("environment")
    assert store.egress("environment") == []
    assert [path for path in tmp_path.rglob("environment*") if path.is_file()] == []
