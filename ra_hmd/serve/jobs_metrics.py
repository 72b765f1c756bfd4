"""Prometheus metrics of jobs."""

from collections import Counter
from collections.abc import Iterator
from typing import get_args

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from ra_hmd.core.manifests import JobStatus
from ra_hmd.serve.jobs_runner import JobRunner


class JobCollector:
    """Prometheus collector that reads the folder of jobs at each scrape."""

    def __init__(self, jobs: JobRunner) -> None:
        self.jobs = jobs

    def collect(self) -> Iterator[Metric]:
        states = self.jobs.store.states()
        counts = Counter(state.status for state in states)
        metric = GaugeMetricFamily("ra_hmd_jobs", "Jobs of the folder, of all processes.", labels=["status"])
        for status in get_args(JobStatus):
            metric.add_metric([status], counts[status])
        yield metric
        left = sum(state.memes - state.judged - state.rejected for state in states if state.finished is None)
        yield GaugeMetricFamily("ra_hmd_jobs_left_memes", "Memes of jobs that are not done.", left)
        yield GaugeMetricFamily("ra_hmd_jobs_runner", "1 in the process that judges jobs.", float(self.jobs.active))
        yield CounterMetricFamily("ra_hmd_job_memes", "Memes of jobs that this process has finished.", self.jobs.memes)
