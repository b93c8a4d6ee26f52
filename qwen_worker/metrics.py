"""The counts of a worker as Prometheus reads them; https://prometheus.io/docs/instrumenting/exposition_formats/."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from qwen_worker.ledger import BOUNDS, Histogram, Ledger

__all__ = ["CONTENT_TYPE", "text"]

PREFIX = "qwen_worker_"
INFO = ("model_id", "model_revision", "preset", "profile")


class _Counts(Collector):
    """What there is to say now."""

    def __init__(self, ledger: Ledger, about: Mapping[str, Any], start_s: Mapping[str, float]) -> None:
        self._ledger = ledger
        self._about = about
        self._start_s = start_s

    def collect(self) -> Iterable[Metric]:
        ledger, spent = self._ledger, self._ledger.spent
        yield _counter("jobs", "Requests for pictures, and whatever failed.", ("operation", "outcome"), ledger.jobs)
        yield _counter("pictures", "Made, or found where they had been made before.", ("kind",), _one(ledger.pictures))
        sources = {("hit",): spent.cache_hits, ("miss",): spent.sources - spent.cache_hits}
        yield _counter("sources", "Pictures that jobs named; a hit came out of the bucket.", ("cache",), sources)
        bytes_ = {("in",): spent.bytes_in, ("out",): spent.bytes_out}
        yield _counter("bytes", "Of sources and of results.", ("direction",), bytes_)
        yield CounterMetricFamily(f"{PREFIX}gpu_seconds", "Seconds that the GPU was a job's own.", value=ledger.gpu_s)
        cost = ledger.cost(ledger.gpu_s)
        if cost is not None:
            yield CounterMetricFamily(f"{PREFIX}cost_usd", "US dollars of these seconds, an estimate.", value=cost)
        stages = HistogramMetricFamily(f"{PREFIX}stage_seconds", "Wall time of a job's stages.", labels=["stage"])
        for stage, histogram in sorted(ledger.stages.items()):
            stages.add_metric([stage], _buckets(histogram), histogram.total_s)
        yield stages
        device = dict(self._about["device"])
        told = (*(str(self._about[name]) for name in INFO), device.pop("name"))
        yield _gauge("info", "What this worker is.", (*INFO, "device"), {told: 1})
        memory = {(name.removeprefix("memory_"),): size for name, size in device.items()}
        yield _gauge("device_memory_bytes", "Of the GPU, or of the process where there is none.", ("kind",), memory)
        start = {(part,): seconds for part, seconds in self._start_s.items()}
        yield _gauge("start_seconds", "From the start of the process until this was done.", ("part",), start)


def text(ledger: Ledger, about: Mapping[str, Any], start_s: Mapping[str, float]) -> bytes:
    """All that is counted, and what Prometheus' own client tells of a process.

    Args:
        ledger: the counts.
        about: what `health` tells of the worker.
        start_s: part of the start → seconds from the start of the process until it was done.
    """
    registry = CollectorRegistry()
    registry.register(_Counts(ledger, about, start_s))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _one(counts: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    return {(name,): count for name, count in counts.items()}


def _counter(name: str, about: str, labels: tuple[str, ...], counts: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, about, labels=labels)
    for values, count in sorted(counts.items()):
        family.add_metric(values, count)
    return family


def _gauge(name: str, about: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, about, labels=labels)
    for named, value in values.items():
        family.add_metric(named, value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """As Prometheus counts: each holds those below it."""
    below, found = 0, []
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), histogram.counts, strict=True):
        below += count
        found.append((bound, float(below)))
    return found
