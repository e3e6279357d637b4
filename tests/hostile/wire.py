"""HTTP/1.1 over a bare socket: client libraries tidy what they send, and what is tidied is not tested."""

from __future__ import annotations

import gzip
import re
import socket
import zlib
from dataclasses import dataclass, field
from http import HTTPStatus

Header = tuple[bytes, bytes]
BOUNDARY = re.compile(rb'boundary="?([^";,\s]+)')
BODYLESS = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as its bytes will be."""

    method: bytes
    target: bytes
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    host: bytes = b"localhost"

    def sent(self) -> bytes:
        lines = [self.method + b" " + self.target + b" HTTP/1.1", b"Host: " + self.host]
        lines += [name + b": " + value for name, value in self.headers]
        if self.body:
            lines.append(b"Content-Length: %d" % len(self.body))
        return b"\r\n".join((*lines, b"", b"")) + self.body


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; status 0 is a connection that was closed without a word."""

    status: int = 0
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    whole: bool = True
    """Whether the body was as long as it was announced."""

    def header(self, name: bytes) -> bytes:
        return b", ".join(value for key, value in self.headers if key == name)

    def decoded(self) -> bytes:
        """The body without its content coding."""
        match self.header(b"content-encoding"):
            case b"gzip":
                return gzip.decompress(self.body)
            case b"deflate":
                return zlib.decompress(self.body)
            case _:
                return self.body

    def parts(self) -> list[bytes]:
        """The contents of a multipart body, else the body itself."""
        kind, body = self.header(b"content-type"), self.decoded()
        mark = BOUNDARY.search(kind)
        if not kind.startswith(b"multipart/") or mark is None:
            return [body]
        pieces = body.split(b"--" + mark[1])[1:-1]
        return [piece.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for piece in pieces]


class Closed(Exception):
    """The other side closed the connection."""


@dataclass(slots=True)
class Wire:
    """One connection, used again while the other side allows it."""

    address: tuple[str, int]
    timeout: float = 20.0
    count: int = 0
    _socket: socket.socket | None = None
    _buffer: bytearray = field(default_factory=bytearray)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._buffer.clear()

    def ask(self, asked: Ask, *, alone: bool = False) -> Answer:
        """The answer to one request; `alone` on a connection of its own."""
        self.count += 1
        if alone:
            self.close()
        used = self._socket is not None
        try:
            answer = self._once(asked)
        except Closed:
            if not used:
                return Answer()
            # It may have been closed before this request was seen.
            answer = self._again(asked)
        if alone or b"close" in answer.header(b"connection").lower() or not answer.whole:
            self.close()
        return answer

    def _again(self, asked: Ask) -> Answer:
        self.close()
        try:
            return self._once(asked)
        except Closed:
            self.close()
            return Answer()

    def _once(self, asked: Ask) -> Answer:
        if self._socket is None:
            self._socket = socket.create_connection(self.address, timeout=self.timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket.sendall(asked.sent())
        except OSError as error:
            raise Closed from error
        while True:
            answer = self._answer(asked.method == b"HEAD")
            if answer.status >= 200:
                return answer

    def _answer(self, headless: bool) -> Answer:
        while (at := self._buffer.find(b"\r\n\r\n")) < 0:
            self._more()
        lines = bytes(self._buffer[:at]).split(b"\r\n")
        del self._buffer[: at + 4]
        pairs = [line.partition(b":") for line in lines[1:]]
        headers = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
        status = int(lines[0].split(b" ")[1])
        bare = Answer(status, headers)
        if headless or status < 200 or status in BODYLESS:
            return bare
        try:
            return Answer(status, headers, self._body(bare))
        except Closed:
            kept = bytes(self._buffer)
            self.close()
            framed = bare.header(b"content-length") or bare.header(b"transfer-encoding")
            return Answer(status, headers, kept, whole=not framed)

    def _body(self, answer: Answer) -> bytes:
        if b"chunked" in answer.header(b"transfer-encoding"):
            return self._chunks()
        if length := answer.header(b"content-length"):
            return self._take(int(length))
        while True:
            self._more()

    def _chunks(self) -> bytes:
        content = bytearray()
        while True:
            while (at := self._buffer.find(b"\r\n")) < 0:
                self._more()
            size = int(bytes(self._buffer[:at]), 16)
            del self._buffer[: at + 2]
            content += self._take(size + 2)[:-2]
            if not size:
                return bytes(content)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _more(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(1 << 18)
        except ConnectionError as error:
            raise Closed from error
        if not data:
            raise Closed
        self._buffer += data
