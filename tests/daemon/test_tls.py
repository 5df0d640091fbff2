"""TLS: the operator's certificate, its renewal, mutual TLS, and one for trials."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from cador_trio.intake.http.server import Certificate, renew_certificate, server_tls
from cador_trio.self_signed import use_self_signed
from tests.daemon.certificates import Authority
from tests.daemon.clients import connect
from tests.daemon.process import CAP_SECONDS, IMAGE, client_of, open_daemon, running_daemon
from tests.peers.fake_algorithm import open_fake_algorithm


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority.in_folder(tmp_path / "tls")
    made.issue()
    return made


async def test_it_serves_the_operators_certificate(tmp_path: Path, authority: Authority) -> None:
    """Links begin with https, a job goes through, and plain HTTP is not understood."""
    async with (
        open_fake_algorithm() as fake,
        running_daemon(tmp_path, fake.url, **authority.settings()) as daemon,
        client_of(daemon, authority.client_context()) as client,
    ):
        assert daemon.url.startswith("https://")
        assert (await client.post("/api/v1/jobs", json=IMAGE)).status_code == 200
        describe = (await client.get("/api/v1/describe")).json()
        assert describe["_links"]["execution"]["href"] == f"{daemon.url}/api/v1/jobs"
        async with httpx.AsyncClient(trust_env=False, timeout=CAP_SECONDS) as plain:
            with pytest.raises(httpx.RemoteProtocolError):
                await plain.get(daemon.url.replace("https", "http") + "/livez")
        assert await daemon.stop() == 0


async def test_false_is_off(tmp_path: Path, authority: Authority) -> None:
    """`CADOR_USE_SSL=false` is plain HTTP, whatever else is set."""
    settings = authority.settings() | {"CADOR_USE_SSL": "false"}
    async with (
        open_fake_algorithm() as fake,
        running_daemon(tmp_path, fake.url, **settings) as daemon,
        client_of(daemon) as client,
    ):
        assert daemon.url.startswith("http://")
        assert (await client.get("/livez")).status_code == 200


async def test_a_client_ca_lets_only_its_own_clients_in(tmp_path: Path, authority: Authority) -> None:
    """Mutual TLS: without a certificate of that CA there is no connection."""
    clients = Authority.in_folder(tmp_path / "clients")
    clients.issue("client.example.org")
    settings = authority.settings() | {"CADOR_SSL_CLIENT_CA": str(clients.ca_file)}
    async with open_fake_algorithm() as fake, running_daemon(tmp_path, fake.url, **settings) as daemon:
        known = authority.client_context()
        known.load_cert_chain(clients.chain, clients.key)
        async with client_of(daemon, known) as client:
            assert (await client.get("/livez")).status_code == 200
        stranger = authority.client_context()
        stranger.load_cert_chain(authority.chain, authority.key)
        for context in (authority.client_context(), stranger):
            async with client_of(daemon, context) as client:
                with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
                    await client.get("/livez")


async def test_probes_on_their_own_port_need_no_certificate(tmp_path: Path, authority: Authority) -> None:
    """Under mutual TLS and a token: plain HTTP for the kubelet there, an alert for whoever has nothing to show here."""
    clients = Authority.in_folder(tmp_path / "clients")
    settings = authority.settings() | {
        "CADOR_SSL_CLIENT_CA": str(clients.ca_file),
        "CADOR_API_TOKEN": "hush",
        "CADOR_METRICS_PORT": "0",
    }
    async with open_fake_algorithm() as fake, running_daemon(tmp_path, fake.url, **settings) as daemon:
        url = (await daemon.wait_event("serving probes and metrics"))["url"]
        assert url.startswith("http://127.0.0.1:")
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=CAP_SECONDS) as kubelet:
            for path in ("/livez", "/readyz", "/metrics"):
                assert (await kubelet.get(path)).status_code == 200
            for path in ("/", "/jobs", "/api/v1/jobs", "/api/v1/metrics", "/describe", "/health", "/swagger"):
                assert (await kubelet.get(path)).status_code == 404
            assert (await kubelet.post("/jobs", json=IMAGE)).status_code == 404
        async with await connect(daemon, authority.client_context()) as stranger:
            with pytest.raises(trio.BrokenResourceError) as broken:
                await stranger.receive_some(1)
        assert "ALERT_CERTIFICATE_REQUIRED" in str(broken.value.__cause__)


async def test_a_certificate_for_trials(tmp_path: Path) -> None:
    """`CADOR_SELF_SIGNED` encrypts without any file."""
    async with (
        open_fake_algorithm() as fake,
        running_daemon(tmp_path, fake.url, CADOR_USE_SSL="true", CADOR_SELF_SIGNED="true") as daemon,
        client_of(daemon, verify=False) as client,
    ):
        assert (await client.get("/livez")).status_code == 200


@pytest.mark.parametrize("name", ["host.example.org", "my_host", "h" * 64])
def test_a_certificate_for_trials_takes_any_host_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A host name that DNS would not take is left out, and the daemon starts all the same."""
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    use_self_signed(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


async def test_an_unusable_certificate_stops_the_start(tmp_path: Path, authority: Authority) -> None:
    """Exit code 2, and one line that names the settings."""
    authority.key.write_text("not a key")
    async with open_daemon(tmp_path, "http://127.0.0.1:1", **authority.settings()) as daemon:
        assert await daemon.wait_exit() == 2
        (line,) = daemon.output
        assert "CADOR_SSL_CERT" in line


# --- renewal, without sockets and in no time ---------------------------------------------------------------------


async def names_served(context: ssl.SSLContext, authority: Authority) -> set[str]:
    """The names in the certificate that a new connection gets."""
    ours, theirs = memory_stream_pair()
    client_context = authority.client_context()
    client_context.check_hostname = False
    server = trio.SSLStream(ours, context, server_side=True)
    client = trio.SSLStream(theirs, client_context)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await client.do_handshake()
    certificate = client.getpeercert()
    return {name for _, name in certificate["subjectAltName"]}


def touch(authority: Authority, tick: int) -> None:
    """Two writes within one tick of the file system's clock look like one."""
    for path in (authority.chain, authority.key):
        os.utime(path, ns=(tick, tick))


async def test_a_renewed_certificate_is_served_to_new_connections(
    authority: Authority, autojump_clock: MockClock
) -> None:
    """The files are read again when they change; a broken pair changes nothing, and is tried until it is whole."""
    authority.issue("old.example.org")
    touch(authority, 1)
    certificate = Certificate(authority.chain, authority.key)
    context = server_tls(certificate, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(renew_certificate, context, certificate, 10.0)
        await trio.testing.wait_all_tasks_blocked()
        assert await names_served(context, authority) == {"old.example.org"}

        key = authority.key.read_bytes()
        authority.issue("new.example.org")
        new_key = authority.key.read_bytes()
        authority.key.write_bytes(key)  # the chain is there, its key is not yet
        touch(authority, 2)
        await trio.sleep(11)
        assert await names_served(context, authority) == {"old.example.org"}

        authority.chain.rename(authority.folder / "away")
        await trio.sleep(10)
        assert await names_served(context, authority) == {"old.example.org"}

        (authority.folder / "away").rename(authority.chain)
        authority.key.write_bytes(new_key)
        touch(authority, 2)  # even if no time shows that it was written
        await trio.sleep(10)
        assert await names_served(context, authority) == {"new.example.org"}
        nursery.cancel_scope.cancel()
