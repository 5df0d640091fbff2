"""The class that PESTO loads and calls. Must run on Python 3.10."""

import socket
import time

from . import rules
from .input_output import Input, Output


class Process:
    """The detector; what it finds is in `rules`, here is only how it goes about it."""

    def process(self, request: Input) -> Output:
        """Work as long as asked, then fail as asked or answer. PESTO chooses by the annotation how it calls this."""
        if request.hold_port is not None:
            _work_while_held(request.hold_port)
        time.sleep(request.seconds or 0)
        if request.fail is not None:
            raise RuntimeError(request.fail)
        image, sigma = request.image, request.sigma or 0.0
        return Output(
            detections=rules.detections(image),
            polygon=rules.polygon(image),
            mask=rules.mask(image, sigma),
            chips=rules.chips(image),
            count=rules.count(image, sigma),
            threshold_used=rules.threshold_used(image, sigma),
            summary=rules.summary(image, sigma),
            p99=rules.p99(image),
        )


def _work_while_held(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as holder:
        holder.recv(1)
