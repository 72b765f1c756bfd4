"""Prometheus metrics of cases."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from ra_hmd.cases.database import UNAVAILABLE
from ra_hmd.cases.history import webhooks_by_state
from ra_hmd.cases.statistics import waiting
from ra_hmd.serve.case_service import CaseService

_log = logging.getLogger("ra_hmd.serve")
_MOST_QUEUES = 100


class CaseCollector:
    """Prometheus collector that reads the cases at each scrape; a database that is away is no error of the scrape."""

    def __init__(self, cases: CaseService) -> None:
        self.cases = cases

    def collect(self) -> Iterator[Metric]:
        statistics = self.cases.statistics
        yield _counter("ra_hmd_cases_added", "Cases made here, by why a person looks at them.", "why", statistics.added)
        yield _counter("ra_hmd_decisions", "Decisions made here.", "action", statistics.decisions)
        yield CounterMetricFamily("ra_hmd_decisions_undone", "Decisions taken back here.", statistics.undone)
        yield CounterMetricFamily(
            "ra_hmd_cases_missed", "Verdicts that the policy chose and that became no case.", self.cases.watcher.missed
        )
        try:
            database = self.cases.store.database
            queues, webhooks = waiting(database)[:_MOST_QUEUES], webhooks_by_state(database)
        except UNAVAILABLE:
            _log.exception("the case database failed")
            return
        cases = GaugeMetricFamily("ra_hmd_cases_open", "Cases that wait for people.", labels=["queue", "state"])
        oldest = GaugeMetricFamily("ra_hmd_cases_oldest_seconds", "For which the oldest waits.", labels=["queue"])
        for queue in queues:
            for state, count in queue.states.items():
                cases.add_metric([queue.queue, state], count)
            oldest.add_metric([queue.queue], (datetime.now(UTC) - queue.oldest).total_seconds())
        yield cases
        yield oldest
        sent = GaugeMetricFamily("ra_hmd_webhooks", "Webhooks that wait, or were given up.", labels=["state"])
        for state, count in webhooks.items():
            sent.add_metric([state], count)
        yield sent


def _counter(name: str, words: str, label: str, counts: dict[str, int]) -> Metric:
    metric = CounterMetricFamily(name, words, labels=[label])
    for value, count in sorted(counts.copy().items()):
        metric.add_metric([value], count)
    return metric
