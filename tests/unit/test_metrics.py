"""What a Prometheus server reads of the service, seen through Prometheus's own parser."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from sandbox.models import Durations, EgressRecord, Outcome, Receipt, RunResult
from sandbox.service.metrics import BUCKETS_S, MAX_NAMES, TOTALS, Live, Metrics, Shelved
from sandbox.service.server import totals
from sandbox.wire.answers import CellCounts, PoolCounts

POOL = PoolCounts(ready=0, starting=0, kinds=0, memory_mib=0, started=1, taken=2, cold=3, retired=4, failed=5)
CELLS = CellCounts(containers=0, memory_mib=0, cells=1, started=2, retired=3, broken=4, refused=5)
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def metrics(
    *, running: float = 0, waiting: float = 0, pool: Iterable[Shelved] = (), started_at: float = 1.0e9
) -> Metrics:
    return Metrics(Live(running=lambda: running, waiting=lambda: waiting, pool=lambda: pool), started_at=started_at)


def read(counted: Metrics) -> Values:
    """Return every value by name and labels."""
    families = text_string_to_metric_families(counted.render().decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(counted: Metrics, name: str, **labels: str) -> float | None:
    return read(counted).get((name, frozenset(labels.items())))


def labels_of(counted: Metrics, name: str, label: str) -> dict[str, float]:
    return {dict(labels)[label]: number for (found, labels), number in read(counted).items() if found == name}


def ended(outcome: Outcome = Outcome.SUCCEEDED, *, began: bool = True, **fields: Any) -> RunResult:
    durations = fields.pop("durations", Durations())
    receipt = Receipt(
        run_id="r",
        started_at="",
        policy="p",
        policy_hash="",
        image="",
        image_digest="",
        code_hash="",
        payload_hash="",
        engine="",
        runtime="",
        kernel="",
        controls=(),
        outcome=outcome,
        durations=durations,
    )
    return RunResult(run_id="r", outcome=outcome, durations=durations, receipt=receipt if began else None, **fields)


def test_runs_are_counted_by_policy_and_outcome() -> None:
    counted = metrics()
    for policy, outcome in [
        ("a", Outcome.SUCCEEDED),
        ("a", Outcome.SUCCEEDED),
        ("b", Outcome.SUCCEEDED),
        ("a", Outcome.FAILED),
    ]:
        counted.run_ended(policy, ended(outcome))
    assert value(counted, "sandbox_runs_total", policy="a", outcome="succeeded") == 2
    assert value(counted, "sandbox_runs_total", policy="b", outcome="succeeded") == 1
    assert value(counted, "sandbox_runs_total", policy="a", outcome="failed") == 1


def test_errors_are_counted_by_code() -> None:
    counted = metrics()
    for code in ("queue_full", "queue_full", "internal"):
        counted.error(code)
    assert labels_of(counted, "sandbox_errors_total", "code") == {"queue_full": 2, "internal": 1}


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("queue_wait", 0.0008), ("sandbox_wait", 0.004), ("program", 0.3), ("run", 12.0)],
)
def test_each_time_lands_in_its_histogram_in_seconds(name: str, seconds: float) -> None:
    counted = metrics()
    counted.run_ended(
        "p", ended(durations=Durations(queue_ms=0.8, sandbox_ms=4.0, program_ms=300.0, total_ms=12_000.0))
    )
    assert value(counted, f"sandbox_{name}_seconds_sum") == seconds
    buckets = labels_of(counted, f"sandbox_{name}_seconds_bucket", "le")
    assert {float(edge) for edge in buckets} == {*BUCKETS_S, math.inf}
    assert {float(edge) for edge, count in buckets.items() if count} == {
        edge for edge in (*BUCKETS_S, math.inf) if edge >= seconds
    }


def test_a_run_that_never_had_a_sandbox_is_counted_but_not_timed() -> None:
    counted = metrics()
    counted.run_ended("p", ended(Outcome.CANCELLED, began=False))
    assert value(counted, "sandbox_runs_total", policy="p", outcome="cancelled") == 1
    assert value(counted, "sandbox_run_seconds_count") == 0


def test_connections_and_their_bytes_are_counted_by_verdict_and_direction() -> None:
    counted = metrics()
    counted.run_ended(
        "p",
        ended(
            egress=(
                EgressRecord(host="a", port=1, allowed=True, bytes_up=10, bytes_down=200),
                EgressRecord(host="b", port=2, allowed=False),
            )
        ),
    )
    assert labels_of(counted, "sandbox_egress_connections_total", "verdict") == {"allowed": 1, "refused": 1}
    assert labels_of(counted, "sandbox_egress_bytes_total", "direction") == {"up": 10, "down": 200}


def test_the_present_is_asked_for_at_every_reading() -> None:
    now: list[Shelved] = []
    counted = Metrics(Live(running=lambda: len(now), waiting=lambda: 7, pool=lambda: now), started_at=5.0)
    assert value(counted, "sandbox_runs_running") == 0
    assert labels_of(counted, "sandbox_pool_ready", "environment") == {}
    # Two kinds (policies, preloaded modules) of one environment.
    now += [Shelved(environment="e", ready=2, starting=1), Shelved(environment="e", ready=3, starting=0)]
    assert value(counted, "sandbox_runs_running") == 2
    assert value(counted, "sandbox_runs_waiting") == 7
    assert value(counted, "sandbox_start_time_seconds") == 5.0
    assert labels_of(counted, "sandbox_pool_ready", "environment") == {"e": 5}
    assert labels_of(counted, "sandbox_pool_starting", "environment") == {"e": 1}
    now.clear()
    assert labels_of(counted, "sandbox_pool_ready", "environment") == {}


def test_what_pool_and_cells_count_is_told_as_it_is_now() -> None:
    now = {"containers_started_total": 3.0, "warm_containers": 2.0}
    counted = Metrics(Live(running=lambda: 0, waiting=lambda: 0, pool=lambda: (), totals=lambda: now), started_at=0.0)
    now["warm_containers"] = 1.0
    assert value(counted, "sandbox_containers_started_total") == 3
    assert value(counted, "sandbox_warm_containers") == 1
    assert set(totals(POOL, CELLS)) == set(TOTALS)


def test_after_a_hundred_policies_the_rest_are_one() -> None:
    counted = metrics()
    for number in range(MAX_NAMES + 50):
        counted.run_ended(f"p{number}", ended())
    counted.run_ended("p7", ended())
    found = labels_of(counted, "sandbox_runs_total", "policy")
    assert len(found) == MAX_NAMES + 1
    assert found["p7"] == 2
    assert found["other"] == 50


def test_a_reader_sees_the_policies_that_it_may_and_everything_else() -> None:
    counted = metrics()
    for policy in ("mine", "theirs"):
        counted.run_ended(policy, ended())
    text = counted.render(lambda policy: policy == "mine").decode()
    assert "theirs" not in text
    assert 'policy="mine"' in text
    assert "sandbox_run_seconds_count 2.0" in text
    assert set(labels_of(counted, "sandbox_runs_total", "policy")) == {"mine", "theirs"}, "nothing is lost by a look"


def test_made_up_error_codes_do_not_grow_the_text_for_ever() -> None:
    counted = metrics()
    for number in range(1000):
        counted.error(f"c{number}")
    assert len(labels_of(counted, "sandbox_errors_total", "code")) == MAX_NAMES + 1


def test_of_many_environments_the_largest_are_told_apart_and_none_is_lost() -> None:
    pool = [Shelved(environment=f"e{number}", ready=1, starting=2) for number in range(MAX_NAMES + 20)]
    pool.append(Shelved(environment="zz", ready=9, starting=0))
    found = labels_of(metrics(pool=pool), "sandbox_pool_ready", "environment")
    assert len(found) == MAX_NAMES + 1
    assert found["zz"] == 9
    assert found["other"] == 21
    assert sum(found.values()) == MAX_NAMES + 20 + 9


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nsandbox_runs_total 99", "ä{}"])
def test_a_strange_name_stays_inside_its_label(name: str) -> None:
    counted = metrics(pool=[Shelved(environment=name, ready=1, starting=0)])
    counted.run_ended(name, ended())
    assert labels_of(counted, "sandbox_runs_total", "policy") == {name: 1}
    assert labels_of(counted, "sandbox_pool_ready", "environment") == {name: 1}


def test_two_services_in_one_process_share_nothing() -> None:
    before = {metric.name for metric in REGISTRY.collect()}
    one, other = metrics(), metrics()
    one.error("internal")
    assert labels_of(other, "sandbox_errors_total", "code") == {}
    assert {metric.name for metric in REGISTRY.collect()} == before


def test_the_text_has_our_names_only_and_no_time_of_creation() -> None:
    names = {name for name, _ in read(metrics())}
    assert {name for name in names if not name.startswith("sandbox_")} == set()
    assert {name for name in names if name.endswith("_created")} == set()


def test_the_content_type_is_that_of_the_text_format() -> None:
    assert metrics().content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert metrics().render().endswith(b"\n")
