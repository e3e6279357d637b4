"""Bundles are joined, not built, and the way to the next page is sealed."""

from __future__ import annotations

import orjson
import pytest
from msgspec.structs import replace

from app.access import Access
from app.errors import BadRequest
from app.fhir import bundle
from app.store.query import UNDATED, Place
from app.store.resources import Stored

KEY = b"k" * 32
ACCESS = Access("app", grant_id="g", patient_id="p")
BOUND = ("ImagingStudy", [("patient", "1"), ("_sort", "family")], ACCESS)
BASE = "https://pacs.example/fhir"


def test_an_entry_has_the_stored_bytes() -> None:
    stored = Stored("Patient", "1", 1, 0, False, b'{"resourceType":"Patient",  "id":"1"}')
    (entry,) = bundle.entries(BASE, [("Patient", "1", stored.body)], "match")
    assert stored.body in entry
    assert orjson.loads(entry)["fullUrl"] == f"{BASE}/Patient/1"
    assert orjson.loads(entry)["search"] == {"mode": "match"}
    (part,) = bundle.entries(BASE, [("Patient", "1", b"{}")], "include")
    assert orjson.loads(part)["resource"] == {}


def test_a_bundle_without_entries_has_no_entry_and_one_without_total_no_total() -> None:
    found = orjson.loads(bundle.joined("searchset", [], [("self", "x")], None))
    assert found == {"resourceType": "Bundle", "type": "searchset", "link": [{"relation": "self", "url": "x"}]}
    full = orjson.loads(bundle.joined("history", [b"{}", b"{}"], [("self", "x")], 2))
    assert (full["type"], full["total"], full["entry"]) == ("history", 2, [{}, {}])


def test_a_link_repeats_its_parameters() -> None:
    assert bundle.address(BASE, "Patient", []) == f"{BASE}/Patient"
    assert bundle.address(BASE, "", [("_type", "A,B")]) == f"{BASE}?_type=A%2CB"
    assert bundle.further(f"{BASE}/Patient", "_page", "x") == f"{BASE}/Patient?_page=x"
    assert bundle.further(f"{BASE}/Patient?name=x", "_page", "y") == f"{BASE}/Patient?name=x&_page=y"


PLACES: list[Place] = [(1_700_000_000_000, 7), (UNDATED, 2**60), ("müller", None, 5.5, 1), (None, 3)]


@pytest.mark.parametrize("place", PLACES)
def test_a_place_survives_its_seal(place: Place) -> None:
    assert bundle.unseal(KEY, BOUND, bundle.seal(KEY, BOUND, place)) == place


def test_equal_places_have_equal_seals_and_nobody_reads_a_name_in_them() -> None:
    sealed = bundle.seal(KEY, BOUND, ("muster", 1))
    assert sealed == bundle.seal(KEY, BOUND, ("muster", 1))
    assert "muster" not in sealed


def test_a_seal_is_good_for_its_search_its_caller_and_its_server_only() -> None:
    sealed = bundle.seal(KEY, BOUND, (1, 2))
    path, applied, access = BOUND
    others = [
        (KEY, ("Patient", applied, access), sealed),
        (KEY, (path, applied[:1], access), sealed),
        (KEY, (path, applied, replace(access, client_id="other")), sealed),
        (KEY, (path, applied, replace(access, grant_id="h")), sealed),
        (KEY, (path, applied, replace(access, patient_id="q")), sealed),
        (b"x" * 32, BOUND, sealed),
        (KEY, BOUND, sealed[:-2]),
        (KEY, BOUND, f"A{sealed[1:]}" if sealed[0] != "A" else f"B{sealed[1:]}"),
        (KEY, BOUND, ""),
        (KEY, BOUND, "ü"),
    ]
    for key, bound, text in others:
        with pytest.raises(BadRequest):
            bundle.unseal(key, bound, text)
