"""What the service counts, in the text format that Prometheus reads.

Every `Metrics` has a registry of its own: nothing is shared in the process, and nothing of the process is added. Names of policies and
environments become labels, so they must be names that were admitted, and at most `MAX_NAMES` of a kind are told apart.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
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
    """Where the present state is asked for, each time that the metrics are read. The functions must be quick and not raise."""

    running: Callable[[], float]
    waiting: Callable[[], float]
    pool: Callable[[], Iterable[Shelved]]


class Metrics:
    """Everything that is counted. The plain counters are attributes, to be raised with `inc(amount)`."""

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
        self.sandboxes_started = self._counter("sandboxes_started", "Sandboxes that were started and verified.")
        self.sandboxes_used = self._counter("sandboxes_used", "Sandboxes that were given to a run.")
        self.sandboxes_retired = self._counter("sandboxes_retired", "Sandboxes that were removed unused.")
        self.bytes_received = self._counter("received_bytes", "Bytes of requests.")
        self.bytes_sent = self._counter("sent_bytes", "Bytes of answers.")
        self.history_problems = self._counter("history_problems", "Runs that could not be written to the history.")
        self._gauge("runs_running", "Runs that have a sandbox now.").set_function(live.running)
        self._gauge("runs_waiting", "Runs that wait for their turn now.").set_function(live.waiting)
        self._gauge("start_time_seconds", "When the service started, in seconds since the epoch.").set(started_at)
        self._registry.register(_PoolLevels(live.pool))

    def run_ended(self, policy: str, result: RunResult) -> None:
        """Count a run under the policy's name, which must be one that was found; how long it took, and its connections."""
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

    def render(self) -> bytes:
        """Return everything as text (UTF-8), of the type `content_type`."""
        return generate_latest(self._registry)

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

    Environments come and go, and a gauge keeps nothing of those that went: other than of a counter, the names may change.
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


class _Registry(CollectorRegistry):
    """Leaves out when each series began: it doubles the text, and the format for it is another one (OpenMetrics)."""

    def collect(self) -> Iterable[Metric]:
        """Yield every metric with its values alone."""
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
