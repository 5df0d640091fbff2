"""Is the process alive, is it ready: facts gathered by the services, judged when a probe asks.

Pure but for the clock that it is given, and asked from any thread. A service that must move on its own gives a
heartbeat; one that has a word to say about readiness gives a check.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final

EVENT_LOOP: Final = "the event loop"
STUCK_SECONDS: Final = 15.0  # without a heartbeat: longer than any single step of ours, shorter than a liveness budget


class Phase(StrEnum):
    """Where the daemon is in its life."""

    STARTING = "the daemon is starting"
    SERVING = "serving"
    DRAINING = "the daemon is stopping"


class Health:
    """What `/livez`, `/readyz` and `/health` say."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.phase = Phase.STARTING
        self._now = now
        self._beats: dict[str, float] = {}
        self._checks: list[Callable[[], str | None]] = []

    def beat(self, service: str) -> None:
        """This service is alive. From its first beat on it must go on."""
        self._beats[service] = self._now()

    def retire(self, service: str) -> None:
        """This service has ended in order: no beats are expected any more."""
        self._beats.pop(service, None)

    def add_check(self, check: Callable[[], str | None]) -> None:
        """A readiness check: the reason why new work should go elsewhere, or None."""
        self._checks.append(check)

    def stuck(self) -> list[str]:
        """Services without a heartbeat for too long: reasons to be restarted. Empty: alive."""
        found = (self.silence(service) for service in list(self._beats))
        return [reason for reason in found if reason is not None]

    def silence(self, service: str) -> str | None:
        """That this service has given no heartbeat for too long, in words; None: it has, or owes none."""
        beat = self._beats.get(service)
        if beat is None or (silent := self._now() - beat) <= STUCK_SECONDS:
            return None
        return f"{service} is stuck: no sign of life for {silent:.0f} s"

    def not_ready(self) -> list[str]:
        """Reasons to send work elsewhere. Empty: ready."""
        phase = [] if self.phase is Phase.SERVING else [str(self.phase)]
        found = (check() for check in self._checks)
        return [*phase, *(reason for reason in found if reason is not None), *self.stuck()]
