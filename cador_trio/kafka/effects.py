"""All that one job's end makes visible, as a value; and what can become of it.

Pure. `door.py` makes these, `writer.py` carries them out, `committer.py` decides when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cador_trio.kafka.ledger import CommitPoint
from cador_trio.kafka.messages import Coordinates, Message

# Tags whose coordinates are wanted: `producedKafkaMessages` lists that many entries (wire contract, 3.3).
MAX_LISTED_TAGS: Final = 1_000


class Role(StrEnum):
    """What a message is, and so which topic it goes to."""

    OUTPUT = "output"
    TAG = "tag"
    STATUS = "status"
    DEAD_LETTER = "dead letter"


@dataclass(frozen=True, slots=True)
class Source:
    """The request record whose offset is done with these effects; `number` is that of its partition's assignment."""

    partition: int
    offset: int
    number: int


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a job's messages have gone: the first `MAX_LISTED_TAGS` tags, and the output."""

    tags: Sequence[Coordinates] = ()
    output: Coordinates | None = None


def no_tags() -> Iterator[Message]:
    """None."""
    return iter(())


@dataclass(frozen=True, eq=False)
class Effects:
    """What is sent and done for one job, all or nothing, in the order tags, output, dead letter, status.

    Attributes:
        source: None for a job that did not come from Kafka.
        tags: makes the tag messages, one by one since they may be hundreds of thousands; called once a try.
        status: makes the terminal status, once it is known where the others have gone.
        size: bytes of all, roughly, so that a transaction is not filled without measure.
    """

    source: Source | None
    tags: Callable[[], Iterator[Message]] = no_tags
    tag_count: int = 0
    output: Message | None = None
    dead_letter: Message | None = None
    status: Callable[[Whereabouts], Message] | None = None
    size: int = 0

    def count(self) -> dict[Role, int]:
        """How many messages of each role these are."""
        return {
            Role.OUTPUT: int(self.output is not None),
            Role.TAG: self.tag_count,
            Role.STATUS: int(self.status is not None),
            Role.DEAD_LETTER: int(self.dead_letter is not None),
        }


@dataclass(frozen=True)
class Commit:
    """What one transaction holds: effects, and what to commit of each partition that they (or begun jobs) are from."""

    batch: Sequence[Effects]
    points: dict[int, CommitPoint] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)


class Done(StrEnum):
    """What became of effects, whatever their size."""

    COMMITTED = "visible, with the offset"
    DROPPED = "nothing is visible: the partition has another owner, or the daemon stops"
    BROKEN = "nothing is visible: the messages can't be made"


@dataclass(frozen=True, slots=True)
class Refused:
    """A message is larger than its topic takes; nothing of the job is visible."""

    role: Role
    size: int


Verdict = Done | Refused
