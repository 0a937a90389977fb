"""What the service counts, in the text format that Prometheus reads.

Every `Metrics` has a registry of its own: nothing is shared in the process, and nothing of the process is added. Names
of policies and environments become labels, so they must be names that were admitted, and at most `MAX_NAMES` of a kind
are told apart.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sandbox.models import RunResult

MAX_NAMES = 100
OTHER = "other"
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, kw_only=True)
class Shelved:
    """How many unused sandboxes of one environment stand ready, and how many are being started."""

    environment: str
    ready: int
    starting: int


@dataclass(frozen=True, kw_only=True)
class Live:
    """Where the present state is asked for, each time that the metrics are read.

    The functions must be quick and not raise.
    """

    running: Callable[[], float]
    waiting: Callable[[], float]
    pool: Callable[[], Iterable[Shelved]]
    totals: Callable[[], Mapping[str, float]] = dict


# What `Live.totals` tells; counters end in _total. The names are those of the metrics, behind "sandbox_".
TOTALS = {
    "containers_started_total": "Containers of the pool that were started and verified.",
    "containers_used_total": "Containers of the pool that were given to a run.",
    "containers_retired_total": "Containers of the pool that were removed unused.",
    "warm_containers": "Warm containers, in which cells are made, that there are now.",
    "warm_containers_started_total": "Warm containers that were started.",
    "cells_total": "Cells that were given to a run.",
}


class Metrics:
    """Everything that is counted."""

    content_type: Final = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, live: Live, *, started_at: float) -> None:
        """Begin at zero; `started_at` is when the service started, in seconds since the epoch."""
        self._registry = _Registry()
        self._policies = BoundedNames(MAX_NAMES)
        self._codes = BoundedNames(MAX_NAMES)
        self._runs = self._counter("runs", "Runs that ended, by policy and outcome.", "policy", "outcome")
        self._errors = self._counter("errors", "Requests that were answered with an error, by its code.", "code")
        self._queue = self._histogram("queue_wait_seconds", "Time that runs waited for their turn.")
        self._sandbox = self._histogram("sandbox_wait_seconds", "Time that runs waited for a verified sandbox.")
        self._program = self._histogram("program_seconds", "Time that programs ran.")
        self._total = self._histogram("run_seconds", "Time that runs took, from request to result.")
        self._egress = self._counter(
            "egress_connections", "Connections that programs asked for, by the proxy's verdict.", "verdict"
        )
        self._egress_bytes = self._counter("egress_bytes", "Bytes through egress proxies, up and down.", "direction")
        self._gauge("runs_running", "Runs that have a sandbox now.").set_function(live.running)
        self._gauge("runs_waiting", "Runs that wait for their turn now.").set_function(live.waiting)
        self._gauge("start_time_seconds", "When the service started, in seconds since the epoch.").set(started_at)
        self._registry.register(_PoolLevels(live.pool))
        self._registry.register(_Totals(live.totals))

    def run_ended(self, policy: str, result: RunResult) -> None:
        """Count a run, its time and its connections, under the policy's name, which must be one that was found."""
        self._runs.labels(self._policies.label(policy), result.outcome.value).inc()
        if result.receipt is not None:  # without one it never had a sandbox, and its times would say nothing
            spent = result.durations
            self._queue.observe(spent.queue_ms / 1000)
            self._sandbox.observe(spent.sandbox_ms / 1000)
            self._program.observe(spent.program_ms / 1000)
            self._total.observe(spent.total_ms / 1000)
        for record in result.egress:
            self._egress.labels("allowed" if record.allowed else "refused").inc()
            self._egress_bytes.labels("up").inc(record.bytes_up)
            self._egress_bytes.labels("down").inc(record.bytes_down)

    def error(self, code: str) -> None:
        """Count an answer that was an error, by the `code` of its class."""
        self._errors.labels(self._codes.label(code)).inc()

    def render(self, may_see: Callable[[str], bool] = lambda _: True) -> bytes:
        """Return everything as UTF-8 text of the type `content_type`, with the policies that `may_see` allows."""
        return generate_latest(_Excerpt(self._registry, may_see))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"sandbox_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"sandbox_{name}", text, buckets=BUCKETS_S, registry=self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"sandbox_{name}", text, registry=self._registry)


class BoundedNames:
    """Keeps what comes from outside from making ever more series."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """Return one of the first `limit` different names as it is, for ever; any later one is `other`."""
        if len(self._known) < self._limit:
            self._known.add(name)
        return name if name in self._known else OTHER


class _PoolLevels(Collector):
    """The pool by environment: the `MAX_NAMES` largest of the moment by name, the others together.

    Environments come and go, and a gauge keeps nothing of those that went: other than of a counter, the names may
    change.
    """

    def __init__(self, pool: Callable[[], Iterable[Shelved]]) -> None:
        self._pool = pool

    def describe(self) -> Iterable[Metric]:
        """Name what is collected, so that nothing else takes the names."""
        return (
            GaugeMetricFamily("sandbox_pool_ready", "Unused sandboxes that stand ready now.", labels=["environment"]),
            GaugeMetricFamily(
                "sandbox_pool_starting", "Sandboxes that are being started now, ahead of need.", labels=["environment"]
            ),
        )

    def collect(self) -> Iterable[Metric]:
        """Return both gauges as they are now."""
        levels: dict[str, Tally[str]] = {}
        for shelf in self._pool():
            levels.setdefault(shelf.environment, Tally()).update(ready=shelf.ready, starting=shelf.starting)
        largest = sorted(levels, key=lambda name: (-levels[name].total(), name))
        rest: Tally[str] = Tally()
        for name in largest[MAX_NAMES:]:
            rest.update(levels.pop(name))
        if rest:
            levels.setdefault(OTHER, Tally()).update(rest)
        gauges = tuple(self.describe())
        for gauge, kind in zip(gauges, ("ready", "starting"), strict=True):
            for name, level in sorted(levels.items()):
                gauge.add_sample(gauge.name, {"environment": name}, level[kind])
        return gauges


class _Totals(Collector):
    """Numbers that pool and cells keep themselves."""

    def __init__(self, totals: Callable[[], Mapping[str, float]]) -> None:
        self._totals = totals

    def describe(self) -> Iterable[Metric]:
        """Name what is collected, so that nothing else takes the names."""
        return [_family(name, 0) for name in TOTALS]

    def collect(self) -> Iterable[Metric]:
        """Return all of them as they are now."""
        return [_family(name, value) for name, value in self._totals().items()]


def _family(name: str, value: float) -> Metric:
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    return kind(f"sandbox_{name.removesuffix('_total')}", TOTALS[name], value=value)


class _Excerpt(CollectorRegistry):
    """Another registry, without the rows of policies that its reader is not to know of."""

    def __init__(self, whole: CollectorRegistry, may_see: Callable[[str], bool]) -> None:
        super().__init__()
        self._whole = whole
        self._may_see = may_see

    def collect(self) -> Iterable[Metric]:
        """Yield every metric with the rows that are left."""
        for metric in self._whole.collect():
            metric.samples = [
                sample
                for sample in metric.samples
                if "policy" not in sample.labels or self._may_see(sample.labels["policy"])
            ]
            yield metric


class _Registry(CollectorRegistry):
    """Leaves out when each series began: it doubles the text, and the format for it is another one (OpenMetrics)."""

    def collect(self) -> Iterable[Metric]:
        """Yield every metric with its values alone."""
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
