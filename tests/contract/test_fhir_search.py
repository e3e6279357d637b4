"""Search over HTTP: paging, includes, refusals, and what each grant leaves (https://hl7.org/fhir/R4/search.html)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

from app.fhir import conditions, includes, resources, validation
from app.fhir.registry import Parameter, offers
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


@pytest.mark.requirement("S14", "S15", "S22")
def test_the_newest_come_first_and_a_full_answer_has_its_total(seeded: Server) -> None:
    with seeded.client() as client:
        found = bundle(client, "/fhir/ImagingStudy?patient=p1&status=available")
    assert ids(found) == ["s13", "s12", "s11"]
    assert found["total"] == 3
    assert link(found, "self") == "http://localhost:8080/fhir/ImagingStudy?patient=p1&status=available"
    assert found["entry"][0]["fullUrl"] == "http://localhost:8080/fhir/ImagingStudy/s13"


@pytest.mark.requirement("S21")
def test_nothing_found_is_a_bundle_without_entry(seeded: Server) -> None:
    with seeded.client() as client:
        found = bundle(client, "/fhir/ImagingStudy?identifier=none")
    assert found["total"] == 0
    assert "entry" not in found


@pytest.mark.requirement("S1")
def test_a_posted_search_is_the_same_search(seeded: Server) -> None:
    with seeded.client() as client:
        got = client.get("/fhir/ImagingStudy?patient=p1&_count=2").json()
        posted = client.post("/fhir/ImagingStudy/_search", data={"patient": "p1", "_count": "2"}).json()
        mixed = client.post("/fhir/ImagingStudy/_search?patient=p1", data={"_count": "2"}).json()
    assert got == posted == mixed


@pytest.mark.requirement("S13")
def test_count_zero_counts_and_a_huge_count_is_cut(seeded: Server) -> None:
    with seeded.client() as client:
        counted = bundle(client, "/fhir/ImagingStudy?_count=0")
        assert (counted["total"], "entry" in counted) == (5, False)
        assert len(ids(bundle(client, "/fhir/ImagingStudy?_count=999999999"))) == 5


@pytest.mark.requirement("S16", "S15")
def test_paging_shows_each_resource_once(seeded: Server) -> None:
    with seeded.client() as client:
        for order in ("-started", "started", "-_lastUpdated", "_lastUpdated"):
            whole = ids(bundle(client, f"/fhir/ImagingStudy?_sort={order}"))
            assert len(whole) == 5
            for count in (1, 2, 5):
                pages = follow(client, f"/fhir/ImagingStudy?_sort={order}&_count={count}")
                assert [found for page in pages for found in page] == whole
                assert all(len(page) == count for page in pages[:-1])


@pytest.mark.requirement("S16")
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


@pytest.mark.requirement("S16")
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
    ("patinet=1", "patinet"),
    ("patient.colour=x", "patient"),
    ("_has:Observation:patient:code=x", "_has"),
    ("modality:below=CT", "modality"),
    ("started=foo", "started"),
    ("started=xx2024", "started"),
    ("_count=1&_count=2", "_count"),
    ("_sort=colour", "_sort"),
    ("_include=ImagingStudy:status", "_include"),
    ("_summary=all", "_summary"),
    ("_elements=colour", "_elements"),
    ("_total=some", "_total"),
    ("_contained=true", "_contained"),
    ("_text=x", "_text"),
]


@pytest.mark.requirement("S3", "S5", "S11")
def test_what_is_not_understood_is_refused_by_name(client: httpx.Client) -> None:
    for query, named in REFUSED:
        answer = client.get(f"/fhir/ImagingStudy?{query}")
        told = [issue["expression"] for issue in answer.json()["issue"]]
        assert (answer.status_code, told) == (400, [[f"http.{named}"]]), query


@pytest.mark.requirement("S3")
def test_a_misspelled_parameter_is_refused_with_what_was_meant_and_what_there_is(seeded: Server) -> None:
    with seeded.client() as client:
        told = client.get("/fhir/ImagingStudy?patinet=1").json()["issue"][0]["diagnostics"]
        assert "patient?" in told
        assert all(name in told for name in ("modality", "_id", "_lastUpdated", "_count", "_sort"))
        posted = client.post("/fhir/ImagingStudy/_search", data={"patinet": "1"})
    assert posted.status_code == 400


@pytest.mark.requirement("S3")
def test_a_lenient_search_tells_what_it_ignored(seeded: Server) -> None:
    with seeded.client() as client:
        asked = "/fhir/ImagingStudy?patinet=1&patient=p1&started=foo"
        answer = client.get(asked, headers={"Prefer": "handling=lenient"})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert validation.validate(found, "Bundle") == []
        strict = client.get(asked, headers={"Prefer": "handling=strict"})
    assert strict.status_code == 400
    assert ids(found) == ["s13", "s12", "s11"]
    assert found["total"] == 3
    assert link(found, "self") == "http://localhost:8080/fhir/ImagingStudy?patient=p1"
    (told,) = [entry["resource"] for entry in found["entry"] if entry["search"]["mode"] == "outcome"]
    assert [issue["expression"] for issue in told["issue"]] == [["http.patinet"], ["http.started"]]


@pytest.mark.requirement("S4", "S5", "S6", "S7", "S8", "S11", "S12", "S18")
def test_every_stated_parameter_modifier_and_include_is_served(client: httpx.Client) -> None:
    """One by one for a type that has parameters of every kind, all of them together for the others."""
    for row in client.get("/fhir/metadata").json()["rest"][0]["resource"]:
        if offers()[row["type"]].kept:
            continue
        groups = list(stated(row))
        if row["type"] == "Observation":
            groups = [[one] for group in groups for one in group]
        for group in groups:
            answer = client.get(f"/fhir/{row['type']}?{'&'.join(group)}")
            assert answer.status_code == 200, (row["type"], group, answer.text)


def stated(row: Json) -> Iterator[list[str]]:
    known = {one["name"]: offers()[row["type"]].search.get(one["name"]) for one in row["searchParam"]}
    types = {one["name"]: one["type"] for one in row["searchParam"]}
    yield [f"{name}={value(parameter) if parameter else VALUES[types[name]]}" for name, parameter in known.items()]
    taken = [(name, modifier) for name, one in known.items() if one for modifier in conditions.modifiers(one)]
    for modifier in sorted({modifier for _, modifier in taken}):
        yield [f"{name}:{modifier}={MODIFIED.get(modifier, 'x')}" for name, one in taken if one == modifier]
    for kind, word in (("searchInclude", "_include"), ("searchRevInclude", "_revinclude")):
        yield [f"{word}={include}" for include in row.get(kind, [])]


VALUES = {"token": "x", "uri": "x", "string": "x", "date": "2024", "reference": "x", "number": "1", "quantity": "1"}
MODIFIED = {"missing": "true", "of-type": "a|b|c"}


def value(parameter: Parameter) -> str:
    return "$".join(map(value, parameter.components)) if parameter.components else VALUES[parameter.type]


@pytest.mark.requirement("S15")
def test_every_stated_parameter_sorts(client: httpx.Client) -> None:
    for name, parameter in offers()["Observation"].search.items():
        status = client.get(f"/fhir/Observation?_sort=-{name}").status_code
        assert status == (400 if parameter.type == "composite" else 200), name


@pytest.mark.requirement("S12", "S22")
def test_includes_are_marked_and_neither_counted_nor_repeated(seeded: Server) -> None:
    with seeded.client() as client:
        found = bundle(
            client, "/fhir/ImagingStudy?patient=p1&_include=ImagingStudy:endpoint&_include=ImagingStudy:patient"
        )
        assert (found["total"], sorted(ids(found, "include"))) == (3, ["e1", "p1"])
        back = bundle(client, "/fhir/Patient?_id=p2&_revinclude=ImagingStudy:subject")
        assert (ids(back), ids(back, "include")) == (["p2"], ["s21", "s22"])


@pytest.mark.requirement("S7")
def test_a_reference_by_our_own_address_is_the_same_reference(seeded: Server) -> None:
    whole = "http://localhost:8080/fhir/Patient/p2"
    with seeded.client() as client:
        for asked in ("Patient/p2", whole, "p2", "Patient/p2/_history/1"):
            assert ids(bundle(client, f"/fhir/ImagingStudy?subject={asked}")) == ["s22", "s21"]


# --- what one resource says of another --------------------------------------------------------------------------


META = {
    "profile": ["http://p.example/a/b"],
    "tag": [{"system": "urn:t", "code": "t"}],
    "security": [{"system": "urn:s", "code": "R"}],
    "source": "urn:source",
}


@pytest.fixture
def linked(seeded: Server) -> Server:
    """An order of p1, its report about s11 with a measurement, and who made the endpoint available."""
    about = {"subject": {"reference": "Patient/p1"}, "code": {"text": "CT"}}
    mercury = {"system": "http://unitsofmeasure.org", "code": "mm[Hg]"}
    number = {"type": {"coding": [{"code": "ACSN"}]}, "system": "urn:acc", "value": "A,1"}
    put(
        seeded.store,
        patient("p1") | {"gender": "female", "identifier": [{"system": "urn:mrn", "value": "7"}]},
        {"resourceType": "Organization", "id": "o1", "name": "Hôpital Nord", "meta": META},
        {"resourceType": "ServiceRequest", "id": "r1", "status": "active", "intent": "order", "identifier": [number]}
        | about,
        {"resourceType": "Observation", "id": "ob1", "status": "final", "valueQuantity": {"value": 120, **mercury}}
        | about
        | {"code": {"coding": [{"system": "http://loinc.org", "code": "8480-6", "display": "Systolic pressure"}]}},
        {"resourceType": "DiagnosticReport", "id": "d1", "status": "final"}
        | about
        | {"basedOn": [{"reference": "ServiceRequest/r1"}], "imagingStudy": [{"reference": "ImagingStudy/s11"}]}
        | {"result": [{"reference": "Observation/ob1"}]},
    )
    return seeded


FOUND = [
    ("ImagingStudy?patient.identifier=urn:mrn|7", ["s13", "s12", "s11"]),
    ("ImagingStudy?subject:Patient.gender=female", ["s13", "s12", "s11"]),
    ("ImagingStudy?subject.identifier=7&modality=CT", ["s11"]),
    ("ImagingStudy?patient.gender:missing=true", ["s22", "s21"]),
    ("ImagingStudy?patient.gender:not=female", ["s22", "s21"]),
    ("ImagingStudy?_has:DiagnosticReport:imaging-study:status=final", ["s11"]),
    ("ImagingStudy?_has:DiagnosticReport:imaging-study:status=preliminary", []),
    ("Patient?_has:ServiceRequest:patient:_has:DiagnosticReport:based-on:result.code=8480-6", ["p1"]),
    ("DiagnosticReport?basedOn.identifier=urn:acc|A\\,1", ["d1"]),
    ("DiagnosticReport?imagingStudy.started=2024-01-11&imagingStudy.modality=CT", ["d1"]),
    ("DiagnosticReport?imaging-study.patient.name=mus", ["d1"]),
    ("DiagnosticReport?patient.name.family=muster", ["d1"]),
    ("ServiceRequest?identifier:of-type=|ACSN|A\\,1", ["r1"]),
    ("ServiceRequest?identifier=A\\,1,A2", ["r1"]),
    ("ServiceRequest?identifier=A,1", []),
    ("Observation?code:text=systolic", ["ob1"]),
    ("Observation?value-quantity=gt119.5|http://unitsofmeasure.org|mm[Hg]", ["ob1"]),
    ("Observation?value-quantity=120||mm[Hg]", ["ob1"]),
    ("Observation?value-quantity=lt120", []),
    ("Observation?code-value-quantity=http://loinc.org|8480-6$ge120", ["ob1"]),
    ("Observation?code-value-quantity=8867-4$ge120", []),
    ("Patient?name=MUS&_id=p1,p2,p3&_sort=_id", ["p1", "p2"]),
    ("Organization?name=hopital", ["o1"]),
    ("Organization?name:contains=NORD", ["o1"]),
    ("Organization?name=nord", []),
    ("Organization?name:exact=Hôpital Nord", ["o1"]),
    ("Organization?_tag=urn:t|t&_security=R&_source=urn:source&_profile=http://p.example/a/b", ["o1"]),
    ("Organization?_profile:below=http://p.example/a", ["o1"]),
    ("Organization?_profile=http://p.example/a", []),
    ("Organization?_id=nobody", []),
    ("Patient?name:exact=muster", []),
    ("ImagingStudy?number-of-instances:missing=true&started=2024-01-11", ["s11"]),
    ("ImagingStudy?_lastUpdated=gt2020&_sort=-identifier", ["s22", "s21", "s13", "s12", "s11"]),
    ("ImagingStudy?_sort=-patient,started", ["s21", "s22", "s11", "s12", "s13"]),
]


@pytest.mark.requirement("S4", "S5", "S8", "S9", "S10", "S11", "S15", "S18")
def test_what_another_resource_says_finds(linked: Server) -> None:
    with linked.client() as client:
        for query, expected in FOUND:
            found = bundle(client, f"/fhir/{query}")
            assert (ids(found), found["total"]) == (expected, len(expected)), query


DATED = [
    ("2024", {"short", "day"}),
    ("2024-01", {"short", "day"}),
    ("2024-01-15", {"day"}),
    ("2024-01-15T12:00:00%2B01:00", set[str]()),
    ("ne2024-01", {"open"}),
    ("gt2024-01-15", {"short", "open"}),
    ("ge2024-01-15", {"short", "day", "open"}),
    ("lt2024-01-15", {"short"}),
    ("le2024-01-15", {"short", "day"}),
    ("sa2024-01-31", {"open"}),
    ("eb2024-02", {"short", "day"}),
    ("ap2024-01-12T10:00Z", {"short", "day", "open"}),
]


@pytest.mark.requirement("S6")
def test_dates_are_compared_as_the_intervals_they_are(seeded: Server) -> None:
    periods = {
        "short": {"start": "2024-01-10", "end": "2024-01-20"},
        "day": {"start": "2024-01-15", "end": "2024-01-15"},
        "open": {"start": "2024-03-01T08:00:00Z"},
    }
    kept = {"resourceType": "Encounter", "status": "planned", "class": {"code": "AMB"}}
    put(seeded.store, *({**kept, "id": name, "period": period} for name, period in periods.items()))
    with seeded.client() as client:
        for text, expected in DATED:
            assert set(ids(bundle(client, f"/fhir/Encounter?date={text}"))) == expected, text
        blank = bundle(client, "/fhir/Encounter?date=ge2024-03-01T10:00:00+02:00")
        assert ids(blank) == ["open"]


@pytest.mark.requirement("S12")
def test_includes_go_on_from_what_was_included_when_told_to(linked: Server) -> None:
    endpoint = {"resourceType": "Endpoint", "id": "e1", "status": "active", "address": "http://x.example/dicom-web"}
    endpoint |= {"connectionType": {"code": "dicom-wado-rs"}, "payloadType": [{"text": "DICOM"}]}
    put(linked.store, endpoint | {"managingOrganization": {"reference": "Organization/o1"}})
    base = "/fhir/DiagnosticReport?_include=DiagnosticReport:imagingStudy"
    with linked.client() as client:
        assert ids(bundle(client, base), "include") == ["s11"]
        one = bundle(client, f"{base}&_include:iterate=ImagingStudy:endpoint")
        assert ids(one, "include") == ["s11", "e1"]
        two = bundle(client, f"{base}&_include:iterate=ImagingStudy:endpoint&_include:recurse=Endpoint:organization")
        assert ids(two, "include") == ["s11", "e1", "o1"]
        assert (ids(two), two["total"]) == (["d1"], 1)
        assert set(ids(bundle(client, "/fhir/DiagnosticReport?_include=*"), "include")) == {"p1", "r1", "s11", "ob1"}
        assert set(ids(bundle(client, "/fhir/ServiceRequest?_revinclude=*"), "include")) == {"d1"}
        narrow = bundle(client, "/fhir/ImagingStudy?_id=s11&_include=ImagingStudy:subject:Device")
        assert ids(narrow, "include") == []


@pytest.mark.requirement("S12")
def test_too_many_includes_are_cut_with_a_warning(seeded: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(includes, "MAX_INCLUDED", 2)
    with seeded.client() as client:
        found = bundle(client, "/fhir/Patient?_id=p1&_revinclude=ImagingStudy:patient")
    assert ids(found) == ["p1"]
    assert len(ids(found, "include")) == 2
    (told,) = [entry["resource"] for entry in found["entry"] if entry["search"]["mode"] == "outcome"]
    assert told["issue"][0]["code"] == "incomplete"


# --- totals, parts, several types -------------------------------------------------------------------------------


@pytest.mark.requirement("S13", "S14")
def test_a_total_is_told_when_it_is_known_or_asked_for(seeded: Server) -> None:
    with seeded.client() as client:

        def total(query: str) -> Any:
            return bundle(client, f"/fhir/ImagingStudy?{query}").get("total")

        assert total("_count=2") is total("_count=2&_total=none") is None
        assert total("_count=2&_total=accurate") == total("_count=2&_total=estimate") == total("_count=5") == 5
        counted = bundle(client, "/fhir/ImagingStudy?_summary=count&patient=p2")
        assert (counted["total"], "entry" in counted) == (2, False)
        assert link(bundle(client, "/fhir/ImagingStudy?_count=2"), "first")


@pytest.mark.requirement("S17")
def test_parts_of_resources_are_marked(seeded: Server) -> None:
    with seeded.client() as client:
        found = client.get("/fhir/ImagingStudy?_id=s11&_elements=started&_include=ImagingStudy:endpoint").json()
        match, include = (entry["resource"] for entry in found["entry"])
        assert match.keys() == {"resourceType", "id", "meta", "status", "subject", "started"}
        assert match["meta"]["tag"][0]["code"] == "SUBSETTED"
        assert "tag" not in include["meta"]
        short = client.get("/fhir/ImagingStudy?_id=s11&_summary=text").json()["entry"][0]["resource"]
        assert short.keys() == {"resourceType", "id", "meta", "status", "subject"}
        read = client.get("/fhir/ImagingStudy/s11?_summary=true")
        assert read.json()["meta"]["tag"][0]["code"] == "SUBSETTED"
        headers = {"Content-Type": "application/fhir+json"}
        back = client.put("/fhir/ImagingStudy/s11", content=read.content, headers=headers)
        assert (back.status_code, back.json()["issue"][0]["expression"]) == (422, ["ImagingStudy.meta.tag"])


@pytest.mark.requirement("S2")
def test_several_types_are_searched_together_the_last_updated_first(linked: Server) -> None:
    with linked.client() as client:
        found = bundle(client, "/fhir?_type=ServiceRequest,DiagnosticReport,Observation&patient=p1")
        assert (ids(found), found["total"]) == (["d1", "ob1", "r1"], 3)
        posted = client.post("/fhir/_search", data={"_type": "Patient,Endpoint", "_sort": "_lastUpdated"})
        assert {entry["resource"]["resourceType"] for entry in posted.json()["entry"]} == {"Patient", "Endpoint"}
        everything = ids(bundle(client, "/fhir?_lastUpdated=gt2020"))
        assert {"p1", "s22", "d1", "o1", "e1"} <= set(everything)
        for query in ("_type=Colour", "_type=AuditEvent", "_type=Patient,Endpoint&name=x&gender=y"):
            assert client.get(f"/fhir?{query}").status_code == 400, query
        assert client.get("/fhir?_type=Patient,ImagingStudy&_sort=_id").status_code == 400
    linked.callers["it"] = caller("patient/ImagingStudy.rs patient/Patient.r", patient_id="p1")
    with linked.client("it") as client:
        assert ids(bundle(client, "/fhir?_lastUpdated=gt2020")) == ["s13", "s12", "s11"]
        assert client.get("/fhir?_type=Patient").status_code == 403


@pytest.mark.requirement("S2", "S16")
def test_a_page_of_several_types_goes_on_where_it_ended(linked: Server) -> None:
    with linked.client() as client:
        for order in ("", "&_sort=_lastUpdated"):
            whole = ids(bundle(client, f"/fhir?_type=Patient,ImagingStudy,Endpoint{order}"))
            pages = follow(client, f"/fhir?_type=Patient,ImagingStudy,Endpoint&_count=3{order}")
            assert [found for page in pages for found in page] == whole
            assert len(whole) == len(set(whole)) == 8


@pytest.mark.requirement("S2")
def test_a_compartment_holds_what_belongs_to_its_centre(linked: Server) -> None:
    with linked.client() as client:
        assert ids(bundle(client, "/fhir/Patient/p1/ImagingStudy?modality=CT")) == ["s11"]
        assert ids(bundle(client, "/fhir/Patient/p2/ImagingStudy")) == ["s22", "s21"]
        assert ids(bundle(client, "/fhir/Patient/nobody/ImagingStudy")) == []
        everything = bundle(client, "/fhir/Patient/p1/*")
        assert set(ids(everything)) == {"p1", "s11", "s12", "s13", "r1", "d1", "ob1"}
        assert link(everything, "self") == "http://localhost:8080/fhir/Patient/p1/*"
        some = bundle(client, "/fhir/Patient/p1/*?_type=Observation,DiagnosticReport")
        assert set(ids(some)) == {"d1", "ob1"}
        assert client.get("/fhir/Patient/p1/Organization").status_code == 404
        posted = client.post("/fhir/Patient/p1/ImagingStudy/_search", data={"modality": "CT"})
        assert ids(posted.json()) == ["s11"]
        pages = follow(client, "/fhir/Patient/p1/ImagingStudy?_count=1")
        assert pages == [["s13"], ["s12"], ["s11"]]


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


@pytest.mark.requirement("S20")
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
        # The request's own id stands in every outcome.
        client.headers["X-Request-Id"] = "same"
        forbidden, unknown = client.get("/fhir/ImagingStudy/s21"), client.get("/fhir/ImagingStudy/none")
        assert (
            (forbidden.status_code, forbidden.content)
            == (unknown.status_code, unknown.content)
            == (403, unknown.content)
        )
        assert wide.get("/fhir/ImagingStudy/none").status_code == 404
        assert wide.get("/fhir/Patient/p1").status_code == wide.get("/fhir/Patient").status_code == 403


@pytest.mark.requirement("S20")
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


@pytest.mark.requirement("S20")
def test_an_include_shows_nothing_that_may_not_be_read(seeded: Server) -> None:
    seeded.callers["it"] = caller("patient/ImagingStudy.rs patient/Endpoint.r", patient_id="p1")
    with seeded.client("it") as client:
        found = bundle(client, "/fhir/ImagingStudy?_include=ImagingStudy:endpoint&_include=ImagingStudy:subject")
        assert ids(found, "include") == ["e1"]


@pytest.mark.requirement("S20")
def test_nothing_is_learned_of_what_may_not_be_seen(linked: Server) -> None:
    linked.callers |= {
        "studies": caller("user/ImagingStudy.rs"),
        "own": caller("user/ImagingStudy.rs patient/Patient.rs patient/DiagnosticReport.rs", patient_id="p2"),
    }
    probes = (
        "patient.name=muster",
        "patient.gender=female",
        "patient.gender:missing=true",
        "subject.identifier=7",
        "_has:DiagnosticReport:imaging-study:status=final",
        "_has:DiagnosticReport:imaging-study:status:not=final",
    )
    with linked.client("studies") as client:
        for probe in probes:
            assert ids(bundle(client, f"/fhir/ImagingStudy?{probe}")) == [], probe
            assert bundle(client, f"/fhir/ImagingStudy?{probe}&_summary=count")["total"] == 0, probe
        revealed = bundle(client, "/fhir/ImagingStudy?_include=*&_revinclude=*")
        assert ids(revealed, "include") == []
    with linked.client("own") as client:
        assert ids(bundle(client, "/fhir/ImagingStudy?patient.name=muster")) == ["s22", "s21"]
        assert ids(bundle(client, f"/fhir/ImagingStudy?{probes[4]}")) == []


@pytest.mark.requirement("S20")
def test_another_patients_compartment_is_refused(linked: Server) -> None:
    linked.callers["it"] = caller("patient/*.rs", patient_id="p1")
    with linked.client("it") as client:
        for address in ("Patient/p2/ImagingStudy", "Patient/p2/*", "Patient/p2/Group"):
            assert client.get(f"/fhir/{address}").status_code == 403, address
        assert ids(bundle(client, "/fhir/Patient/p1/ImagingStudy?_count=1")) == ["s13"]
    linked.callers["it"] = caller("patient/Observation.rs", patient_id="p1")
    with linked.client("it") as client:
        assert client.get("/fhir/Patient/p1/ImagingStudy").status_code == 403
        assert ids(bundle(client, "/fhir/Patient/p1/*")) == ["ob1"]


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
