"""The client of the archive, against servers that behave badly (app.dicom.wire)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from app.dicom.wire import Wire
from app.errors import ArchiveUnavailable, ConfigurationError

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """One that serves each connection with this function, until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def request(connection: socket.socket) -> bytes:
    """The head of one request."""
    head = b""
    while b"\r\n\r\n" not in head:
        read = connection.recv(65536)
        if not read:
            return b""
        head += read
    return head


def wire(url: str, patience: float = 5) -> Wire:
    return Wire(url, "me", "secret", connections=2, patience=patience)


def test_a_connection_is_used_again() -> None:
    connections: list[list[bytes]] = []

    def serve(connection: socket.socket) -> None:
        heads: list[bytes] = []
        connections.append(heads)
        while head := request(connection):
            heads.append(head)
            connection.sendall(GOOD)

    with server(serve) as url:
        archive = wire(url)
        answers = [archive.send("GET", "/changes", query={"since": 3, "limit": 4}) for _ in range(3)]
        archive.close()
    assert answers == [(200, b"{}")] * 3
    [heads] = connections
    assert heads[0].startswith(b"GET /changes?since=3&limit=4 HTTP/1.1\r\n")
    assert b"Authorization: Basic bWU6c2VjcmV0\r\n" in heads[0]
    assert b"Accept-Encoding: identity\r\n" in heads[0]


def test_a_request_on_a_connection_that_was_closed_meanwhile_is_sent_again() -> None:
    seen: list[bytes] = []

    def once(connection: socket.socket) -> None:
        seen.append(request(connection))
        connection.sendall(GOOD)
        # The second request is read and not answered: whether it was done, nobody knows.
        seen.append(request(connection) if len(seen) < 2 else b"")

    with server(once) as url:
        archive = wire(url)
        assert archive.send("GET", "/a") == (200, b"{}")
        assert archive.send("GET", "/b") == (200, b"{}")
        archive.close()
    assert [head.split(b" ")[1] for head in seen if head] == [b"/a", b"/b", b"/b"]


@dataclass(frozen=True, slots=True)
class Blocks:
    blocks: tuple[bytes, ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.blocks))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.blocks)


def test_a_large_body_is_sent_block_by_block_and_anew_when_it_is_sent_again() -> None:
    body = Blocks((b"a" * 70_000, b"", b"b" * 30_000))
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        if not seen:
            request(connection)
            connection.sendall(GOOD)
        octets = request(connection)
        while octets and len(octets.partition(b"\r\n\r\n")[2]) < body.size:
            octets += connection.recv(65536)
        seen.append(octets)
        # The first connection ends without an answer.
        if len(seen) == 2:
            connection.sendall(GOOD)

    with server(serve) as url:
        archive = wire(url)
        assert archive.send("GET", "/a") == (200, b"{}")
        assert archive.send("POST", "/instances", body=body, kind="application/dicom") == (200, b"{}")
        archive.close()
    assert len(seen) == 2
    for octets in seen:
        head, _, sent = octets.partition(b"\r\n\r\n")
        assert (b"Content-Length: 100000" in head, b"chunked" in head) == (True, False)
        assert sent == b"".join(body.blocks)


@pytest.mark.parametrize(
    "serve",
    [
        lambda connection: None,
        lambda connection: connection.sendall(b"not HTTP\r\n\r\n"),
        lambda connection: (request(connection), connection.sendall(GOOD[:-1])),
        lambda connection: (request(connection), request(connection)),
    ],
    ids=["hangs up", "no HTTP", "half an answer", "silent"],
)
def test_an_archive_that_does_not_answer_well_is_unavailable(serve: Callable[[socket.socket], None]) -> None:
    with server(serve) as url, pytest.raises(ArchiveUnavailable, match="does not answer"):
        wire(url, patience=0.2).send("GET", "/system")


def test_an_archive_that_is_not_there_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(ArchiveUnavailable):
        wire(f"http://127.0.0.1:{port}").send("GET", "/system")


def test_an_address_must_be_one_of_http() -> None:
    with pytest.raises(ConfigurationError):
        wire("ftp://archive")
