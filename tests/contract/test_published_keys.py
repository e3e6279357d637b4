"""A client whose keys stand at its own address proves itself by them (SMART App Launch 2.2: REG04, REG06, B08, B09)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from joserfc.jwk import ECKey

from app.egress import Egress
from app.errors import Unavailable
from app.smart import clients, published
from app.smart.clients import Client
from app.smart.published import PublishedKeys
from tests.contract.smart_server import JWKS, KEYS, Site, site
from tests.outside import Outside, says

__all__ = ["site"]
SCOPE = "system/ImagingStudy.rs"


class Clock:
    """The time as these keys see it, so that nobody waits an hour."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Publisher:
    """A client's own server: what it says can change."""

    def __init__(self) -> None:
        self.body: bytes = json.dumps(JWKS).encode()
        self.status = 200
        self.headers: dict[str, str] = {}
        self.server = Outside(self._answer)
        self.url = f"{self.server.url}/jwks.json"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        says(self.body, self.status, **self.headers)(request)

    @property
    def asked(self) -> int:
        return len(self.server.came)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    one = Publisher()
    yield one
    one.server.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(published, "time", one)
    return one


@pytest.fixture
def held(publisher: Publisher, clock: Clock) -> PublishedKeys:
    assert clock
    return PublishedKeys(Egress(_loopback()))


def _loopback() -> Any:
    import ipaddress

    return [ipaddress.ip_network("127.0.0.0/8")]


def add(site: Site, address: str) -> None:
    client = Client("outside", "Outside", "asymmetric", scope=SCOPE, jwks_uri=address)
    site.store.transact(lambda connection: clients.ensure_client(connection, client))


@pytest.mark.parametrize("alg", sorted(KEYS))
def test_a_client_is_known_by_the_keys_at_its_address(site: Site, publisher: Publisher, alg: str) -> None:
    """REG04, B04"""
    add(site, publisher.url)
    for header in ({}, {"jku": publisher.url}):
        answer = site.backend(site.assertion("outside", alg, header=header))
        assert (answer.status_code, answer.json().get("scope")) == (200, SCOPE)
    assert publisher.asked == 1


def test_another_address_in_the_header_is_not_even_asked(site: Site, publisher: Publisher) -> None:
    """B08"""
    elsewhere = Outside(says(json.dumps(JWKS).encode()))
    add(site, publisher.url)
    for jku in (f"{elsewhere.url}/jwks.json", f"{publisher.url}#", f"{publisher.url}/"):
        answer = site.backend(site.assertion("outside", header={"jku": jku}))
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_client")
    elsewhere.close()
    assert elsewhere.came == []
    assert publisher.asked == 0


def test_what_cannot_be_had_is_an_invalid_client_and_tells_nothing(site: Site, publisher: Publisher) -> None:
    publisher.status, publisher.body = 500, b"secret of the inside"
    add(site, publisher.url)
    answer = site.backend(site.assertion("outside"))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_client")
    assert "secret of the inside" not in answer.text
    add(site, "https://127.0.0.1:1/jwks.json")
    assert site.backend(site.assertion("outside")).json()["error"] == "invalid_client"


def test_a_new_key_is_found_at_once_and_a_made_up_one_is_not_asked_for_again(
    held: PublishedKeys, publisher: Publisher, clock: Clock
) -> None:
    """B09"""
    assert len(held.find(publisher.url, "rsa")) == 1
    fresh = ECKey.generate_key("P-384", {"kid": "fresh"}).as_dict(private=False)
    publisher.body = json.dumps({"keys": [fresh]}).encode()
    for _ in range(20):
        assert held.find(publisher.url, "fresh") == []
    assert publisher.asked == 1
    clock.now += published.SHORTEST
    assert [key.kid for key in held.find(publisher.url, "fresh")] == ["fresh"]
    assert held.find(publisher.url, "rsa") == []
    assert publisher.asked == 2


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("max-age=120", 120),
        ("public, max-age=1", published.SHORTEST),
        ("max-age=999999", published.LONGEST),
        ("no-store", published.SHORTEST),
        ("no-cache, max-age=900", published.SHORTEST),
        ("max-age=x", published.USUAL),
        ("", published.USUAL),
    ],
)
def test_a_set_is_kept_as_long_as_it_says_within_bounds(
    held: PublishedKeys, publisher: Publisher, clock: Clock, said: str, seconds: float
) -> None:
    """B09"""
    publisher.headers = {"Cache_Control": said} if said else {}
    held.find(publisher.url, "rsa")
    clock.now += seconds - 1
    held.find(publisher.url, "rsa")
    assert publisher.asked == 1
    clock.now += 2
    held.find(publisher.url, "rsa")
    assert publisher.asked == 2


def test_a_client_whose_server_is_away_keeps_its_keys_for_an_hour(
    held: PublishedKeys, publisher: Publisher, clock: Clock
) -> None:
    held.find(publisher.url, "rsa")
    publisher.status = 503
    clock.now += published.USUAL + 1
    assert len(held.find(publisher.url, "rsa")) == 1
    clock.now += published.LONGEST
    with pytest.raises(Unavailable):
        held.find(publisher.url, "rsa")


def test_many_at_once_ask_once(held: PublishedKeys, publisher: Publisher) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(held.find(publisher.url, "rsa")))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [1] * 16
    assert publisher.asked == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"keys": 1}', b'{"keys": {"a": 1}}', b"\xff"])
def test_what_is_no_key_set_finds_nothing(held: PublishedKeys, publisher: Publisher, body: bytes) -> None:
    publisher.body = body
    with pytest.raises(Unavailable):
        held.find(publisher.url, "rsa")


def test_only_public_signing_keys_that_are_strong_count(held: PublishedKeys, publisher: Publisher) -> None:
    weak = {**JWKS["keys"][0], "kid": "weak", "n": "u1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0gunVTLw7onLRnrq0"}
    private = ECKey.generate_key("P-384", {"kid": "private"})
    curve = ECKey.generate_key("P-256", {"kid": "curve"})
    sealing = ECKey.generate_key("P-384", {"kid": "enc", "use": "enc"})
    nameless = ECKey.generate_key("P-384").as_dict(private=False)
    nameless.pop("kid", None)
    listed = [
        *(weak, private.as_dict(private=True), curve.as_dict(private=False)),
        *(
            sealing.as_dict(private=False),
            nameless,
            1,
            None,
            "x",
            {"kty": "oct", "kid": "oct", "k": "AAAA"},
            {"kid": "nothing"},
        ),
        *JWKS["keys"],
    ]
    publisher.body = json.dumps({"keys": listed}).encode()
    for key_id in ("weak", "private", "curve", "enc", "oct", "nothing"):
        assert held.find(publisher.url, key_id) == []
    assert len(held.find(publisher.url, "rsa")) == 1
