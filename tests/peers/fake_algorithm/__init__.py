"""A scriptable algorithm: the Geo Process API on a real loopback socket, well behaved or not, as its script says.

It speaks both dialects, the Geo Process API as it is written and as PESTO speaks it. It is plain trio and h11, so that
it costs little as the peer of a benchmark and shares no framework with the daemon that it tests.

    async with open_fake_algorithm([Hold(Answer({"count": 3})), Hang()]) as fake:
        ...                                    # point the client at fake.url
        await fake.wait_for_request(1, "POST")
        fake.release()

As a process of its own: `python -m tests.peers.fake_algorithm --mode image --size 1000000000`.
"""

from tests.peers.fake_algorithm.documents import minimal_describe, sample_answer, sample_outputs
from tests.peers.fake_algorithm.resources import FakeJob
from tests.peers.fake_algorithm.script import (
    Answer,
    AnswerImage,
    AnswerText,
    Behaviour,
    CloseBeforeAnswer,
    CloseMidAnswer,
    Hang,
    Hold,
    Html,
    Pattern,
    Reply,
    SeenRequest,
    SlowTrickle,
    Stateful,
    Status,
    Step,
    WrongLength,
)
from tests.peers.fake_algorithm.server import FakeAlgorithm, open_fake_algorithm

__all__ = [
    "Answer",
    "AnswerImage",
    "AnswerText",
    "Behaviour",
    "CloseBeforeAnswer",
    "CloseMidAnswer",
    "FakeAlgorithm",
    "FakeJob",
    "Hang",
    "Hold",
    "Html",
    "Pattern",
    "Reply",
    "SeenRequest",
    "SlowTrickle",
    "Stateful",
    "Status",
    "Step",
    "WrongLength",
    "minimal_describe",
    "open_fake_algorithm",
    "sample_answer",
    "sample_outputs",
]
