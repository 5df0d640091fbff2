"""The Kafka peer: FastStream in front of httpx as anyone would write it, at least once, 64 jobs at a time.

Each batch of requests is worked on at once, its messages are sent, and then its offsets are committed: with more than
one worker FastStream commits before the work is done, and that would be no guarantee at all. It sends what the daemon
sends: three statuses and an output a job. A process of its own, told all by its arguments; prints a line when it is up.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

import httpx
from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker

SLOTS: Final = 64
REQUEST_SECONDS: Final = 60.0


def create_app(bootstrap: str, algorithm: str, prefix: str) -> FastStream:
    """Requests come from `<prefix>-requests`; outputs and statuses go where the daemon's go."""
    broker = KafkaBroker(bootstrap)
    client = httpx.AsyncClient(timeout=REQUEST_SECONDS, limits=httpx.Limits(max_connections=SLOTS))
    outputs, statuses = broker.publisher(f"{prefix}-outputs"), broker.publisher(f"{prefix}-statuses")

    async def work(request: dict[str, Any]) -> None:
        envelope = {name: request.pop(name, {}) for name in ("technicalMetadata", "userMetadata")}
        task_id = envelope["technicalMetadata"].get("taskId")
        await statuses.publish({"taskId": task_id, "status": "ACCEPTED"})
        await statuses.publish({"taskId": task_id, "status": "RUNNING"})
        answer = await client.post(f"{algorithm}/api/v1/jobs", json=request)
        await outputs.publish({**answer.json(), **envelope})
        await statuses.publish({"taskId": task_id, "status": "SUCCEEDED"})

    @broker.subscriber(
        f"{prefix}-requests",
        group_id=f"{prefix}-group",
        auto_offset_reset="earliest",
        batch=True,
        max_records=SLOTS,
        ack_policy=AckPolicy.ACK,
    )
    async def handle(requests: list[dict[str, Any]]) -> None:
        await asyncio.gather(*(work(request) for request in requests))

    app = FastStream(broker)

    @app.after_startup
    async def tell() -> None:
        sys.stdout.write(f"{json.dumps({'up': prefix})}\n")
        sys.stdout.flush()

    return app


if __name__ == "__main__":
    asyncio.run(create_app(*sys.argv[1:4]).run())
