"""Calls to the outside: only to public https addresses, and to what ISOCENTER_EGRESS_ALLOW adds (CWE-918).

A name is resolved once, the addresses are judged, and the connection goes to the address that was judged: a second
resolution could give another one. There are no redirects, no proxies of the environment and no answers without end.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import httpcore
import httpx

from app.errors import BadRequest, Unavailable

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

MAX_BYTES = 1 << 20
CONNECT_SECONDS = 5.0
SECONDS = 15.0
"""So long may one exchange take, however slowly its bytes drip."""
_NAT64 = IPv6Network("64:ff9b::/96")
_CHUNK = 1 << 14


class RefusedError(Unavailable):
    """The address is none that this server calls."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What somebody outside answered; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def check_url(url: str) -> None:
    """BadRequest for what can be no address to call: not https or http, without a host, with a user or a fragment."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise BadRequest("an absolute https address is needed") from error
    if parts.scheme not in {"https", "http"} or not parts.host or parts.userinfo or parts.fragment:
        raise BadRequest("an absolute https address without user and fragment is needed")


def may_reach(address: Address, allowed: Iterable[Network], *, is_secure: bool) -> bool:
    """Whether a connection may go there: a public address by https, an allowed network by http too."""
    meant = _meant(address)
    if any(meant in network for network in allowed):
        return True
    return is_secure and meant.is_global and not meant.is_multicast and not meant.is_reserved


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one leads to."""
    if isinstance(address, IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inside = IPv4Address(int(address) & 0xFFFFFFFF)
        return inside or address
    return address


class Egress:
    """The one way out. Safe to share between threads; each exchange has a connection of its own."""

    def __init__(self, allowed: Sequence[Network] = (), *, trust: ssl.SSLContext | None = None) -> None:
        """`allowed` are networks besides the public ones, `trust` says whose certificates are believed."""
        self._allowed, self._trust = tuple(allowed), trust

    @cached_property
    def client(self) -> httpx.Client:
        """For libraries that bring their own requests. Made when asked for: to read all certificates takes a while."""
        return httpx.Client(
            transport=_Guarded(self._allowed, self._trust or ssl.create_default_context()),
            timeout=httpx.Timeout(SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=False,
            trust_env=False,
            headers={"User-Agent": "isocenter", "Accept-Encoding": "identity"},
        )

    def get(self, url: str, *, accept: str = "application/json", limit: int = MAX_BYTES) -> Answer:
        """GET an address, whole within `limit` bytes and SECONDS; Unavailable says why it could not be."""
        check_url(url)
        try:
            with self.client.stream("GET", url, headers={"Accept": accept}) as response:
                body = bytearray()
                for chunk in response.iter_raw(_CHUNK):
                    body += chunk
                    if len(body) > limit:
                        raise Unavailable(f"the answer is longer than {limit} bytes")
                return Answer(response.status_code, dict(response.headers), bytes(body))
        except httpx.HTTPError as error:
            raise Unavailable(f"it cannot be reached ({type(error).__name__})") from error

    def close(self) -> None:
        """Let go of every connection."""
        self.client.close()


# --- the transport -------------------------------------------------------------------------------------------


class _Judged(httpcore.NetworkBackend):
    """Connects to addresses that were looked at, by name or number."""

    def __init__(self, allowed: Sequence[Network], *, is_secure: bool) -> None:
        self._allowed, self._is_secure = allowed, is_secure
        self._below = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """The first address of the name that may be called."""
        reachable = [one for one in _resolved(host, port) if may_reach(one, self._allowed, is_secure=self._is_secure)]
        if not reachable:
            raise RefusedError("the address is not public, or not https: ISOCENTER_EGRESS_ALLOW may allow its network")
        ends = time.monotonic() + SECONDS
        return _Timed(self._below.connect_tcp(str(reachable[0]), port, timeout, local_address, socket_options), ends)

    def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.NetworkStream:
        """Never."""
        raise RefusedError("no local socket is an address to call")


class _Timed(httpcore.NetworkStream):
    """A connection that ends at its time: a limit for each read alone would let one byte a second go on for days."""

    def __init__(self, below: httpcore.NetworkStream, ends: float) -> None:
        self._below, self._ends = below, ends

    def _left(self, timeout: float | None) -> float:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the exchange takes too long")
        return left if timeout is None else min(left, timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes."""
        return self._below.read(max_bytes, self._left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """All bytes."""
        self._below.write(buffer, self._left(timeout))

    def close(self) -> None:
        """Hang up."""
        self._below.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The same with TLS inside."""
        return _Timed(self._below.start_tls(ssl_context, server_hostname, self._left(timeout)), self._ends)

    def get_extra_info(self, info: str) -> Any:
        """What the socket knows."""
        return self._below.get_extra_info(info)


def _resolved(host: str, port: int) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError("the name is unknown") from error
    # A scope id belongs to link-local addresses, which are refused anyway.
    return [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]


class _Guarded(httpx.BaseTransport):
    """httpx over two pools that judge each connection: https anywhere public, http in allowed networks only."""

    def __init__(self, allowed: Sequence[Network], trust: ssl.SSLContext) -> None:
        self._pools = {
            scheme: httpcore.ConnectionPool(
                ssl_context=trust,
                max_connections=20,
                max_keepalive_connections=0,
                network_backend=_Judged(allowed, is_secure=scheme == "https"),
            )
            for scheme in ("https", "http")
        }

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange."""
        url, content = request.url, request.stream
        assert isinstance(content, httpx.SyncByteStream)
        asked = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=content,
            extensions=request.extensions,
        )
        with _as_httpx():
            answered = self._pools[url.scheme].handle_request(asked)
        return httpx.Response(
            answered.status,
            headers=answered.headers,
            stream=_Stream(answered),
            extensions=answered.extensions,
        )

    def close(self) -> None:
        """Let go of every connection."""
        for pool in self._pools.values():
            pool.close()


class _Stream(httpx.SyncByteStream):
    """The body as it comes."""

    def __init__(self, answered: httpcore.Response) -> None:
        self._answered = answered

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx():
            yield from self._answered.iter_stream()

    def close(self) -> None:
        """Give the connection back."""
        self._answered.close()


@contextmanager
def _as_httpx() -> Generator[None]:
    """Failures of the connection by the names that callers of httpx know."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise httpx.TimeoutException("it takes too long") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
        raise httpx.TransportError("the connection failed") from error
