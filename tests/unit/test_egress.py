"""Calls to the outside go where they may, end in time, and cannot be led elsewhere."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import egress
from app.egress import Egress, RefusedError, check_url, may_reach
from app.errors import BadRequest, Unavailable
from tests.outside import Handle, Outside, says

LOOPBACK = ipaddress.ip_network("127.0.0.0/8")


@pytest.fixture
def site() -> Iterator[Callable[..., Outside]]:
    sites: list[Outside] = []

    def start(handle: Handle, context: ssl.SSLContext | None = None) -> Outside:
        sites.append(Outside(handle, context))
        return sites[-1]

    yield start
    for one in sites:
        one.close()


PRIVATE = (
    *("127.0.0.1", "10.1.2.3", "192.168.0.9", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1"),
    *("::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a00:1::"),
)


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public_is_out_of_reach_in_every_spelling(address: str) -> None:
    assert not may_reach(ipaddress.ip_address(address), (), is_secure=True)


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "64:ff9b::808:808"])
def test_a_public_address_is_reached_by_https_only(address: str) -> None:
    assert may_reach(ipaddress.ip_address(address), (), is_secure=True)
    assert not may_reach(ipaddress.ip_address(address), (), is_secure=False)


def test_an_allowed_network_is_reached_by_http_too() -> None:
    assert may_reach(ipaddress.ip_address("127.0.0.1"), [LOOPBACK], is_secure=False)
    assert may_reach(ipaddress.ip_address("::ffff:127.0.0.1"), [LOOPBACK], is_secure=False)
    assert not may_reach(ipaddress.ip_address("10.0.0.1"), [LOOPBACK], is_secure=True)


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:{}", "64:ff9b::{}"]))
def test_an_address_inside_another_is_judged_like_itself(address: ipaddress.IPv4Address, form: str) -> None:
    assert may_reach(address, (), is_secure=True) == may_reach(
        ipaddress.ip_address(form.format(address)), (), is_secure=True
    )


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/",
        "file:///etc/passwd",
        "https://",
        "//a.example/",
        "x",
        "https://u:p@a.example/",
        "https://a/#f",
    ],
)
def test_what_is_no_address_to_call_is_refused(url: str) -> None:
    with pytest.raises(BadRequest):
        check_url(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"])
def test_nobody_on_this_machine_is_called_unless_the_site_says_so(site: Callable[..., Outside], host: str) -> None:
    here = site(says(b"secret"))
    with pytest.raises(RefusedError):
        Egress().get(f"http://{host}:{here.port}/")
    with pytest.raises(RefusedError):
        Egress().get(f"https://{host}:{here.port}/")
    assert here.came == []
    assert Egress([LOOPBACK]).get(f"http://127.0.0.1:{here.port}/").body == b"secret"


def test_a_name_is_resolved_once_so_that_it_cannot_mean_another_address_later(
    site: Callable[..., Outside], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edge that is faked is the name service, which answers differently each time, and the way to a public host."""
    here = site(says(b"secret"))
    answers = iter(["8.8.8.8", "127.0.0.1", "127.0.0.1"])

    def rebinding(_host: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    reached: list[str] = []

    def connect(address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        reached.append(address[0])
        raise OSError("nobody there")

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(Unavailable):
        Egress().get(f"https://rebinding.example:{here.port}/")
    assert reached == ["8.8.8.8"]


def test_a_redirect_is_an_answer_and_is_not_followed(site: Callable[..., Outside]) -> None:
    behind = site(says(b"secret"))
    here = site(says(b"", 302, Location=f"http://127.0.0.1:{behind.port}/"))
    assert Egress([LOOPBACK]).get(f"http://127.0.0.1:{here.port}/").status == 302
    assert behind.came == []


def test_an_answer_without_end_is_cut(site: Callable[..., Outside]) -> None:
    here = site(says(b"x" * 5000))
    with pytest.raises(Unavailable, match="longer than 1000 bytes"):
        Egress([LOOPBACK]).get(f"http://127.0.0.1:{here.port}/", limit=1000)


def test_an_answer_that_drips_ends_in_time(site: Callable[..., Outside], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "SECONDS", 1.0)
    over = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not over.wait(0.1):
            request.wfile.write(b"x")
            request.wfile.flush()

    here = site(drip)
    began = time.monotonic()
    with pytest.raises(Unavailable):
        Egress([LOOPBACK]).get(f"http://127.0.0.1:{here.port}/")
    over.set()
    assert time.monotonic() - began < 10


def test_proxies_of_the_environment_are_not_asked(
    site: Callable[..., Outside], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, proxy = site(says(b"direct")), site(says(b"by proxy"))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    assert Egress([LOOPBACK]).get(f"http://127.0.0.1:{here.port}/").body == b"direct"


def test_a_certificate_that_nobody_vouches_for_is_refused(site: Callable[..., Outside], certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    here = site(says(b"by tls"), context)
    url = f"https://localhost:{here.port}/"
    with pytest.raises(Unavailable):
        Egress([LOOPBACK]).get(url)
    trusted = ssl.create_default_context(cafile=str(certificate))
    assert Egress([LOOPBACK], trust=trusted).get(url).body == b"by tls"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and its own certificate for localhost, in one file."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    at = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - datetime.timedelta(hours=1))
        .not_valid_after(at + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "localhost.pem"
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, plain) + made.public_bytes(serialization.Encoding.PEM)
    )
    path.chmod(0o600)
    return path
