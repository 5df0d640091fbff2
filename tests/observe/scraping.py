"""A scrape, read as Prometheus would read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import httpx
import trio
from prometheus_client.parser import text_string_to_metric_families

from cador_trio.observe.metrics import SHARED, Registry, exposition

CAP_SECONDS: Final = 30.0
Key = tuple[str, frozenset[tuple[str, str]]]


class Scrape:
    """The samples of one moment."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: dict[Key, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples[sample.name, frozenset(sample.labels.items())] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples with at least these labels; there must be one."""
        wanted = labels.items()
        found = [value for (known, having), value in self.samples.items() if known == name and having >= wanted]
        assert found, f"no {name} with {labels}"
        return sum(found)

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The values that are not 0, by a label."""
        found: dict[str, float] = {}
        for (known, having), value in self.samples.items():
            if known == name and having >= labels.items() and value:
                key = dict(having)[label]
                found[key] = found.get(key, 0) + value
        return found


def scrape_of(registry: Registry = SHARED) -> Scrape:
    """What is counted in this process, or what the registry says."""
    return Scrape(exposition(registry, "")[0].decode())


class Moved:
    """What counters of this process have moved by since this was made."""

    def __init__(self) -> None:
        self._before = scrape_of()

    def __call__(self, name: str, **labels: str) -> float:
        """By how much a counter has moved; a series that was not there began at 0."""
        return self._value(scrape_of(), name, labels) - self._value(self._before, name, labels)

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The moves that there were, by a label."""
        now, before = scrape_of().by(label, name, **labels), self._before.by(label, name, **labels)
        moves = {key: value - before.get(key, 0) for key, value in now.items()}
        return {key: value for key, value in moves.items() if value}

    @staticmethod
    def _value(scrape: Scrape, name: str, labels: dict[str, str]) -> float:
        found = scrape.samples.items()
        return sum(value for (known, having), value in found if known == name and having >= labels.items())


async def scrape(client: httpx.AsyncClient) -> Scrape:
    """The daemon's, over HTTP."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return Scrape(answer.text)


async def wait_scrape(client: httpx.AsyncClient, holds: Callable[[Scrape], bool]) -> Scrape:
    """Scrape until it is as wanted; the last scrape if that does not come to be, for the test to show."""
    found = await scrape(client)
    with trio.move_on_after(CAP_SECONDS):  # noqa: ASYNC912 - it may be there already
        while not holds(found):
            await trio.sleep(0.05)
            found = await scrape(client)
    return found
