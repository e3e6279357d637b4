"""The network of the chaos does what it says: otherwise its rounds would prove nothing (tests.faults.proxy)."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.faults.proxy import Proxy
from tests.processes import wait_until

BODY = b"x" * 20_000


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def network() -> Iterator[Proxy]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with Proxy(server.server_port) as proxy:
            yield proxy
        server.shutdown()
        thread.join()


@pytest.fixture
def client(network: Proxy) -> Iterator[httpx.Client]:
    address = f"http://127.0.0.1:{network.port}"
    with httpx.Client(base_url=address, trust_env=False, timeout=5) as made:
        yield made


def test_what_is_sent_passes_unchanged(client: httpx.Client) -> None:
    assert [client.get("/").content for _ in range(3)] == [BODY] * 3


def test_a_cut_ends_open_and_new_connections_until_it_is_mended(network: Proxy, client: httpx.Client) -> None:
    client.get("/")
    network.cut()
    for _ in range(2):
        with pytest.raises(httpx.TransportError):
            client.get("/")
    network.restore()
    assert client.get("/").content == BODY


def test_a_stalled_network_answers_nothing_and_then_everything(network: Proxy, client: httpx.Client) -> None:
    network.stall()
    with pytest.raises(httpx.ReadTimeout):
        client.get("/", timeout=0.2)
    answers: list[bytes] = []
    asked = threading.Thread(target=lambda: answers.append(client.get("/").content))
    asked.start()
    asked.join(0.2)
    assert answers == []
    network.restore()
    asked.join(5)
    assert answers == [BODY]


def test_a_slow_network_is_late_and_complete(network: Proxy, client: httpx.Client) -> None:
    network.slow(0.01)
    began = time.monotonic()
    assert client.get("/").content == BODY
    assert time.monotonic() - began >= 0.1


def test_an_answer_is_broken_off_in_its_midst_once(network: Proxy, client: httpx.Client) -> None:
    network.break_after(5000)
    with pytest.raises(httpx.TransportError):
        client.get("/")
    assert client.get("/").content == BODY


def test_an_answer_is_kept_back_of_the_requests_that_say_a_word(network: Proxy, client: httpx.Client) -> None:
    network.keep_back(b"/late")
    answers: list[bytes] = []
    asked = threading.Thread(
        target=lambda: answers.append(httpx.get(f"{client.base_url}/late", trust_env=False).content)
    )
    asked.start()
    assert client.get("/").content == BODY
    wait_until(lambda: network.keeps == 1, "the answer", 5)
    assert answers == []
    network.restore()
    asked.join(5)
    assert answers == [BODY]


def test_nonsense_is_said_instead_of_the_answer_until_the_network_is_restored(network: Proxy) -> None:
    def asked() -> tuple[int, bytes]:
        answer = httpx.post(f"http://127.0.0.1:{network.port}/", content=b"x" * 10_000, trust_env=False)
        return answer.status_code, answer.content

    network.say("200 OK", b"{nonsense")
    assert [asked() for _ in range(2)] == [(200, b"{nonsense")] * 2
    network.say("500 Internal Server Error", b"")
    assert asked() == (500, b"")
    network.restore()
    assert httpx.get(f"http://127.0.0.1:{network.port}/", trust_env=False).content == BODY


def test_nonsense_is_said_on_connections_that_stay_open(network: Proxy, client: httpx.Client) -> None:
    network.say("200 OK", b"[]")
    assert [client.get("/").content for _ in range(3)] == [b"[]"] * 3
