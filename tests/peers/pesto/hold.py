"""How a test holds the example algorithm in the middle of its work, and learns that it has got there.

The test listens on a loopback port and puts that port in the payload; the algorithm connects and works until the
connection is closed. Nobody sleeps, nobody polls.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Final, Self

_PATIENCE_SECONDS: Final = 30


class Hold:
    """A rendezvous with one run of the algorithm; as a context manager it lets go at the end in any case.

    The calls block: from a Trio test use `trio.to_thread.run_sync(hold.wait_begun)`.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_PATIENCE_SECONDS)
        self._algorithm: socket.socket | None = None

    @property
    def port(self) -> int:
        """The value for the payload's `hold_port`."""
        port: int = self._listener.getsockname()[1]
        return port

    def wait_begun(self) -> None:
        """Block until the algorithm is at work; `TimeoutError` if it is not after thirty seconds."""
        self._algorithm, _ = self._listener.accept()

    def release(self) -> None:
        """Let the algorithm finish. Harmless when it was never held or is released already."""
        self._listener.close()
        if self._algorithm is not None:
            self._algorithm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
