"""A TCP way to the archive that breaks where a test wants it to: cut, deaf, hanging, failing, or changing bytes."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

Fate = Literal["pass", "refuse", "cut", "deaf", "hang", "fail", "change", "die"]
REQUEST = re.compile(rb"(GET|POST|DELETE|PUT) (/\S*) HTTP/1\.1\r\n")
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(slots=True)
class Wires:
    """`fate` says what happens to a request: to its bytes on the way in, and to its answer.

    refuse: closed at once. cut: closed after its head. deaf: it arrives, the answer does not. hang: nothing happens.
    fail: answered 500. change: `seen` becomes `sEEn`. die: as deaf, and from then on everything is refused.
    """

    url: str
    upstream: tuple[str, int]
    fate: Callable[[str], Fate] = field(default=lambda _: "pass")
    asked: list[str] = field(default_factory=list)
    dead: bool = False

    def only(self, what: str, fate: Fate, after: int = 0) -> None:
        """One kind of request, by the start of method and path, meets this fate from the given time on."""
        seen: list[str] = []

        def decide(request: str) -> Fate:
            if not request.startswith(what):
                return "pass"
            seen.append(request)
            return fate if len(seen) > after else "pass"

        self.fate = decide

    def mend(self) -> None:
        self.fate, self.dead = lambda _: "pass", False
        self.asked.clear()


class _Connection:
    def __init__(self, wires: Wires, client: socket.socket) -> None:
        self.wires, self.client, self.fate = wires, client, "pass"
        self.server = socket.create_connection(wires.upstream)

    def run(self) -> None:
        back = threading.Thread(target=self.answers, daemon=True)
        back.start()
        with suppress(OSError):
            while (octets := self.client.recv(65536)) and self.forward(octets):
                pass
        self.close()

    def forward(self, octets: bytes) -> bool:
        if request := REQUEST.match(octets):
            named = f"{request[1].decode()} {request[2].decode()}"
            self.wires.asked.append(named)
            self.fate = "refuse" if self.wires.dead else self.wires.fate(named)
        match self.fate:
            case "refuse":
                return False
            case "cut":
                self.server.sendall(octets[: octets.find(b"\r\n\r\n") + 4])
                return False
            case "hang":
                return True
            case "fail":
                self.client.sendall(FAILED)
                return False
            case "change":
                self.server.sendall(octets.replace(b"seen", b"sEEn"))
            case _:
                self.server.sendall(octets)
        return True

    def answers(self) -> None:
        with suppress(OSError):
            while octets := self.server.recv(65536):
                if self.fate in {"deaf", "die"}:
                    self.wires.dead = self.fate == "die"
                    break
                self.client.sendall(octets)
        self.close()

    def close(self) -> None:
        for one in (self.client, self.server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def wires(url: str) -> Iterator[Wires]:
    parts = urlsplit(url)
    listener = socket.create_server(("127.0.0.1", 0))
    laid = Wires(f"http://127.0.0.1:{listener.getsockname()[1]}", (parts.hostname or "", parts.port or 0))

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=_Connection(laid, client).run, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield laid
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
