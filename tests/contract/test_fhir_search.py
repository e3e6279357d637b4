"""Search over HTTP: paging, includes, refusals, and what each grant leaves (https://hl7.org/fhir/R4/search.html)."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import orjson
import pytest

from app.fhir import resources, validation
from app.fhir.registry import MODIFIERS
from app.store.database import Store
from tests.contract.conftest import Server, caller

Json = dict[str, Any]
UID = "urn:dicom:uid|urn:oid:"


def study(number: str, patient: str, **more: Any) -> Json:
    identifier = [{"system": "urn:dicom:uid", "value": f"urn:oid:1.2.{number}"}]
    kept = {"status": "available", "subject": {"reference": f"Patient/{patient}"}, "started": f"2024-01-{number}"}
    return {"resourceType": "ImagingStudy", "id": f"s{number}", "identifier": identifier, **kept, **more}


def patient(number: str) -> Json:
    return {"resourceType": "Patient", "id": number, "name": [{"family": "Muster"}]}


def put(store: Store, *wanted: Json) -> None:
    def work(connection: Any) -> None:
        for resource in wanted:
            resources.put(connection, resource, cause="test")

    store.transact(work)


@pytest.fixture
def seeded(server: Server) -> Server:
    """Two patients: p1 with three studies, p2 with two."""
    endpoint = {"resourceType": "Endpoint", "id": "e1", "status": "active", "address": "http://x.example/dicom-web"}
    endpoint |= {"connectionType": {"code": "dicom-wado-rs"}, "payloadType": [{"text": "DICOM"}]}
    studies = [study(number, "p1") for number in ("11", "12", "13")] + [study(number, "p2") for number in ("21", "22")]
    studies[0] |= {"endpoint": [{"reference": "Endpoint/e1"}], "modality": [{"code": "CT"}]}
    put(server.store, patient("p1"), patient("p2"), endpoint, *studies)
    return server


def bundle(client: httpx.Client, address: str) -> Json:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    assert validation.validate(answer.json(), "Bundle") == []
    return answer.json()


def ids(found: Json, mode: str = "match") -> list[str]:
    return [entry["resource"]["id"] for entry in found.get("entry", []) if entry["search"]["mode"] == mode]


def link(found: Json, relation: str) -> str | None:
    return next((link["url"] for link in found["link"] if link["relation"] == relation), None)


def follow(client: httpx.Client, address: str | None) -> list[list[str]]:
    pages: list[list[str]] = []
    while address:
        found = bundle(client, address.removeprefix("http://localhost:8080"))
        pages.append(ids(found))
        address = link(found, "next")
    return pages


def test_the_newest_come_first_and_a_full_answer_has_its_total(seeded: Server) -> None:
    with seeded.client() as client:
        found = bundle(client, "/fhir/ImagingStudy?patient=p1&status=available")
    assert ids(found) == ["s13", "s12", "s11"]
    assert found["total"] == 3
    assert link(found, "self") == "http://localhost:8080/fhir/ImagingStudy?patient=p1&status=available"
    assert found["entry"][0]["fullUrl"] == "http://localhost:8080/fhir/ImagingStudy/s13"


def test_nothing_found_is_a_bundle_without_entry(seeded: Server) -> None:
    with seeded.client() as client:
        found = bundle(client, "/fhir/ImagingStudy?identifier=none")
    assert found["total"] == 0
    assert "entry" not in found


def test_a_posted_search_is_the_same_search(seeded: Server) -> None:
    with seeded.client() as client:
        got = client.get("/fhir/ImagingStudy?patient=p1&_count=2").json()
        posted = client.post("/fhir/ImagingStudy/_search", data={"patient": "p1", "_count": "2"}).json()
        mixed = client.post("/fhir/ImagingStudy/_search?patient=p1", data={"_count": "2"}).json()
    assert got == posted == mixed


def test_count_zero_counts_and_a_huge_count_is_cut(seeded: Server) -> None:
    with seeded.client() as client:
        counted = bundle(client, "/fhir/ImagingStudy?_count=0")
        assert (counted["total"], "entry" in counted) == (5, False)
        assert len(ids(bundle(client, "/fhir/ImagingStudy?_count=999999999"))) == 5


def test_paging_shows_each_resource_once(seeded: Server) -> None:
    with seeded.client() as client:
        for order in ("-started", "started", "-_lastUpdated", "_lastUpdated"):
            whole = ids(bundle(client, f"/fhir/ImagingStudy?_sort={order}"))
            assert len(whole) == 5
            for count in (1, 2, 5):
                pages = follow(client, f"/fhir/ImagingStudy?_sort={order}&_count={count}")
                assert [found for page in pages for found in page] == whole
                assert all(len(page) == count for page in pages[:-1])


def test_paging_beside_inserts_loses_and_repeats_nothing_that_was_there(seeded: Server) -> None:
    stop = threading.Event()

    def insert() -> None:
        number = 0
        while not stop.is_set():
            put(seeded.store, study("15", "p1", id=f"new{number}"), study("10", "p1", id=f"old{number}"))
            number += 1

    writer = threading.Thread(target=insert)
    writer.start()
    try:
        with seeded.client() as client:
            query, pages = "/fhir/ImagingStudy?started=lt2024-01-15&_count=1&identifier:not=urn:oid:1.2.10", []
            pages = [found for page in follow(client, query) for found in page]
    finally:
        stop.set()
        writer.join()
    assert [found for found in pages if found.startswith("s")] == ["s13", "s12", "s11"]
    assert len(set(pages)) == len(pages)


def test_a_page_belongs_to_its_search_and_its_caller(seeded: Server) -> None:
    seeded.callers["other"] = caller("system/*.rs", client_id="other")
    with seeded.client() as client, seeded.client("other") as other:
        following = str(link(bundle(client, "/fhir/ImagingStudy?_count=1"), "next")).removeprefix(
            "http://localhost:8080"
        )
        answers = [
            other.get(following),
            client.get(f"{following}x"),
            client.get(following.replace("_count=1", "_count=2")),
            client.get(following.replace("ImagingStudy", "Patient")),
            client.get("/fhir/ImagingStudy?_count=1&_page=%C3%BC"),
        ]
        assert client.get(following).status_code == 200
    assert [answer.status_code for answer in answers] == [400] * 5
    assert all("_page" in answer.text for answer in answers)


REFUSED = [
    ("foo=1", "foo"),
    ("based-on=x", "based-on"),
    ("patient.name=x", "patient.name"),
    ("_has:Observation:patient:code=x", "_has"),
    ("modality:text=CT", "modality"),
    ("patient:identifier=x", "patient"),
    ("subject:Practitioner=x", "subject"),
    ("started=foo", "started"),
    ("started=xx2024", "started"),
    ("started=2024-13", "started"),
    ("started:exact=2024", "started"),
    ("_id:not=x", "_id"),
    ("_lastUpdated=x", "_lastUpdated"),
    ("_lastUpdated:missing=true", "_lastUpdated"),
    ("status=|", "status"),
    ("status=a,,b", "status"),
    ("status=a|b|c", "status"),
    ("status:missing=x", "status"),
    ("_count=-1", "_count"),
    ("_count=1&_count=2", "_count"),
    ("_sort=status", "_sort"),
    ("_include=ImagingStudy:status", "_include"),
    ("_include=*", "_include"),
    ("_summary=true", "_summary"),
    ("_elements=id", "_elements"),
    ("_total=accurate", "_total"),
]


def test_what_is_not_understood_is_refused_by_name(client: httpx.Client) -> None:
    for query, named in REFUSED:
        answer = client.get(f"/fhir/ImagingStudy?{query}")
        told = [issue["expression"] for issue in answer.json()["issue"]]
        assert (answer.status_code, told) == (400, [[f"http.{named}"]]), query


def test_the_refusal_of_an_unknown_parameter_lists_the_known_ones(seeded: Server) -> None:
    with seeded.client() as client:
        told = client.get("/fhir/Endpoint?foo=1").json()["issue"][0]["diagnostics"]
    assert all(name in told for name in ("connection-type", "identifier", "_id", "_lastUpdated", "_count", "_sort"))


def test_every_stated_parameter_and_modifier_is_served(client: httpx.Client) -> None:
    values = {"token": "x", "uri": "x", "string": "x", "date": "2024", "reference": "x"}
    for row in client.get("/fhir/metadata").json()["rest"][0]["resource"]:
        for parameter in row["searchParam"]:
            name, kind = parameter["name"], parameter["type"]
            modifiers = [] if name.startswith("_") else MODIFIERS[kind]
            queries = [f"{name}={values[kind]}", *(f"{name}:{modifier}={_value(modifier)}" for modifier in modifiers)]
            for query in queries:
                assert client.get(f"/fhir/{row['type']}?{query}").status_code == 200, query
        for include in row.get("searchInclude", []):
            assert client.get(f"/fhir/{row['type']}?_include={include}").status_code == 200
        for include in row.get("searchRevInclude", []):
            assert client.get(f"/fhir/{row['type']}?_revinclude={include}").status_code == 200


def _value(modifier: str) -> str:
    return "true" if modifier == "missing" else "x"


def test_includes_are_marked_and_neither_counted_nor_repeated(seeded: Server) -> None:
    with seeded.client() as client:
        found = bundle(
            client, "/fhir/ImagingStudy?patient=p1&_include=ImagingStudy:endpoint&_include=ImagingStudy:patient"
        )
        assert (found["total"], sorted(ids(found, "include"))) == (3, ["e1", "p1"])
        back = bundle(client, "/fhir/Patient?_id=p2&_revinclude=ImagingStudy:subject")
        assert (ids(back), ids(back, "include")) == (["p2"], ["s21", "s22"])


def test_a_reference_by_our_own_address_is_the_same_reference(seeded: Server) -> None:
    whole = "http://localhost:8080/fhir/Patient/p2"
    put(seeded.store, study("23", "p2", subject={"reference": whole}))
    with seeded.client() as client:
        for asked in ("Patient/p2", whole, "p2"):
            found = ids(bundle(client, f"/fhir/ImagingStudy?subject={asked}"))
            assert found[-2:] == ["s22", "s21"]
            assert ("s23" in found) is (asked != "p2")


# --- what each grant leaves -----------------------------------------------------------------------------------

GRANTS = {
    "everything": (caller("user/ImagingStudy.rs"), {"s11", "s12", "s13", "s21", "s22"}),
    "one patient": (caller("patient/ImagingStudy.rs", patient_id="p1"), {"s11", "s12", "s13"}),
    "no patient": (caller("patient/ImagingStudy.rs"), set[str]()),
    "granular": (caller(f"patient/ImagingStudy.rs?identifier={UID}1.2.11", patient_id="p1"), {"s11"}),
    "granular, another's": (caller(f"patient/ImagingStudy.rs?identifier={UID}1.2.21", patient_id="p1"), set[str]()),
    "granular, by code": (caller("user/ImagingStudy.rs?modality=CT"), {"s11"}),
    "granular, unknown": (caller("user/ImagingStudy.rs?colour=red"), set[str]()),
    "granular, no token": (caller("user/ImagingStudy.rs?started=2024"), set[str]()),
    "study": (caller("patient/ImagingStudy.rs", patient_id="p1", studies=frozenset({"1.2.12", "1.2.21"})), {"s12"}),
    "no study": (caller("user/ImagingStudy.rs", studies=frozenset[str]()), set[str]()),
    "union": (
        caller(
            f"patient/ImagingStudy.rs?identifier={UID}1.2.11 user/ImagingStudy.rs?identifier={UID}1.2.22",
            patient_id="p1",
        ),
        {"s11", "s22"},
    ),
}


def test_search_finds_and_read_allows_exactly_what_the_grant_covers(seeded: Server) -> None:
    for name, (access, allowed) in GRANTS.items():
        seeded.callers["it"] = access
        with seeded.client("it") as client:
            assert set(ids(bundle(client, "/fhir/ImagingStudy"))) == allowed, name
            assert bundle(client, "/fhir/ImagingStudy?_count=0")["total"] == len(allowed), name
            for number in ("11", "12", "13", "21", "22"):
                expected = 200 if f"s{number}" in allowed else 403
                assert client.get(f"/fhir/ImagingStudy/s{number}").status_code == expected, name
                assert client.get(f"/fhir/ImagingStudy/s{number}/_history/1").status_code == expected, name


def test_what_is_forbidden_and_what_is_not_there_look_the_same(seeded: Server) -> None:
    seeded.callers |= {"it": GRANTS["granular"][0], "wide": GRANTS["everything"][0]}
    with seeded.client("it") as client, seeded.client("wide") as wide:
        forbidden, unknown = client.get("/fhir/ImagingStudy/s21"), client.get("/fhir/ImagingStudy/none")
        assert (
            (forbidden.status_code, forbidden.content)
            == (unknown.status_code, unknown.content)
            == (403, unknown.content)
        )
        assert wide.get("/fhir/ImagingStudy/none").status_code == 404
        assert wide.get("/fhir/Patient/p1").status_code == wide.get("/fhir/Patient").status_code == 403


def test_another_patient_in_the_query_is_refused(seeded: Server) -> None:
    seeded.callers["it"] = caller("patient/*.rs", patient_id="p1")
    with seeded.client("it") as client:
        for query in (
            "ImagingStudy?patient=p2",
            "ImagingStudy?subject=Patient/p2",
            "ImagingStudy?patient=p1,p2",
            "Patient?_id=p2",
        ):
            assert client.get(f"/fhir/{query}").status_code == 403, query
        assert ids(bundle(client, "/fhir/ImagingStudy?patient=p1&_count=1")) == ["s13"]
        assert ids(bundle(client, "/fhir/Patient")) == ["p1"]
    assert [record.outcome for record in seeded.records[:4]] == ["denied"] * 4


def test_an_include_shows_nothing_that_may_not_be_read(seeded: Server) -> None:
    seeded.callers["it"] = caller("patient/ImagingStudy.rs patient/Endpoint.r", patient_id="p1")
    with seeded.client("it") as client:
        found = bundle(client, "/fhir/ImagingStudy?_include=ImagingStudy:endpoint&_include=ImagingStudy:subject")
        assert ids(found, "include") == ["e1"]


def test_writes_stay_inside_the_grant(seeded: Server) -> None:
    seeded.callers["it"] = caller("patient/ImagingStudy.cu patient/Patient.r", patient_id="p1")
    headers = {"Content-Type": "application/fhir+json"}
    with seeded.client("it") as client:

        def write(resource: Json, method: str = "PUT") -> int:
            address = f"/fhir/{resource['resourceType']}" + (f"/{resource['id']}" if method == "PUT" else "")
            return client.request(method, address, content=orjson.dumps(resource), headers=headers).status_code

        assert write(study("11", "p1", description="x")) == 200
        assert write(study("21", "p2", description="x")) == 403
        assert write(study("21", "p1")) == 403
        assert write(study("11", "p2")) == 403
        assert write(study("30", "p1")) == 403
        assert write(study("31", "p1"), "POST") == 201
        assert write(study("31", "p2"), "POST") == 403
        assert write(patient("p1")) == 403
        assert client.get("/fhir/ImagingStudy/s11").status_code == 403
    with seeded.client() as client:
        assert client.get("/fhir/ImagingStudy/s21").json()["subject"] == {"reference": "Patient/p2"}


@pytest.mark.parametrize("text", ["%00", "%ff", "%ed%a0%80", "a%00b"])
def test_bytes_that_are_no_text_are_refused_or_find_nothing(seeded: Server, text: str) -> None:
    for address in (
        f"Patient?name={text}",
        f"Patient?identifier={text}",
        f"Patient?_id={text}",
        f"ImagingStudy?patient={text}",
        f"Patient/{text}",
        f"Patient/1/_history/{text}",
    ):
        with seeded.client() as client:
            response = client.get(f"/fhir/{address}")
        assert response.status_code in {200, 400, 404}, address
        assert "entry" not in response.json(), address


def test_a_search_for_more_values_than_a_database_can_plan_is_refused(seeded: Server) -> None:
    many = ",".join(f"urn:x|{number}" for number in range(2000))
    for query in (f"identifier={many}", "&".join(["name=a"] * 600), f"_id={','.join(map(str, range(6000)))}"):
        with seeded.client() as client:
            response = client.get(f"/fhir/Patient?{query}")
        assert response.status_code == 400, query[:20]
        assert response.json()["issue"][0]["code"] == "too-costly"
