"""Every metric that there is, by introspection: what documents, dashboards and alerts are held against."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Final

from prometheus_client.metrics import MetricWrapperBase

from cador_trio.observe import metrics
from cador_trio.observe.metrics import SHARED, Reading

# What Prometheus adds to every series; the last ones in Kubernetes.
TARGET_LABELS: Final = frozenset({"job", "instance", "namespace", "pod", "service"})
# Made by Prometheus itself for each scrape.
OF_PROMETHEUS: Final = "up"
# Their labels' values come to be known as they happen.
_OPEN: Final = frozenset({"cador_http_requests_total", "cador_kafka_client_errors_total"})


@dataclass(frozen=True)
class Described:
    """A metric as the page names it; `values` of a label only where all are known from the start."""

    name: str
    kind: str
    labels: frozenset[str]
    text: str
    values: dict[str, frozenset[str]]

    @property
    def series(self) -> set[str]:
        """The names of its series."""
        parts = ("_bucket", "_sum", "_count") if self.kind == "histogram" else ("",)
        return {self.name + part for part in parts}


@cache
def catalogue() -> dict[str, Described]:
    """By name."""
    ours = (_ours(metric) for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase))
    read = (
        Described(one.name, "gauge", frozenset(one.labels), one.text, {})
        for one in vars(metrics).values()
        if isinstance(one, Reading)
    )
    return {one.name: one for one in chain(ours, read, _of_the_library())}


def _ours(metric: MetricWrapperBase) -> Described:
    labels: tuple[str, ...] = metric._labelnames
    kind = metric._type or ""
    if kind == "info":
        labels = ("version", "python")
    name = metric._name + {"counter": "_total", "info": "_info"}.get(kind, "")
    values = {} if name in _OPEN else _values(metric)
    return Described(name, kind, frozenset(labels), metric._documentation, values)


def _values(metric: MetricWrapperBase) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for family in metric.collect():
        for sample in family.samples:
            for label, value in sample.labels.items():
                found.setdefault(label, set()).add(value)
    return {label: frozenset(values) for label, values in found.items()}


def _of_the_library() -> list[Described]:
    found = []
    for family in SHARED.collect():
        if not family.name.startswith("cador_"):
            labels = frozenset(label for sample in family.samples for label in sample.labels)
            name = family.name + ("_total" if family.type == "counter" else "")
            found.append(Described(name, family.type, labels, family.documentation, {}))
    return found


@cache
def series() -> dict[str, Described]:
    """By the name of a series, as expressions say it."""
    return {name: one for one in catalogue().values() for name in one.series}
