"""Batches and transactions over HTTP: all or nothing, each for itself, links, conditions, order, and who may."""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from app.access import Access
from app.errors import Conflict, Unprocessable
from app.fhir import entries
from app.settings import Settings
from app.store.database import run
from app.workflow import guards, orders, reports, site
from tests.contract.conftest import Server, caller

MANY = int(os.environ.get("ISOCENTER_BUNDLE_ENTRIES", "300"))
"""Entries of the large bundles; a campaign takes 5000 and more."""

Row = dict[str, Any]
SYSTEM = "http://hospital.example.org/mrn"
LOINC = {"coding": [{"system": "http://loinc.org", "code": "29463-7"}]}


def urn() -> str:
    return f"urn:uuid:{uuid.uuid4()}"


def patient(mrn: str | None = None, **more: Any) -> Row:
    named = {"identifier": [{"system": SYSTEM, "value": mrn}]} if mrn else {}
    return {"resourceType": "Patient", **named, **more}


def observation(subject: str, **more: Any) -> Row:
    row = {"resourceType": "Observation", "status": "final", "code": LOINC, "subject": {"reference": subject}}
    return row | more


def order(subject: str, **more: Any) -> Row:
    row = {"resourceType": "ServiceRequest", "status": "active", "intent": "order", "subject": {"reference": subject}}
    return row | more


def entry(method: str, url: str, resource: Row | None = None, full_url: str | None = None, **request: str) -> Row:
    row: Row = {"fullUrl": full_url} if full_url else {}
    if resource is not None:
        row["resource"] = resource
    return row | {"request": {"method": method, "url": url, **request}}


def post(resource: Row, full_url: str | None = None, **request: str) -> Row:
    return entry("POST", resource["resourceType"], resource, full_url, **request)


def bundle(*rows: Row, kind: str = "transaction") -> Row:
    return {"resourceType": "Bundle", "type": kind, **({"entry": list(rows)} if rows else {})}


def send(client: httpx.Client, *rows: Row, kind: str = "transaction", **headers: str) -> httpx.Response:
    return client.post("/fhir", json=bundle(*rows, kind=kind), headers=headers, timeout=120)


def done(client: httpx.Client, *rows: Row, kind: str = "transaction", **headers: str) -> list[Row]:
    answer = send(client, *rows, kind=kind, **headers)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["resourceType"], found["type"]) == ("Bundle", f"{kind}-response")
    assert len(found["entry"]) == len(rows)
    return found["entry"]


def where(row: Row) -> str:
    """Type/id of what an entry wrote."""
    return "/".join(row["response"]["location"].split("/")[:2])


def statuses(rows: Sequence[Row]) -> list[str]:
    return [row["response"]["status"][:3] for row in rows]


def refused(answer: httpx.Response, status: int) -> list[str]:
    """The places that a refusal names."""
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert found["resourceType"] == "OperationOutcome"
    return [place for issue in found["issue"] for place in issue.get("expression", [])]


def total(client: httpx.Client, query: str) -> int:
    mark = "&" if "?" in query else "?"
    return client.get(f"/fhir/{query}{mark}_summary=count").raise_for_status().json()["total"]


def put(client: httpx.Client, resource: Row) -> None:
    client.put(f"/fhir/{resource['resourceType']}/{resource['id']}", json=resource).raise_for_status()


# --- links -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("T1")
def test_links_of_every_kind_lead_to_what_was_stored(client: httpx.Client) -> None:
    who, what, file, place = urn(), urn(), urn(), urn()
    div = f"""<div xmlns="http://www.w3.org/1999/xhtml"><a href="{who}">x</a><a href='{file}#p'>y</a></div>"""
    study = observation(
        who,
        text={"status": "generated", "div": div},
        extension=[{"url": "urn:a", "valueReference": {"reference": who}}, {"url": "urn:b", "valueUri": what}],
        _status={"extension": [{"url": "urn:c", "valueUrl": file}]},
        contained=[{"resourceType": "PractitionerRole", "id": "p", "location": [{"reference": place}]}],
        performer=[{"reference": "#p"}],
        hasMember=[{"reference": what}],
        note=[{"text": f"as written: {who}"}, {"text": who}],
        identifier=[{"system": "urn:x", "value": who}],
    )
    document = {
        "resourceType": "DocumentReference",
        "status": "current",
        "content": [{"attachment": {"contentType": "text/plain", "url": file}}],
    }
    binary = {"resourceType": "Binary", "contentType": "text/plain", "data": "YQ=="}
    other = patient(link=[{"other": {"reference": who}, "type": "refer"}])
    rows = done(
        client,
        post(study, what),
        post(patient(link=[{"other": {"reference": what.replace(what, who)}, "type": "refer"}]), who),
        post(other),
        post(binary, file),
        post(document),
        post({"resourceType": "Location", "name": "CT 1"}, place),
        Prefer="return=representation",
    )
    obs, pat, _, raw, doc, room = map(where, rows)
    kept = client.get(f"/fhir/{obs}").raise_for_status().json()
    assert kept["subject"] == {"reference": pat}
    assert f'href="{pat}"' in kept["text"]["div"]
    assert f"href='{raw}#p'" in kept["text"]["div"]
    assert [one.get("valueUri") or one["valueReference"]["reference"] for one in kept["extension"]] == [pat, obs]
    assert kept["_status"]["extension"][0]["valueUrl"] == raw
    assert kept["contained"][0]["location"] == [{"reference": room}]
    assert kept["performer"] == [{"reference": "#p"}]
    assert kept["hasMember"] == [{"reference": obs}]
    # What is no link stays as it was written.
    assert kept["note"] == [{"text": f"as written: {who}"}, {"text": who}]
    assert kept["identifier"][0]["value"] == who
    assert client.get(f"/fhir/{doc}").json()["content"][0]["attachment"]["url"] == raw
    assert client.get(f"/fhir/{pat}").json()["link"][0]["other"] == {"reference": pat}
    assert rows[0]["resource"] == kept
    assert [one["response"]["etag"] for one in rows] == ['W/"1"'] * 6
    assert all(one["response"]["lastModified"] == one["resource"]["meta"]["lastUpdated"] for one in rows)
    assert {one["response"]["location"].partition("/_history/")[2] for one in rows} == {"1"}
    assert total(client, f"Observation?subject={pat}") == 1


@pytest.mark.requirement("T1")
def test_cycles_relative_and_absolute_addresses_are_followed(client: httpx.Client) -> None:
    left, right = urn(), urn()
    foreign = "http://elsewhere.example.org/fhir"
    put(client, patient(id="known"))
    rows = done(
        client,
        post(patient(link=[{"other": {"reference": right}, "type": "refer"}]), left),
        post(patient(link=[{"other": {"reference": left}, "type": "refer"}]), right),
        post(patient(id="7"), f"{foreign}/Patient/7"),
        post(observation("Patient/7"), f"{foreign}/Observation/1"),
        post(observation(f"{foreign}/Patient/7")),
        post(observation("Patient/known"), f"{foreign}/Observation/2"),
        entry("PUT", "Patient/named", patient(id="named"), "Patient/named"),
        post(observation("Patient/named")),
        post(observation("http://localhost:8080/fhir/Patient/known")),
    )
    paths = [where(row) for row in rows]
    read = [client.get(f"/fhir/{path}").raise_for_status().json() for path in paths]
    assert read[0]["link"][0]["other"]["reference"] == paths[1]
    assert read[1]["link"][0]["other"]["reference"] == paths[0]
    assert [read[number]["subject"]["reference"] for number in (3, 4)] == [paths[2]] * 2
    assert paths[2] != "Patient/7"
    assert read[5]["subject"]["reference"] == "Patient/known"
    assert read[7]["subject"]["reference"] == "Patient/named"
    assert read[8]["subject"]["reference"] == "http://localhost:8080/fhir/Patient/known"


def test_the_clients_own_bytes_stay(client: httpx.Client) -> None:
    who = urn()
    request = '"request":{"method":"POST","url":"%s"}'
    kept = (
        r'"code":{"text":"caf\u00e9"}',
        '"valueQuantity":{ "value" : 12.500, "unit":"mm" }',
        r'"display":"\u00e4"',
        '"component":[{"code":{"text":"a"},"valueQuantity":{"value":1.0E2}}]',
    )
    code, value, display, component = kept
    subject = f'"subject":{{{display},"reference":"{who}"}}'
    study = f'{{"resourceType":"Observation","status":"final",{code},{value},{subject},'
    first = f'{{"fullUrl":"{who}","resource":{{"resourceType":"Patient"}},{request % "Patient"}}}'
    second = f'{{"resource":{study}{component}}},{request % "Observation"}}}'
    body = f'{{"resourceType":"Bundle","type":"transaction","entry":[{first},{second}]}}'
    answer = client.post("/fhir", content=body, headers={"Content-Type": "application/fhir+json"})
    path = where(answer.raise_for_status().json()["entry"][1])
    text = client.get(f"/fhir/{path}").text
    assert [part for part in kept if part not in text] == []


def test_a_link_to_no_entry_is_refused(client: httpx.Client) -> None:
    assert refused(send(client, post(observation(urn()))), 422) == [
        "Bundle.entry[0].resource.subject.reference",
    ]
    assert total(client, "Observation") == 0


# --- order and identity ----------------------------------------------------------------------------------------


@pytest.mark.requirement("T2")
def test_entries_are_processed_in_the_order_of_the_standard_and_answered_in_their_own(client: httpx.Client) -> None:
    put(client, patient("1", id="a", active=True))
    put(client, patient("2", id="b", active=True))
    change = {"resourceType": "Parameters", "parameter": [
        {"name": "operation", "part": [
            {"name": "type", "valueCode": "replace"},
            {"name": "path", "valueString": "Patient.active"},
            {"name": "value", "valueBoolean": False},
        ]}
    ]}  # fmt: skip
    rows = done(
        client,
        entry("GET", "Patient?_sort=_id&_elements=id"),
        entry("PATCH", "Patient/a", change),
        entry("PUT", "Patient/c", patient("3", id="c")),
        post(patient("2"), ifNoneExist=f"identifier={SYSTEM}|2"),
        entry("GET", "Patient/a"),
        entry("HEAD", "Patient/a"),
        entry("DELETE", "Patient/b"),
        entry("GET", "Patient/a/_history"),
    )
    # The deletion comes first, so that the condition finds nothing.
    assert statuses(rows) == ["200", "200", "201", "201", "200", "200", "204", "200"]
    created = where(rows[3])
    assert {one["resource"]["id"] for one in rows[0]["resource"]["entry"]} == {"a", "c", created.split("/")[1]}
    assert rows[4]["resource"]["active"] is False
    assert rows[4]["response"]["etag"] == 'W/"2"'
    assert "location" not in rows[6]["response"]
    assert rows[7]["resource"]["type"] == "history"
    assert client.get("/fhir/Patient/b").status_code == 410


def test_a_json_patch_comes_in_a_binary_and_may_have_links(client: httpx.Client) -> None:
    put(client, patient(id="a"))
    put(client, observation("Patient/a", id="o"))
    who = urn()
    operations = json.dumps([{"op": "replace", "path": "/subject/reference", "value": who}]).encode()
    change = {
        "resourceType": "Binary",
        "contentType": "application/json-patch+json",
        "data": base64.b64encode(operations).decode(),
    }
    rows = done(client, entry("PATCH", "Observation/o", change), post(patient(), who))
    assert client.get("/fhir/Observation/o").json()["subject"]["reference"] == where(rows[1])


@pytest.mark.requirement("T2")
@pytest.mark.parametrize(
    "rows",
    [
        [entry("PUT", "Patient/a", patient(id="a")), entry("PUT", "Patient/a", patient(id="a", active=True))],
        [entry("DELETE", "Patient/a"), entry("PUT", "Patient/a", patient(id="a"))],
        [entry("PUT", f"Patient?identifier={SYSTEM}|1", patient("1")), entry("PUT", "Patient/a", patient(id="a"))],
        [entry("DELETE", f"Patient?identifier={SYSTEM}|1"), entry("PUT", "Patient/a", patient(id="a"))],
        [entry("PUT", f"Patient?identifier={SYSTEM}|9", patient("9"))] * 2,
        [post(patient("9"), ifNoneExist=f"identifier={SYSTEM}|9")] * 2,
        [post(patient("9"), "urn:uuid:c757873d-ec9a-4326-a141-556f43239520")] * 2,
    ],
)
def test_one_resource_may_not_be_written_twice(client: httpx.Client, rows: list[Row]) -> None:
    put(client, patient("1", id="a"))
    answer = send(client, *rows)
    assert answer.status_code in {400, 422}
    assert "Bundle.entry[" in answer.text
    assert client.get("/fhir/_history", params={"_count": 10}).json()["total"] == 1


# --- all or nothing --------------------------------------------------------------------------------------------


@pytest.mark.requirement("T3")
def test_all_faults_are_told_with_their_entries_and_nothing_is_kept(client: httpx.Client) -> None:
    answer = send(
        client,
        post(patient("1")),
        post(patient(gender="x", birthDate="yesterday")),
        post(observation("Patient/1", status="done")),
    )
    assert refused(answer, 422) == [
        "Bundle.entry[1].resource.gender",
        "Bundle.entry[1].resource.birthDate",
        "Bundle.entry[2].resource.status",
    ]
    assert client.get("/fhir/_history").json().get("entry") is None


BAD: dict[str, tuple[Row, int, str]] = {
    "If-Match of another version": (entry("PUT", "Patient/a", patient(id="a"), ifMatch='W/"7"'), 412, ""),
    "If-Match of nothing": (entry("PUT", "Patient/zz", patient(id="zz"), ifMatch='W/"1"'), 412, ""),
    "If-None-Match of what is there": (entry("PUT", "Patient/a", patient(id="a"), ifNoneMatch="*"), 412, ""),
    "another id": (entry("PUT", "Patient/a", patient(id="b")), 400, ".resource.id"),
    "another type": (entry("POST", "Observation", patient()), 400, ".resource"),
    "an unknown type": (entry("POST", "Foo", patient()), 400, ".request.url"),
    "a Bundle within": (entry("POST", "", bundle()), 400, ".request.url"),
    "an operation": (entry("POST", "Patient/$match", patient()), 400, ".request.url"),
    "an unknown method": (entry("LINK", "Patient", patient()), 400, ".request.method"),
    "no resource": (entry("POST", "Patient"), 400, ".resource"),
    "no request": ({"resource": patient()}, 400, ".request"),
    "a patch that is none": (entry("PATCH", "Patient/a", patient(id="a")), 400, ".resource"),
    "a patch of nothing": (
        entry("PATCH", "Patient/zz", {"resourceType": "Parameters"}),
        404,
        "",
    ),
    "a read of nothing": (entry("GET", "Patient/zz"), 404, ""),
    "a search that is not understood": (entry("GET", "Patient?colour=red"), 400, ""),
    "a condition that several meet": (post(patient(), ifNoneExist="identifier=twin"), 412, ""),
    "a condition without criteria": (post(patient(), ifNoneExist="_count=1"), 412, ""),
    "a condition that is not understood": (post(patient(), ifNoneExist="colour=red"), 400, ""),
    "a conditional update that several meet": (entry("PUT", "Patient?identifier=twin", patient()), 412, ""),
    "a conditional delete that several meet": (entry("DELETE", "Patient?identifier=twin"), 412, ""),
    "a conditional reference to nothing": (post(observation("Patient?identifier=nobody")), 412, ""),
    "a conditional reference to several": (post(observation("Patient?identifier=twin")), 412, ""),
    "deleting what is referred to": (entry("DELETE", "Patient/a"), 409, ""),
}


@pytest.mark.requirement("T3")
def test_one_bad_entry_undoes_the_whole_and_is_named(client: httpx.Client) -> None:
    put(client, patient("1", id="a"))
    put(client, observation("Patient/a", id="o"))
    for number in range(2):
        put(client, patient("twin", id=f"twin{number}"))
    before = client.get("/fhir/_history", params={"_count": 1000})
    for name, (bad, status, place) in BAD.items():
        answer = send(client, post(patient("new")), bad, entry("PUT", "Patient/new", patient(id="new")))
        assert f"Bundle.entry[1]{place}" in refused(answer, status), name
    after = client.get("/fhir/_history", params={"_count": 1000})
    assert after.json()["total"] == before.json()["total"] == 4
    assert total(client, "Patient?identifier=new") == 0


@pytest.mark.requirement("T8")
def test_other_bundles_and_what_is_none_are_refused_with_a_sentence(client: httpx.Client) -> None:
    for kind in ("document", "collection", "searchset", "history", "message", "batch-response", "nonsense", None):
        answer = client.post("/fhir", json={"resourceType": "Bundle", "type": kind})
        assert refused(answer, 400) == ["Bundle.type"]
        assert "batch or transaction" in answer.text
    assert refused(client.post("/fhir", json=patient()), 400) == ["resourceType"]
    for rows in ({}, "x", [1], [[]], None):
        answer = client.post("/fhir", json={"resourceType": "Bundle", "type": "batch", "entry": rows})
        assert refused(answer, 400) == ["Bundle.entry"]
    assert client.post("/fhir", content=b"[", headers={"Content-Type": "application/json"}).status_code == 400


def test_an_empty_transaction_does_nothing(client: httpx.Client) -> None:
    for kind in ("transaction", "batch"):
        assert send(client, kind=kind).json() == {"resourceType": "Bundle", "type": f"{kind}-response"}


# --- conditions ------------------------------------------------------------------------------------------------


@pytest.mark.requirement("T4")
def test_what_exists_already_is_linked_to_and_not_made_again(client: httpx.Client) -> None:
    put(client, patient("1", id="a"))
    who = urn()
    rows = done(
        client,
        post(patient("1"), who, ifNoneExist=f"identifier={SYSTEM}|1"),
        post(patient("1"), ifNoneExist=f"identifier={SYSTEM}|1"),
        post(observation(who)),
    )
    assert statuses(rows) == ["200", "200", "201"]
    assert [where(row) for row in rows[:2]] == ["Patient/a"] * 2
    assert client.get(f"/fhir/{where(rows[2])}").json()["subject"]["reference"] == "Patient/a"
    assert total(client, "Patient") == 1


@pytest.mark.requirement("T4")
def test_a_conditional_update_can_be_linked_to(client: httpx.Client) -> None:
    put(client, patient("1", id="a"))
    known, new, named = urn(), urn(), urn()
    rows = done(
        client,
        entry("PUT", f"Patient?identifier={SYSTEM}|1", patient("1", active=True), known),
        entry("PUT", f"Patient?identifier={SYSTEM}|2", patient("2"), new),
        entry("PUT", f"Patient?identifier={SYSTEM}|3", patient("3", id="c"), named),
        post(observation(known)),
        post(observation(new)),
        post(observation(named)),
    )
    assert statuses(rows) == ["200", "201", "201", "201", "201", "201"]
    subjects = [client.get(f"/fhir/{where(row)}").json()["subject"]["reference"] for row in rows[3:]]
    assert subjects == [where(row) for row in rows[:3]]
    assert (subjects[0], subjects[2]) == ("Patient/a", "Patient/c")
    assert client.get("/fhir/Patient/a").json()["active"] is True


@pytest.mark.requirement("T4")
def test_a_conditional_reference_finds_what_was_there_and_what_comes_along(client: httpx.Client) -> None:
    put(client, patient("1", id="a"))
    rows = done(
        client,
        post(
            observation(f"Patient?identifier={SYSTEM}|1", performer=[{"reference": f"Patient?identifier={SYSTEM}|2"}])
        ),
        post(patient("2")),
    )
    kept = client.get(f"/fhir/{where(rows[0])}").json()
    assert (kept["subject"]["reference"], kept["performer"][0]["reference"]) == ("Patient/a", where(rows[1]))


@pytest.mark.requirement("T6")
def test_conditional_deletes_and_patches_work_in_entries(client: httpx.Client) -> None:
    put(client, patient("1", id="a"))
    put(client, patient("2", id="b"))
    put(client, observation("Patient/a", id="o"))
    change = {"resourceType": "Parameters", "parameter": [
        {"name": "operation", "part": [
            {"name": "type", "valueCode": "add"},
            {"name": "path", "valueString": "Patient"},
            {"name": "name", "valueString": "active"},
            {"name": "value", "valueBoolean": True},
        ]}
    ]}  # fmt: skip
    rows = done(
        client,
        entry("DELETE", f"Patient?identifier={SYSTEM}|1"),
        entry("DELETE", "Patient?identifier=nobody"),
        # The patient goes although it is named first: what refers to it goes as well.
        entry("DELETE", "Observation/o"),
        entry("PATCH", f"Patient?identifier={SYSTEM}|2", change),
        entry("GET", "Patient/b", ifNoneMatch='W/"2"'),
        entry("GET", "Patient/b", ifModifiedSince="2037-01-01T00:00:00Z"),
    )
    assert statuses(rows) == ["204", "204", "204", "200", "304", "304"]
    assert client.get("/fhir/Patient/a").status_code == 410
    assert client.get("/fhir/Patient/b").json()["active"] is True


# --- preferences, batches --------------------------------------------------------------------------------------


def test_prefer_says_what_the_entries_show(client: httpx.Client) -> None:
    for prefer, has_resource, has_outcome in (
        ("return=minimal", False, False),
        ("return=representation", True, False),
        ("return=OperationOutcome", False, True),
        ("", False, False),
    ):
        row = done(client, post(patient()), Prefer=prefer)[0]
        assert ("resource" in row, "outcome" in row["response"]) == (has_resource, has_outcome), prefer


@pytest.mark.requirement("T5")
def test_the_entries_of_a_batch_are_independent(client: httpx.Client) -> None:
    put(client, patient("1", id="a"))
    rows = done(
        client,
        post(patient("2")),
        post(patient(gender="x")),
        entry("GET", "Patient/a"),
        entry("GET", "Patient/zz"),
        entry("PUT", "Patient/a", patient(id="a"), ifMatch='W/"9"'),
        entry("GET", f"Patient?identifier={SYSTEM}|1"),
        entry("POST", "Foo", patient()),
        entry("DELETE", "Patient/a"),
        post(patient("1"), ifNoneExist=f"identifier={SYSTEM}|1"),
        post(observation("Patient?identifier=1")),
        post(patient("3"), ifNoneExist=f"identifier={SYSTEM}|3"),
        entry("GET", "Patient/$everything"),
        {"resource": patient()},
        kind="batch",
    )
    assert statuses(rows) == [
        *("201", "422", "410", "404", "412", "200", "400"),
        *("204", "201", "400", "201", "400", "400"),
    ]
    for number, row in enumerate(rows):
        told = row["response"].get("outcome")
        assert (told is not None) == (row["response"]["status"][:1] == "4"), number
        if told:
            places = [place for issue in told["issue"] for place in issue["expression"]]
            assert all(place.startswith(f"Bundle.entry[{number}]") for place in places)
    assert total(client, "Patient") == 3


def test_the_entries_of_a_batch_cannot_refer_to_each_other(client: httpx.Client) -> None:
    who = urn()
    rows = done(client, post(patient(), who), post(observation(who)), kind="batch")
    assert statuses(rows) == ["201", "400"]
    assert "send a transaction" in json.dumps(rows[1])


# --- size ------------------------------------------------------------------------------------------------------


def many(count: int) -> list[Row]:
    who = urn()
    return [post(patient("many"), who), *(post(observation(who)) for _ in range(count - 1))]


@pytest.mark.requirement("T7")
def test_many_entries_succeed_together(client: httpx.Client) -> None:
    rows = done(client, *many(MANY))
    assert set(statuses(rows)) == {"201"}
    assert total(client, f"Observation?subject={where(rows[0])}") == MANY - 1
    patches = [
        entry("PUT", where(row), observation(where(rows[0]), id=where(row)[12:], status="amended")) for row in rows[1:]
    ]
    changed = done(client, *patches, kind="batch")
    assert {row["response"]["etag"] for row in changed} == {'W/"2"'}


@pytest.mark.requirement("T7")
def test_of_many_entries_with_one_bad_none_is_kept(client: httpx.Client) -> None:
    rows = many(MANY)
    late = entry("PUT", "Patient/a", patient(id="a"), ifMatch='W/"3"')
    assert refused(send(client, *rows, late), 412) == [f"Bundle.entry[{MANY}]"]
    wrong = post(observation("Patient/1", status="x"))
    assert refused(send(client, *rows, wrong), 422) == [f"Bundle.entry[{MANY}].resource.status"]
    assert client.get("/fhir/_history").json().get("entry") is None


@pytest.mark.requirement("T7")
def test_more_entries_than_the_limit_are_refused_before_anything_is_written(client: httpx.Client) -> None:
    rows = [entry("DELETE", "Patient/x")] * (entries.MAX_ENTRIES + 1)
    answer = send(client, *rows)
    assert answer.status_code == 413
    assert str(entries.MAX_ENTRIES) in answer.text


# --- who may, what follows -------------------------------------------------------------------------------------


def test_access_is_decided_for_each_entry(server: Server) -> None:
    server.callers["reader"] = caller("system/*.rs")
    server.callers["writer"] = caller("system/Observation.c system/Patient.s")
    server.callers["own"] = caller("patient/*.cruds", patient_id="a")
    with server.client() as client:
        put(client, patient("1", id="a"))
        put(client, patient("2", id="b"))
    with server.client("reader") as client:
        assert refused(send(client, entry("GET", "Patient/a"), post(patient())), 403) == ["Bundle.entry[1]"]
        assert statuses(done(client, entry("GET", "Patient/a"))) == ["200"]
        rows = done(client, entry("GET", "Patient/a"), post(patient()), kind="batch")
        assert statuses(rows) == ["200", "403"]
    with server.client("writer") as client:
        assert refused(send(client, post(observation("Patient/a")), post(patient("1"))), 403) == ["Bundle.entry[1]"]
        done(client, post(observation(f"Patient?identifier={SYSTEM}|1")))
        assert refused(send(client, entry("GET", "Patient/a"), post(observation("Patient/a"))), 403)
    with server.client("own") as client:
        done(client, post(observation("Patient/a")))
        assert refused(send(client, post(observation("Patient/a")), post(observation("Patient/b"))), 403) == [
            "Bundle.entry[1]"
        ]
        assert refused(send(client, post(observation(f"Patient?identifier={SYSTEM}|2"))), 412) == ["Bundle.entry[0]"]
        assert refused(send(client, entry("GET", "Patient/b"), post(observation("Patient/a"))), 403)
    with server.client() as client:
        assert total(client, "Observation") == 2


def test_every_entry_is_audited_and_the_bundle_too(server: Server) -> None:
    with server.client() as client:
        rows = done(client, post(patient("1")), entry("GET", "Patient?identifier=1"))
        told = [(one.action, one.target, one.outcome) for one in server.records]
        assert told == [
            ("create", where(rows[0]), "allowed"),
            ("search-type", "Patient", "allowed"),
            ("transaction", "", "allowed"),
        ]
        assert server.records[-1].detail == {"entries": 2}
        server.records.clear()
        send(client, post(patient("1")), entry("GET", "Patient/zz"), kind="batch")
        told = [(one.action, one.outcome) for one in server.records]
        assert told == [("create", "allowed"), ("read", "failed"), ("batch", "allowed")]
        server.records.clear()
        send(client, post(patient("1")), entry("GET", "Patient/zz"))
        assert [one.outcome for one in server.records] == ["failed"]
        assert SYSTEM not in str(server.records)


def workflow(server: Server) -> None:
    where_ = site.of(Settings(public_url="http://localhost:8080"))

    def ordered(connection: Any, access: Access, now: Row, before: Row | None) -> None:
        orders.received(where_, connection, access, now, before)

    server.hooks |= {"ServiceRequest": ordered, "DiagnosticReport": reports.received}
    server.guards |= guards.GUARDS
    server.delete_guards |= guards.DELETE_GUARDS


IMAGING = [{"coding": [{"system": "http://snomed.info/sct", "code": "363679005"}]}]


def test_an_order_and_its_new_patient_come_together(server: Server) -> None:
    workflow(server)
    who = urn()
    with server.client() as client:
        rows = done(
            client,
            post(order(who, category=IMAGING)),
            post(patient("1", name=[{"family": "Curie"}]), who),
            Prefer="return=representation",
        )
        placed = rows[0]["resource"]
        accession = [one["value"] for one in placed["identifier"] if one.get("type")]
        assert accession[0].startswith("IC")
        # The answer shows the order as the workflow left it.
        assert rows[0]["response"]["etag"] == 'W/"2"'
        assert placed["meta"]["versionId"] == "2"
        assert placed["subject"]["reference"] == where(rows[1])
        # Its step, and the question about a procedure that nobody knows.
        assert total(client, f"Task?focus={where(rows[0])}") == 2


def test_a_guard_sees_what_comes_along(server: Server) -> None:
    workflow(server)
    one, other, found = urn(), urn(), urn()
    report = {
        "resourceType": "DiagnosticReport",
        "status": "preliminary",
        "code": LOINC,
        "subject": {"reference": one},
        "result": [{"reference": found}],
    }
    with server.client() as client:
        mixed = [post(patient(), one), post(patient(), other), post(report), post(observation(other), found)]
        assert refused(send(client, *mixed), 422) == ["Bundle.entry[2].resource.result"]
        assert total(client, "Patient") == 0
        pure = [post(patient(), one), post(report), post(observation(one), found)]
        done(client, *pure)


def test_a_hook_that_refuses_undoes_the_whole(server: Server) -> None:
    def refuse(connection: Any, access: Access, now: Row, before: Row | None) -> None:
        raise Conflict("no")

    def object_to(connection: Any, access: Access, now: Row, before: Row | None) -> None:
        raise Unprocessable("no")

    server.hooks["ServiceRequest"] = refuse
    server.guards["Task"] = object_to
    who = urn()
    with server.client() as client:
        rows = [post(patient("1"), who), post(order(who))]
        assert refused(send(client, *rows), 409) == ["Bundle.entry[1]"]
        task = {"resourceType": "Task", "status": "requested", "intent": "order"}
        assert refused(send(client, post(patient("1")), post(task)), 422) == ["Bundle.entry[1]"]
        assert total(client, "Patient") == 0
        assert statuses(done(client, *rows[:1], post(order("Patient/x")), kind="batch")) == ["201", "409"]
    with server.store.read() as connection:
        assert run(connection, "SELECT count(*) FROM resource").fetchone()[0] == 1


@pytest.mark.requirement("T9")
def test_an_ihe_multimedia_report_is_stored(server: Server) -> None:
    workflow(server)
    server.callers["reporter"] = caller("system/*.cruds isocenter/sign")
    who, asked, images, written = urn(), urn(), urn(), urn()
    study = {
        "resourceType": "ImagingStudy",
        "status": "available",
        "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.840.99.1"}],
        "modality": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "CT"}],
        "subject": {"reference": who},
        "started": "2026-01-01T10:00:00Z",
        "basedOn": [{"reference": asked}],
    }
    text = base64.b64encode(b"<html><body>No finding.</body></html>").decode()
    report = {
        "resourceType": "DiagnosticReport",
        "meta": {"profile": ["https://profiles.ihe.net/RAD/IMR/StructureDefinition/imr-diagnosticreport"]},
        "status": "final",
        "code": LOINC,
        "subject": {"reference": who},
        "issued": "2026-01-01T11:00:00Z",
        "basedOn": [{"reference": asked}],
        "imagingStudy": [{"reference": images}],
        "resultsInterpreter": [{"display": "Dr Roentgen"}],
        "presentedForm": [{"contentType": "text/html", "data": text}],
    }
    with server.client("reporter") as client:
        rows = done(
            client,
            post(report, written),
            post(order(who, status="completed", category=IMAGING), asked),
            post(study, images),
            post(patient("1"), who, ifNoneExist=f"identifier={SYSTEM}|1"),
        )
        assert statuses(rows) == ["201"] * 4
        kept = client.get(f"/fhir/{where(rows[0])}").json()
        assert kept["imagingStudy"][0]["reference"] == where(rows[2])
        assert kept["basedOn"][0]["reference"] == where(rows[1])
        assert kept["meta"]["profile"] == report["meta"]["profile"]
