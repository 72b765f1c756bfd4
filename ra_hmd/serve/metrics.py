"""Observability: Prometheus metrics, and logs as JSON lines that hold nothing of what clients send."""

import json
import logging
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from ra_hmd import __version__
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.build import build_name
from ra_hmd.serve.durations import BOUNDS, Durations
from ra_hmd.serve.errors import public_name
from ra_hmd.serve.follower import BankFollower

log = logging.getLogger("ra_hmd.serve.requests")


class Metrics:
    """Metrics of an app, in a registry of its own.

    Args:
        service: Batching service whose queue and bank are reported.
        follower: Follows its example bank; None without one.
    """

    def __init__(self, service: BatchingService, follower: BankFollower | None = None) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "ra_hmd_requests", "Requests that were answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "ra_hmd_request_seconds", "From the first byte to the last.", ["route"], buckets=BOUNDS,
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(_ServiceCollector(service, follower))
        ProcessCollector(registry=self.registry)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record a request that was answered."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)


class _ServiceCollector:
    """Prometheus collector that reads the state of a service at each scrape."""

    def __init__(self, service: BatchingService, follower: BankFollower | None) -> None:
        self.service, self.follower = service, follower
        self._build = InfoMetricFamily("ra_hmd_build", "What serves.")
        run = public_name(str(service.detector.scorer.checkpoint))
        self._build.add_metric([], {"version": __version__, "build": build_name() or "", "run": run})

    def collect(self) -> Iterator[Metric]:
        service, statistics = self.service, self.service.statistics
        yield GaugeMetricFamily("ra_hmd_ready", "1 while memes are accepted.", float(service.ready))
        yield GaugeMetricFamily("ra_hmd_queue_memes", "Memes accepted and not answered.", service.pending)
        yield GaugeMetricFamily("ra_hmd_queue_limit", "Most of them.", service.settings.max_queue)
        yield CounterMetricFamily("ra_hmd_memes", "Memes judged.", statistics.memes)
        yield CounterMetricFamily("ra_hmd_known_memes", "Of these, known: judged without the model.", statistics.known)
        yield CounterMetricFamily("ra_hmd_refused_memes", "Memes for which the queue was full.", statistics.refused)
        yield self._batch_sizes()
        yield _histogram("ra_hmd_queue_seconds", "In which a meme waited.", statistics.waiting)
        yield _histogram("ra_hmd_prepare_seconds", "In which a meme was decoded and tokenised.", statistics.preparing)
        yield _histogram("ra_hmd_compute_seconds", "Of a forward pass with its vote.", statistics.computing)
        verdicts = CounterMetricFamily("ra_hmd_verdicts", "Memes by the verdict.", labels=["head", "verdict"])
        for (head, verdict), number in sorted(statistics.verdicts.copy().items()):
            verdicts.add_metric([head, verdict], number)
        yield verdicts
        yield self._build
        bank = service.detector.scorer.bank
        if bank is not None:
            yield GaugeMetricFamily("ra_hmd_bank_version", "Of the bank that votes.", bank.version)
            yield GaugeMetricFamily("ra_hmd_bank_rows", "Memes in it.", len(bank))
        if self.follower is not None:
            lag = self.follower.lag
            yield GaugeMetricFamily("ra_hmd_bank_newest_version", "Newest version that is known here.", lag.newest)
            yield GaugeMetricFamily(
                "ra_hmd_bank_lag_seconds", "Since the newest version was last known to vote.", lag.seconds
            )
            yield GaugeMetricFamily("ra_hmd_bank_lag_limit_seconds", "Most of them of a ready replica.", lag.limit)

    def _batch_sizes(self) -> Metric:
        sizes, most = self.service.statistics.sizes.copy(), self.service.settings.max_batch
        limits = [2**power for power in range(most.bit_length()) if 2**power < most] + [most]
        buckets = [(str(float(limit)), sum(n for size, n in sizes.items() if size <= limit)) for limit in limits]
        metric = HistogramMetricFamily("ra_hmd_batch_memes", "Memes of a forward pass.")
        metric.add_metric([], [*buckets, ("+Inf", sum(sizes.values()))], sum(size * n for size, n in sizes.items()))
        return metric


def _histogram(name: str, words: str, durations: Durations) -> Metric:
    metric = HistogramMetricFamily(name, words)
    metric.add_metric([], durations.buckets(), durations.total)
    return metric


class JsonFormatter(logging.Formatter):
    """Formats a log record as one line of JSON. Of an exception it keeps the type and the traceback, not the message,
    which may quote what was sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        time_ = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event = record.getMessage().partition("\n")[0]  # asyncio appends exception messages on further lines
        line: dict[str, Any] = {"time": time_, "level": record.levelname.lower(), "event": event}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            frames = traceback.extract_tb(error.__traceback__)
            line |= {
                "error": type(error).__name__,
                "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]],
            }
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(stream: Any) -> None:
    """Send the logs of the service and of uvicorn to a stream, as JSON lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    for name in ("ra_hmd.serve", "uvicorn", "asyncio", "concurrent.futures"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def log_request(started: float, status: int, fields: dict[str, Any]) -> None:
    """Log a request that was answered; `started` is a time of `time.perf_counter`."""
    milliseconds = round((time.perf_counter() - started) * 1000, 1)
    log.info("request", extra={"fields": {**fields, "status": status, "ms": milliseconds}})
