"""Metrics of a running job, under one set of names: through Ray's agents on a cluster, else on a port of this machine.

Ray exports them with the prefix ``ray_`` on the metrics port of the driver's node. They count one run of a driver, as
counters do: what earlier runs finished is not in them.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tokenshard.engine.job_folder import Receipt
from tokenshard.engine.task import Done
from tokenshard.errors import JobError, SpecError
from tokenshard.spec.engine import EngineSpec

logger = logging.getLogger("tokenshard.engine")

UNIT_SECONDS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800)


@dataclass(frozen=True)
class Metric:
    """One metric; every one has the label ``output`` beside its own."""

    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()


METRICS = {
    "tokenshard_units_total": Metric(
        "counter", "Work units by what became of them: done, failed, died, quarantined", ("status",)
    ),
    "tokenshard_samples_total": Metric("counter", "Samples committed"),
    "tokenshard_rejects_total": Metric("counter", "Inputs rejected, by stage and error type", ("reason",)),
    "tokenshard_raw_bytes_total": Metric("counter", "Bytes of the inputs of committed samples"),
    "tokenshard_shard_bytes_total": Metric("counter", "Bytes of committed shards"),
    "tokenshard_tokens_total": Metric("counter", "Ids committed"),
    "tokenshard_stage_seconds_total": Metric(
        "counter", "Seconds of workers by stage: read, encode, code, commit", ("stage",)
    ),
    "tokenshard_unit_seconds": Metric("histogram", "Seconds a worker took for a unit"),
    "tokenshard_units_planned": Metric("gauge", "Work units of the job"),
    "tokenshard_workers": Metric("gauge", "Workers by state: ready, starting", ("state",)),
    "tokenshard_queue_depth": Metric("gauge", "Units given to workers and not finished"),
}
"""Name -> what it counts."""


class Meter(Protocol):
    """Where metrics go."""

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter, set a gauge, or observe a value of a histogram."""
        ...


class RayMeter:
    """Ray's own metrics; the process must be connected to a cluster."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._metrics: dict[str, Any] = {}
        for name, metric in METRICS.items():
            labels = ("output", *metric.labels)
            if metric.kind == "counter":
                self._metrics[name] = Counter(name, metric.description, labels)
            elif metric.kind == "gauge":
                self._metrics[name] = Gauge(name, metric.description, labels)
            else:
                self._metrics[name] = Histogram(name, metric.description, list(UNIT_SECONDS), labels)

    def add(self, name: str, value: float, **labels: str) -> None:
        metric, kind = self._metrics[name], METRICS[name].kind
        if kind == "counter":
            if value > 0:  # Ray takes no zero
                metric.inc(value, labels)
        elif kind == "gauge":
            metric.set(value, labels)
        else:
            metric.observe(value, labels)


class PrometheusMeter:
    """A page for Prometheus on a port of the loopback address."""

    def __init__(self, port: int) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
        except ImportError as error:
            raise SpecError("--metrics-port needs prometheus-client: pip install prometheus-client") from error
        registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {}
        for name, metric in METRICS.items():
            labels = ("output", *metric.labels)
            if metric.kind == "counter":
                self._metrics[name] = Counter(name, metric.description, labels, registry=registry)
            elif metric.kind == "gauge":
                self._metrics[name] = Gauge(name, metric.description, labels, registry=registry)
            else:
                self._metrics[name] = Histogram(
                    name, metric.description, labels, buckets=UNIT_SECONDS, registry=registry
                )
        try:
            self._server, self._thread = start_http_server(port, addr="127.0.0.1", registry=registry)
        except OSError as error:
            raise JobError(f"no metrics on port {port}: {error.strerror}; choose another --metrics-port") from error

    def add(self, name: str, value: float, **labels: str) -> None:
        metric, kind = self._metrics[name].labels(**labels), METRICS[name].kind
        if kind == "counter":
            metric.inc(value)
        elif kind == "gauge":
            metric.set(value)
        else:
            metric.observe(value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class JobMetrics:
    """Turns what happens to a job into metrics; does nothing where no meter listens."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._meters: list[Meter] = []

    def attach(self, meter: Meter) -> None:
        self._meters.append(meter)

    def _add(self, name: str, value: float, **labels: str) -> None:
        for meter in self._meters:
            meter.add(name, value, output=self._output, **labels)

    def planned(self, units: int) -> None:
        self._add("tokenshard_units_planned", units)

    def unit(self, receipt: Receipt, done: Done) -> None:
        """A unit is committed."""
        self._add("tokenshard_units_total", 1, status="done")
        self._add("tokenshard_samples_total", receipt.rows)
        for reason, count in receipt.reasons.items():
            self._add("tokenshard_rejects_total", count, reason=reason)
        self._add("tokenshard_raw_bytes_total", receipt.raw_bytes)
        if receipt.shard is not None:
            self._add("tokenshard_shard_bytes_total", receipt.shard.bytes)
            self._add("tokenshard_tokens_total", receipt.shard.ids)
        for stage, seconds in done.stages.items():
            self._add("tokenshard_stage_seconds_total", seconds, stage=stage)
        self._add("tokenshard_unit_seconds", done.seconds)

    def event(self, event: str) -> None:
        """A failure or decision that the journal has."""
        status = {"death": "died", "error": "failed", "quarantine": "quarantined"}.get(event)
        if status is not None:
            self._add("tokenshard_units_total", 1, status=status)

    def pool(self, ready: int, starting: int, queued: int) -> None:
        """Workers, and tasks they hold."""
        self._add("tokenshard_workers", ready, state="ready")
        self._add("tokenshard_workers", starting, state="starting")
        self._add("tokenshard_queue_depth", queued)


def on_cluster(engine: EngineSpec) -> bool:
    """Whether a job on Ray joins a cluster, whose agents export metrics, rather than start a Ray of its own."""
    return bool(engine.address or os.environ.get("RAY_ADDRESS"))
