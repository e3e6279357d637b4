"""What the server keeps true cannot be changed or deleted by a client, and every refusal names the element and why."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy.engine import Connection

from app.access import Access
from app.fhir import resources
from app.fhir.mapping import task, terms
from app.main.prepare import endpoint
from app.store import studies
from app.workflow import guards, orders, reports, site, steps
from tests.contract.conftest import Server, caller

Json = dict[str, Any]
FHIR = {"Content-Type": "application/fhir+json"}
PATCH = {"Content-Type": "application/json-patch+json"}
PATIENT = {"resourceType": "Patient", "id": "p1", "name": [{"family": "Beispiel"}]}
ORDER = {
    "resourceType": "ServiceRequest",
    "id": "order",
    "status": "active",
    "intent": "order",
    "category": [{"coding": [{"system": "http://snomed.info/sct", "code": "363679005"}]}],
    "code": {"coding": [{"system": "http://loinc.org", "code": "24627-2"}]},
    "subject": {"reference": "Patient/p1"},
}
MEASUREMENT = {
    "resourceType": "Observation",
    "id": "m1",
    "identifier": [
        {"system": terms.CONTENT_ITEM, "value": "1.2.3#1.4"},
        {"system": terms.LINEAGE, "value": "lineage"},
    ],
    "status": "preliminary",
    "code": {"text": "Length"},
    "subject": {"reference": "Patient/p1"},
    "valueQuantity": {"value": 12.5, "unit": "mm"},
    "note": [{"text": "written by the document"}],
}


@pytest.fixture
def hospital(server: Server) -> Iterator[httpx.Client]:
    """A client of a server that has all its guards and hooks, one accepted order and one measurement."""
    where = site.of(server.settings)

    def ordered(connection: Connection, access: Access, order: Json, before: Json | None) -> None:
        orders.received(where, connection, access, order, before)

    server.guards.update(guards.GUARDS)
    server.delete_guards.update(guards.DELETE_GUARDS)
    server.hooks.update({"ServiceRequest": ordered, "DiagnosticReport": reports.received, "Task": steps.received})
    server.callers["all"] = caller("system/*.cruds isocenter/sign", user_id="radiologist")

    def seed(connection: Connection) -> None:
        resources.put(connection, endpoint(server.settings), cause="start", natural_key=guards.OUR_ENDPOINT)
        resources.put(connection, MEASUREMENT, cause="structured report")

    server.store.transact(seed)
    with server.client() as client:
        assert put(client, PATIENT).status_code == 201
        assert put(client, ORDER).status_code == 201
        yield client


def put(client: httpx.Client, resource: Json) -> httpx.Response:
    address = f"/fhir/{resource['resourceType']}/{resource['id']}"
    return client.put(address, content=orjson.dumps(resource), headers=FHIR)


def the(client: httpx.Client, kind: str, query: str = "") -> Json:
    [entry] = client.get(f"/fhir/{kind}?{query}").json()["entry"]
    return entry["resource"]


def refused(answer: httpx.Response, *expressions: str, status: int = 409) -> str:
    assert answer.status_code == status, answer.text
    issues = answer.json()["issue"]
    assert {one for issue in issues for one in issue.get("expression", [])} == set(expressions)
    return issues[0]["diagnostics"]


# --- ImagingStudy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "value"),
    [
        ("status", "available"),
        ("description", "Something else"),
        ("started", "2020-01-01"),
        ("numberOfSeries", 4),
        ("modality", [{"code": "MR"}]),
        ("series", [{"uid": "1.2", "modality": {"code": "CT"}}]),
        ("endpoint", [{"reference": "Endpoint/mine"}]),
        ("basedOn", []),
    ],
)
def test_what_a_study_says_of_its_images_and_its_order_is_not_a_clients(
    hospital: httpx.Client, element: str, value: Any
) -> None:
    study = the(hospital, "ImagingStudy")
    changed = {name: one for name, one in (study | {element: value}).items() if one != []}
    assert "images in the archive" in refused(put(hospital, changed), f"ImagingStudy.{element}")
    assert the(hospital, "ImagingStudy") == study


def test_a_study_takes_notes_links_and_tags(hospital: httpx.Client) -> None:
    study = the(hospital, "ImagingStudy")
    added = {
        "note": [{"text": "moved"}],
        "interpreter": [{"reference": "Practitioner/7"}],
        "encounter": {"reference": "Encounter/3"},
    }
    tagged = {"meta": {**study["meta"], "tag": [{"system": "http://example.org", "code": "teaching"}]}}
    assert put(hospital, study | added | tagged).status_code == 200
    assert the(hospital, "ImagingStudy")["note"] == added["note"]
    patch = [{"op": "remove", "path": "/note"}]
    address = f"/fhir/ImagingStudy/{study['id']}"
    assert hospital.patch(address, content=orjson.dumps(patch), headers=PATCH).status_code == 200
    patch = [{"op": "replace", "path": "/status", "value": "available"}]
    refused(hospital.patch(address, content=orjson.dumps(patch), headers=PATCH), "ImagingStudy.status")


def test_a_study_that_a_client_describes_is_the_clients(hospital: httpx.Client) -> None:
    own = {
        "resourceType": "ImagingStudy",
        "id": "abroad",
        "status": "available",
        "subject": {"reference": "Patient/p1"},
    }
    assert put(hospital, own).status_code == 201
    assert put(hospital, own | {"description": "CT abroad"}).status_code == 200
    assert hospital.delete("/fhir/ImagingStudy/abroad").status_code == 204


def test_a_study_stays_while_an_order_awaits_it_or_the_archive_holds_it(server: Server, hospital: httpx.Client) -> None:
    study = the(hospital, "ImagingStudy")
    address = f"/fhir/ImagingStudy/{study['id']}"
    assert "order" in refused(hospital.delete(address))
    assert put(hospital, ORDER | {"status": "revoked"}).status_code == 200
    held = studies.HeldStudy("orthanc-1", "1.2", study["id"], "p1")
    server.store.transact(lambda connection: studies.put(connection, held, digest="d", instances=1))
    assert "archive" in refused(hospital.delete(address))
    server.store.transact(lambda connection: studies.put(connection, held, digest="", instances=0))


# --- Observation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "value"),
    [
        ("valueQuantity", {"value": 99, "unit": "mm"}),
        ("code", {"text": "Width"}),
        ("status", "final"),
        ("subject", {"reference": "Patient/p2"}),
        ("identifier", [{"system": "urn:x", "value": "1"}]),
        ("derivedFrom", [{"reference": "ImagingStudy/i1"}]),
    ],
)
def test_what_a_structured_report_measured_is_not_a_clients(hospital: httpx.Client, element: str, value: Any) -> None:
    assert "structured report" in refused(put(hospital, MEASUREMENT | {element: value}), f"Observation.{element}")


def test_a_measurement_takes_notes_that_are_signed(hospital: httpx.Client) -> None:
    notes = [*MEASUREMENT["note"], {"authorString": "Dr. A", "text": "remeasured"}]
    assert put(hospital, MEASUREMENT | {"note": notes}).status_code == 200
    refused(put(hospital, MEASUREMENT | {"note": [*notes, {"text": "by whom?"}]}), "Observation.note")
    refused(hospital.delete("/fhir/Observation/m1"))


def test_nobody_else_gives_the_servers_identifiers(hospital: httpx.Client) -> None:
    refused(put(hospital, MEASUREMENT | {"id": "forged"}), "Observation.identifier")
    forged = {name: value for name, value in MEASUREMENT.items() if name != "id"}
    refused(hospital.post("/fhir/Observation", content=orjson.dumps(forged), headers=FHIR), "Observation.identifier")
    step = the(hospital, "Task")
    refused(put(hospital, step | {"id": "forged"}), "Task.identifier")


def test_a_clients_own_observation_is_the_clients(hospital: httpx.Client) -> None:
    own = {"resourceType": "Observation", "id": "mine", "status": "final", "code": {"text": "Weight"}}
    assert put(hospital, own).status_code == 201
    assert put(hospital, own | {"valueString": "70 kg"}).status_code == 200
    assert hospital.delete("/fhir/Observation/mine").status_code == 204


# --- Task ----------------------------------------------------------------------------------------------------


def test_a_step_moves_by_hand_along_its_table_and_the_worklist_follows(hospital: httpx.Client) -> None:
    for status, word in (("ready", "SCHEDULED"), ("in-progress", "STARTED"), ("completed", "COMPLETED")):
        step = the(hospital, "Task")
        assert put(hospital, step | {"status": status, "note": [{"text": "by hand"}]}).status_code == 200
        assert the(hospital, "Task")["businessStatus"] == task.business_status(word)
    step = the(hospital, "Task")
    assert "over" in refused(put(hospital, step | {"status": "accepted"}), "Task.status")
    refused(hospital.delete(f"/fhir/Task/{step['id']}"))


def test_a_step_keeps_what_it_is_about(hospital: httpx.Client) -> None:
    step = the(hospital, "Task")
    for element, value in (
        ("for", {"reference": "Patient/p2"}),
        ("owner", {"display": "another scanner"}),
        ("businessStatus", {"text": "gone"}),
        ("input", [{"type": {"text": "x"}, "valueString": "y"}]),
    ):
        refused(put(hospital, step | {element: value}), f"Task.{element}")
    refused(put(hospital, step | {"status": "draft"}), "Task.status")


def test_a_question_is_taken_by_somebody_and_answered(server: Server, hospital: httpx.Client) -> None:
    asked = task.review(
        "key", "no-order", focus="ImagingStudy/i1", patient="Patient/p1", authored="2026-01-01T10:00:00Z"
    )
    server.store.transact(lambda connection: resources.put(connection, asked, cause="test"))
    taken = asked | {"status": "in-progress", "owner": {"reference": "Practitioner/7"}}
    assert put(hospital, taken).status_code == 200
    refused(put(hospital, taken | {"description": "Nothing to do"}), "Task.description")
    assert put(hospital, taken | {"status": "completed"}).status_code == 200
    refused(hospital.delete(f"/fhir/Task/{asked['id']}"))


# --- what else is the server's, and what is past ---------------------------------------------------------------


def test_the_servers_own_endpoint_follows_its_settings(hospital: httpx.Client) -> None:
    own = the(hospital, "Endpoint")
    assert put(hospital, own).status_code == 200
    refused(put(hospital, own | {"address": "https://elsewhere.example.org"}), "Endpoint.address")
    refused(hospital.delete(f"/fhir/Endpoint/{own['id']}"))


def test_an_order_with_steps_is_revoked_and_not_deleted(hospital: httpx.Client) -> None:
    assert "revoked" in refused(hospital.delete("/fhir/ServiceRequest/order"))
    plain = {**ORDER, "id": "proposal", "intent": "proposal"}
    assert put(hospital, plain).status_code == 201
    assert hospital.delete("/fhir/ServiceRequest/proposal").status_code == 204


def test_a_patient_stays_while_anything_refers_to_it(hospital: httpx.Client) -> None:
    told = refused(hospital.delete("/fhir/Patient/p1"))
    assert "1 ImagingStudy, 1 Observation, 1 ServiceRequest, 1 Task" in told
    assert put(hospital, PATIENT | {"id": "alone"}).status_code == 201
    assert hospital.delete("/fhir/Patient/alone").status_code == 204


def test_a_signed_report_and_its_provenance_stay(hospital: httpx.Client) -> None:
    signed = {
        "resourceType": "DiagnosticReport",
        "id": "report",
        "status": "final",
        "code": {"text": "CT"},
        "subject": {"reference": "Patient/p1"},
    }
    assert put(hospital, signed).status_code == 201
    refused(hospital.delete("/fhir/DiagnosticReport/report"))
    record = the(hospital, "Provenance")
    assert put(hospital, record | {"recorded": "2020-01-01T00:00:00Z"}).status_code == 409
    assert hospital.delete(f"/fhir/Provenance/{record['id']}").status_code in {405, 409}
    withdrawn = the(hospital, "DiagnosticReport") | {"status": "entered-in-error"}
    assert put(hospital, withdrawn).status_code == 200
    assert "signed once" in refused(hospital.delete("/fhir/DiagnosticReport/report"))


@pytest.mark.parametrize("status", ["requested", "active"])
def test_a_subscription_that_would_never_deliver_is_refused(hospital: httpx.Client, status: str) -> None:
    wanted = {
        "resourceType": "Subscription",
        "id": str(uuid.uuid4()),
        "status": status,
        "reason": "news",
        "criteria": "ImagingStudy?",
        "channel": {"type": "rest-hook", "endpoint": "https://example.org"},
    }
    assert "not built" in refused(put(hospital, wanted), "Subscription.status", status=422)
    assert put(hospital, wanted | {"status": "off"}).status_code == 201
