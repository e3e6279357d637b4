"""HTTP to the archive: few connections, kept open, shared by threads (RFC 9112).

The standard library's client costs a quarter of the processor time of those with more to offer, and the archive is
asked several times for each study.
"""

from __future__ import annotations

import base64
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Protocol
from urllib.parse import urlencode, urlsplit

from app.errors import ArchiveUnavailable, ConfigurationError

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 5.0
"""Orthanc has few HTTP threads, and each idle connection keeps one busy."""


class Blocks(Protocol):
    """A large body, read block by block, and anew when it is sent again."""

    @property
    def size(self) -> int:
        """How many bytes it has."""
        ...

    def __iter__(self) -> Iterator[bytes]:
        """Its blocks, from the first."""
        ...


Body = bytes | Blocks


class Wire:
    """A pool of connections to one HTTP server; close it after use."""

    def __init__(self, url: str, username: str, password: str, *, connections: int, patience: float) -> None:
        """`patience`: seconds for an answer to begin and to go on."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError("the archive's address must be an http or https URL")
        self._parts, self._base, self._patience = parts, parts.path.rstrip("/"), patience
        # With gzip Orthanc compresses every answer anew, which costs ten times the transfer.
        self._headers = {"Accept-Encoding": "identity"}
        if username:
            token = base64.b64encode(f"{username}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._free = threading.BoundedSemaphore(connections)
        self._lock = threading.Lock()
        self._idle: deque[tuple[HTTPConnection, float]] = deque()

    def close(self) -> None:
        """Let go of every connection."""
        with self._lock:
            while self._idle:
                self._idle.pop()[0].close()

    def send(
        self, method: str, path: str, *, query: Mapping[str, int] | None = None, body: Body = b"", kind: str = ""
    ) -> tuple[int, bytes]:
        """Status and body of the answer. Every request to the archive is safe to repeat, and a stale one is."""
        target = f"{self._base}{path}{'?' + urlencode(query) if query else ''}"
        headers = {**self._headers, "Content-Type": kind} if kind else self._headers
        if not isinstance(body, bytes):
            headers = {**headers, "Content-Length": str(body.size)}
        with self._free:
            try:
                return self._repeated(method, target, body, headers)
            except (OSError, HTTPException) as error:
                raise ArchiveUnavailable(f"the archive does not answer ({type(error).__name__})") from error

    def _repeated(self, method: str, target: str, body: Body, headers: Mapping[str, str]) -> tuple[int, bytes]:
        kept = self._kept()
        if kept is not None:
            # It may have been closed at this moment.
            with suppress(ConnectionError, HTTPException):
                return self._ask(kept, method, target, body, headers)
        return self._ask(self._opened(), method, target, body, headers)

    def _ask(
        self, connection: HTTPConnection, method: str, target: str, body: Body, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        try:
            connection.request(method, target, body=body or None, headers=dict(headers))
            response = connection.getresponse()
            answer = response.status, response.read()
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append((connection, time.monotonic()))
        return answer

    def _kept(self) -> HTTPConnection | None:
        """A connection that was used a moment ago; the others are let go of."""
        moment = time.monotonic()
        with self._lock:
            while self._idle and moment - self._idle[0][1] > IDLE_SECONDS:
                self._idle.popleft()[0].close()
            while self._idle:
                connection, _ = self._idle.pop()
                if not _is_stale(connection.sock):
                    return connection
                connection.close()
        return None

    def _opened(self) -> HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        wait = min(self._patience, CONNECT_SECONDS)
        if self._tls is None:
            connection = HTTPConnection(host, port, timeout=wait)
        else:
            connection = HTTPSConnection(host, port, timeout=wait, context=self._tls)
        connection.connect()
        connection.sock.settimeout(self._patience)
        return connection


def _is_stale(sock: socket.socket | None) -> bool:
    """Whether the other side has closed, or sent what nobody asked for."""
    if sock is None:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
