"""What it costs to be there: nothing to speak of while nothing happens, and nothing more for having worked."""

from __future__ import annotations

from pathlib import Path

from tests.daemon.process import IMAGE, Daemon, client_of, connections, eventually, running_daemon
from tests.peers.fake_algorithm import Answer, AnswerImage, FakeAlgorithm, Status, open_fake_algorithm

# Per look at the algorithm, every five seconds. A heart that beats each second and a look are some ten wakeups; a loop
# that never waits, or waits for milliseconds, has thousands.
MOST_WAKEUPS = 200
MOST_CPU_TICKS = 100  # hundredths of a second of the five
# Connections to the algorithm and worker threads come and go by themselves; one lost per round trip would be 200.
SLACK = 8
REQUESTS_A_TURN = 8


async def test_nothing_happens_while_nothing_is_to_be_done(tmp_path: Path) -> None:
    """Between two looks at the algorithm the process hardly wakes up."""
    async with open_fake_algorithm() as fake, running_daemon(tmp_path, fake.url) as daemon:
        await fake.wait_for_request(2, "GET", "describe")
        wakeups, ticks = work_done(daemon)
        await fake.wait_for_request(3, "GET", "describe")
        wakeups_later, ticks_later = work_done(daemon)
    assert wakeups_later - wakeups < MOST_WAKEUPS
    assert ticks_later - ticks < MOST_CPU_TICKS


async def test_descriptors_and_threads_do_not_pile_up(tmp_path: Path) -> None:
    """After 200 more mixed requests, good and bad, the process holds what it held after the first forty."""
    async with open_fake_algorithm() as fake, running_daemon(tmp_path, fake.url) as daemon:
        await mixed_requests(daemon, fake, 40)
        descriptors, threads = held(daemon)
        await mixed_requests(daemon, fake, 200)
        descriptors_later, threads_later = held(daemon)
    assert descriptors_later <= descriptors + SLACK
    assert threads_later <= threads + SLACK


async def mixed_requests(daemon: Daemon, fake: FakeAlgorithm, count: int) -> None:
    """Jobs that succeed, fail, are refused or watched, over connections that are kept or not."""
    async with client_of(daemon) as client:
        for turn in range(count // REQUESTS_A_TURN):
            fake.script += [Answer({"count": turn}), AnswerImage(200_000), Status(500, text="no")]
            answers = [await client.post("/api/v1/jobs", json=IMAGE) for _ in range(3)]
            answers.append(await client.post("/api/v1/jobs", json={"image": 5}))
            answers.append(await client.get("/api/v1/jobs?limit=1"))
            (job_id,) = answers[-1].json()
            answers.append(await client.get(f"/api/v1/jobs/{job_id}/events"))
            answers.append(await client.delete(f"/api/v1/jobs/{job_id}"))
            answers.append(await client.get("/nowhere", headers={"Connection": "close"}))
            assert [answer.status_code for answer in answers] == [200, 200, 500, 400, 200, 200, 204, 404]
    async with client_of(daemon) as client:
        await client.get("/livez")
        await eventually(client, lambda: connections(daemon) == 1)


def work_done(daemon: Daemon) -> tuple[int, int]:
    """Wakeups of the main thread, and CPU ticks of all threads, since the start."""
    status = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    (wakeups,) = [int(line.split()[1]) for line in status if line.startswith("voluntary_ctxt_switches")]
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return wakeups, int(fields[11]) + int(fields[12])


def held(daemon: Daemon) -> tuple[int, int]:
    """Open descriptors and threads."""
    process = Path(f"/proc/{daemon.pid}")
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))
