"""HTTPS as an operator sets it up: certificates that work, change, and do not work."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import trustme

from tests.certificates import Certificates, shown_serial
from tests.integration.workflow.conftest import Installed, wait_for

pytestmark = pytest.mark.integration

FOR_EVER = httpx.Limits(keepalive_expiry=None)
"""By default a client of httpx itself drops a connection that was idle for 5 s, as long as a command may take."""


@pytest.fixture
def certificates(place: Path) -> Certificates:
    return Certificates(place)


def use(installed: Installed, certificate: Path, key: Path, more: str = "") -> None:
    installed.write(f"chat: {{model: {installed.model()}}}", f", tls: {{certificate: {certificate}, key: {key}{more}}}")


def test_https_with_http2_and_nothing_old(installed: Installed, certificates: Certificates) -> None:
    use(installed, certificates.certificate, certificates.key)
    shown = installed.run("up").stdout
    assert f"https://127.0.0.1:{installed.port}/v1/chat/completions" in shown
    context = certificates.client()
    with httpx.Client(base_url=f"https://localhost:{installed.port}", verify=context) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "chat"
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", installed.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        assert (connection.selected_alpn_protocol(), connection.version()) == ("h2", "TLSv1.3")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{installed.port}/health")
    said = subprocess.run(
        ["openssl", "s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-connect", f"127.0.0.1:{installed.port}"],
        input="", capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert said.returncode != 0
    assert "alert protocol version" in said.stderr


def overwritten(certificates: Certificates) -> int:
    return certificates.issue(certificates.certificate, certificates.key)


def renamed(certificates: Certificates) -> int:
    fresh, key = certificates.folder / "fresh", certificates.folder / "fresh.key"
    number = certificates.issue(fresh, key)
    fresh.rename(certificates.certificate)
    key.rename(certificates.key)
    return number


def linked(certificates: Certificates) -> int:
    """As certbot does it: the paths are symbolic links, which are made anew."""
    fresh, key = certificates.folder / "archive.pem", certificates.folder / "archive.key"
    number = certificates.issue(fresh, key)
    for link, target in ((certificates.certificate, fresh), (certificates.key, key)):
        link.unlink()
        link.symlink_to(target)
    return number


@pytest.mark.parametrize("change", [overwritten, renamed, linked])
def test_a_new_certificate_is_used_without_a_command_and_no_connection_is_closed(
    installed: Installed, certificates: Certificates, change: Callable[[Certificates], int]
) -> None:
    use(installed, certificates.certificate, certificates.key)
    installed.run("up")
    before = installed.pids()
    context = certificates.client()
    with httpx.Client(base_url=f"https://localhost:{installed.port}", verify=context, limits=FOR_EVER) as client:
        assert client.get("/health").status_code == 200
        number = change(certificates)
        wait_for(lambda: shown_serial(installed.port, context) == number)
        (connection,) = client._transport._pool.connections  # type: ignore[attr-defined]
        assert client.get("/health").status_code == 200
        assert client._transport._pool.connections == [connection]  # type: ignore[attr-defined]
    assert installed.pids() == before


def test_a_new_pair_that_does_not_match_leaves_the_old_one_in_use(
    installed: Installed, certificates: Certificates
) -> None:
    use(installed, certificates.certificate, certificates.key)
    installed.run("up")
    context = certificates.client()
    number = shown_serial(installed.port, context)
    good = certificates.key.read_bytes()
    next_number = certificates.issue(certificates.certificate, certificates.folder / "kept.key")
    log = installed.home.log_file("gateway")
    wait_for(lambda: "the gateway reads it again" in log.read_text())
    wait_for(lambda: "KEY_VALUES_MISMATCH" in log.read_text() or "rejected" in log.read_text())
    assert shown_serial(installed.port, context) == number
    assert certificates.key.read_bytes() == good
    shutil.copy(certificates.folder / "kept.key", certificates.key)
    wait_for(lambda: shown_serial(installed.port, context) == next_number)


def test_client_certificates(installed: Installed, certificates: Certificates) -> None:
    use(installed, certificates.certificate, certificates.key, f", client_ca: {certificates.ca}")
    installed.run("up")
    url = f"https://localhost:{installed.port}/health"
    assert httpx.get(url, verify=certificates.client("client")).status_code == 200
    stranger = trustme.CA().issue_cert("client")
    context = certificates.client()
    with pytest.raises(httpx.HTTPError):
        httpx.get(url, verify=context)
    stranger.configure_cert(context)
    with pytest.raises(httpx.HTTPError):
        httpx.get(url, verify=context)


def slow_stream(url: str, context: ssl.SSLContext, told: threading.Event) -> str:
    """The text of a stream of a few seconds; ``told`` is set when it has begun."""
    body = {"model": "chat", "messages": [], "stream": True, "fake": {"chunks": 40, "seconds": 0.2}}
    with httpx.stream("POST", url, json=body, verify=context, timeout=60) as answer:
        pieces = []
        for piece in answer.iter_text():
            told.set()
            pieces.append(piece)
    return "".join(pieces)


@dataclass
class Either:
    """A client that asks all the time, in whichever scheme works."""

    port: int
    context: ssl.SSLContext
    answered: dict[str, int] = field(default_factory=lambda: {"http": 0, "https": 0})
    failed: list[str] = field(default_factory=list)

    def url(self, scheme: str, path: str = "chat/completions") -> str:
        return f"{scheme}://127.0.0.1:{self.port}/v1/{path}"

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._go_on, args=(ended,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def wait_for_more(self, scheme: str) -> None:
        goal = self.answered[scheme] + 5
        wait_for(lambda: self.failed or self.answered[scheme] >= goal, 60)

    def _go_on(self, ended: threading.Event) -> None:
        while not ended.wait(0.02):
            said = self._ask()
            if said in self.answered:
                self.answered[said] += 1
            else:
                self.failed.append(said)

    def _ask(self) -> str:
        """The scheme that worked: one becomes the other between two tries, in each of Envoy's threads for itself."""
        body, deadline = {"model": "chat", "messages": []}, time.monotonic() + 30
        while time.monotonic() < deadline:
            for scheme in self.answered:
                with contextlib.suppress(httpx.HTTPError):
                    answer = httpx.post(self.url(scheme), json=body, verify=self.context, timeout=30)
                    return scheme if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
        return "no answer"


def switch(installed: Installed, client: Either, old: str, new: str) -> None:
    """`up` from one scheme to the other, with a stream under way and a connection that waits."""
    before, begun = installed.pids(), threading.Event()
    with ThreadPoolExecutor() as pool, httpx.Client(verify=client.context, timeout=30, limits=FOR_EVER) as kept:
        kept.get(client.url(old, "models")).raise_for_status()
        stream = pool.submit(slow_stream, client.url(old), client.context, begun)
        assert begun.wait(30)
        installed.run("up")
        last = kept.get(client.url(old, "models"))
        assert (last.status_code, last.headers["connection"]) == (200, "close")
        assert stream.result(60).rstrip().endswith("data: [DONE]")
    assert installed.pids() == before
    client.wait_for_more(new)
    with pytest.raises(httpx.HTTPError):
        httpx.get(client.url(old, "models"), verify=client.context)


def test_https_is_switched_on_and_off_without_a_restart(installed: Installed, certificates: Certificates) -> None:
    """Streams under way are finished, connections that wait get one more answer, and everybody else is never without
    one scheme or the other."""
    plain = f"chat: {{model: {installed.model()}}}"
    installed.write(plain)
    installed.run("up")
    client = Either(installed.port, certificates.client())
    with client.asking():
        client.wait_for_more("http")
        use(installed, certificates.certificate, certificates.key)
        switch(installed, client, "http", "https")
        number = certificates.issue(certificates.certificate, certificates.key)
        wait_for(lambda: shown_serial(installed.port, client.context) == number, 60)  # looked after from now on
        installed.write(plain)
        switch(installed, client, "https", "http")
    assert client.failed == []


def test_check_knows_its_own_gateway_by_its_certificate(installed: Installed, certificates: Certificates) -> None:
    use(installed, certificates.certificate, certificates.key)
    installed.run("up")
    from llmhost.probe.certificate import trusting

    url = f"https://127.0.0.1:{installed.port}/v1/models"
    assert httpx.get(url, verify=trusting(str(certificates.certificate))).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, verify=trusting(str(certificates.ca.with_name("other.pem"))) if _other(certificates) else True)


def _other(certificates: Certificates) -> bool:
    trustme.CA().issue_cert("127.0.0.1").cert_chain_pems[0].write_to_path(certificates.ca.with_name("other.pem"))
    return True


def not_its_key(c: Certificates) -> tuple[Path, Path]:
    c.issue(c.folder / "x.pem", c.folder / "x.key")
    return c.certificate, c.folder / "x.key"


def expired(c: Certificates) -> tuple[Path, Path]:
    c.issue(c.certificate, c.key, days=-1)
    return c.certificate, c.key


def missing(c: Certificates) -> tuple[Path, Path]:
    return c.folder / "no.pem", c.key


def unreadable(c: Certificates) -> tuple[Path, Path]:
    c.key.unlink()
    c.key.mkdir()
    return c.certificate, c.key


def no_certificate(c: Certificates) -> tuple[Path, Path]:
    c.certificate.write_text("hello")
    return c.certificate, c.key


def encrypted(c: Certificates) -> tuple[Path, Path]:
    subprocess.run(
        ["openssl", "pkey", "-in", c.key, "-aes256", "-passout", "pass:x", "-out", c.folder / "e.key"], check=True
    )
    return c.certificate, c.folder / "e.key"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (not_its_key, "is not the key of the certificate"),
        (expired, "certificate has expired"),
        (missing, "gateway.tls.certificate: cannot read"),
        (unreadable, "gateway.tls.key: cannot read"),
        (no_certificate, "are no certificate and key in PEM"),
        (encrypted, "is encrypted"),
    ],
)
def test_what_cannot_serve_is_refused_and_the_old_goes_on(
    installed: Installed,
    certificates: Certificates,
    damage: Callable[[Certificates], tuple[Path, Path]],
    message: str,
) -> None:
    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up", "--no-wait")
    use(installed, *damage(certificates))
    error, _ = installed.refused("up")
    assert "gateway.tls" in error
    assert message in error
    assert not (installed.home.gateway_conf / "sds-certificate.json").exists()
    assert os.path.exists(installed.home.gateway_conf / "lds.json")


def test_what_envoy_refuses_is_not_written(installed: Installed, certificates: Certificates) -> None:
    """Something that only Envoy knows to be wrong: it reads its configuration before anything is replaced."""
    from dataclasses import replace

    from llmhost import rollout
    from llmhost.env import Silent
    from llmhost.errors import GatewayError
    from llmhost.in_force import load_plan
    from llmhost.plan.types import TlsPlan
    from llmhost.planning import make_home_plan

    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up", "--no-wait")
    files = {p: p.read_bytes() for p in installed.home.conf.rglob("*") if p.is_file()}
    certificates.issue(certificates.folder / "x.pem", certificates.folder / "x.key")
    plan = make_home_plan(installed.home)
    tls = TlsPlan(str(certificates.certificate), str(certificates.folder / "x.key"))
    wrong = replace(plan, gateway=replace(plan.gateway, tls=tls))
    with pytest.raises(GatewayError, match="Envoy refuses its configuration: "):
        rollout.apply(installed.home, load_plan(installed.home), wrong, (), Silent(), lambda _: True)
    assert {p: p.read_bytes() for p in installed.home.conf.rglob("*") if p.is_file()} == files
    assert not list(installed.home.run.glob("gateway-check-*"))
