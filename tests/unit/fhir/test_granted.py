"""What a grant leaves: of a query and what is nested in it, and of one stored version."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import orjson
import pytest

from app.access import Access, Action, decide, parse_scopes
from app.errors import Forbidden
from app.fhir import granted, resources, search
from app.fhir.registry import offers
from app.store import resources as rows
from app.store.database import Store
from app.store.query import Clause, Link, Owner, Query, Referred, Token
from app.store.resources import Stored

UID = "urn:dicom:uid|urn:oid:"
OWN = Clause((Owner("p1"),))


def caller(scope: str, **about: Any) -> Access:
    scopes, rights = parse_scopes(scope)
    return Access("app", scopes=scopes, rights=rights, **about)


def confined(access: Access, resource_type: str, query: str = "") -> Query:
    offer = offers()[resource_type]
    return granted.confine(search.parse(offer, parse_qsl(query)).query, offer, access)


def study(patient: str, uid: str = "1.2") -> Stored:
    identifier = [{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}]
    body = {"resourceType": "ImagingStudy", "id": "s", "identifier": identifier, "status": "available"}
    body |= {"modality": [{"code": "CT"}], "subject": {"reference": f"Patient/{patient}"}}
    return Stored("ImagingStudy", "s", 1, 0, False, orjson.dumps(body), 1, "p1")


def test_a_search_is_confined_to_the_union_of_the_scopes() -> None:
    access = caller("patient/ImagingStudy.rs patient/*.r user/ImagingStudy.s?modality=CT", patient_id="p1")
    assert confined(access, "ImagingStudy").allowed == ((OWN,), (Clause((Token("modality", None, "CT"),)),))
    assert confined(caller("user/*.rs patient/*.rs", patient_id="p1"), "ImagingStudy").allowed == ((),)
    assert confined(caller("patient/*.rs"), "ImagingStudy").allowed == ()
    assert confined(caller("patient/*.rs", patient_id="p1"), "Endpoint").allowed == ((),)
    bound = caller("user/*.rs", studies=frozenset({"1.2"}))
    assert confined(bound, "ImagingStudy").allowed == (
        (Clause((Token("identifier", "urn:dicom:uid", "urn:oid:1.2"),)),),
    )


def nested(query: Query) -> Query:
    (condition,) = query.clauses[0].any_of
    assert isinstance(condition, Link | Referred)
    return condition.query


def test_a_chain_asks_only_of_what_the_caller_may_see() -> None:
    for query in ("patient.name=x", "patient._has:Observation:patient:code=x"):
        assert nested(confined(caller("user/ImagingStudy.rs"), "ImagingStudy", query)).allowed == ()
        assert nested(confined(caller("user/*.rs"), "ImagingStudy", query)).allowed == ((),)
        either = caller("user/ImagingStudy.rs patient/Patient.r", patient_id="p1")
        assert nested(confined(either, "ImagingStudy", query)).allowed == ((OWN,),)


def test_what_leads_here_is_asked_for_only_among_what_the_caller_may_see() -> None:
    query = "_has:Observation:patient:_has:Provenance:target:agent=x"
    access = caller("user/Patient.rs patient/Observation.s", patient_id="p1")
    found = nested(confined(access, "Patient", query))
    assert (found.resource_type, found.allowed) == ("Observation", ((OWN,),))
    assert nested(found).allowed == ()


@pytest.mark.parametrize(
    "query", ["patient=p2", "subject=Patient/p2", "patient=p1,p2", "subject:Patient=p2", "patient=p1&patient=p2"]
)
def test_another_patient_is_refused_in_a_query(query: str) -> None:
    with pytest.raises(Forbidden):
        confined(caller("patient/*.rs", patient_id="p1"), "ImagingStudy", query)
    assert confined(caller("user/*.rs patient/*.rs", patient_id="p1"), "ImagingStudy", query)


def test_another_patients_compartment_is_refused() -> None:
    own, all_of_them = (
        caller("patient/*.rs", patient_id="p1"),
        caller("user/Observation.rs patient/*.rs", patient_id="p1"),
    )
    granted.require_patient(own, ["ImagingStudy"], "p1")
    granted.require_patient(all_of_them, ["ImagingStudy", "Observation"], "p2")
    with pytest.raises(Forbidden):
        granted.require_patient(own, ["ImagingStudy"], "p2")


CALLERS = {
    "everything": caller("user/*.rs"),
    "nothing": caller("user/Patient.rs"),
    "one patient": caller("patient/ImagingStudy.rs", patient_id="p1"),
    "no patient": caller("patient/ImagingStudy.rs"),
    "granular": caller("user/ImagingStudy.rs?modality=CT"),
    "granular, another": caller("user/ImagingStudy.rs?modality=MR"),
    "granular, one patient": caller(f"patient/ImagingStudy.rs?identifier={UID}1.2", patient_id="p1"),
    "both": caller("patient/ImagingStudy.rs user/ImagingStudy.r?modality=CT", patient_id="p1"),
    "study": caller("user/ImagingStudy.rs", studies=frozenset({"1.2"})),
    "another study": caller("user/ImagingStudy.rs", studies=frozenset({"1.3"})),
    "read only": caller("user/ImagingStudy.r"),
}


@pytest.mark.parametrize("name", CALLERS)
def test_the_quick_decision_is_the_decision(name: str) -> None:
    for stored in (study("p1"), study("p2"), study("p2", "1.3")):
        facts = resources.facts_of(resources.loads(stored.body))
        for verb in "rs":
            expected = decide(CALLERS[name], Action(verb, "ImagingStudy"), facts)
            assert granted.readable(CALLERS[name], stored, verb) is expected


def test_a_version_that_was_another_patients_is_not_the_present_patients() -> None:
    # The row knows whose the resource is now; this version says whose it was.
    before = study("p2")
    assert before.patient_id == "p1"
    assert not granted.readable(caller("patient/*.rs", patient_id="p1"), before)


def test_a_deletion_is_shown_to_those_alone_who_may_see_all() -> None:
    gone = Stored("ImagingStudy", "s", 2, 0, True, b"", 1)
    assert granted.readable(CALLERS["everything"], gone)
    assert not granted.readable(CALLERS["one patient"], gone)
    assert not granted.readable(CALLERS["study"], gone)


def test_what_belongs_to_no_patient_is_read_by_its_type() -> None:
    endpoint = Stored("Endpoint", "e", 1, 0, False, b'{"resourceType":"Endpoint","id":"e"}')
    assert granted.readable(caller("patient/Endpoint.r", patient_id="p1"), endpoint)
    assert not granted.readable(caller("patient/Endpoint.r"), endpoint)
    task = b'{"resourceType":"Task","id":"t","status":"ready","intent":"order","for":{"reference":"Patient/p1"}}'
    stored = Stored("Task", "t", 1, 0, False, task, 1, "p1")
    assert granted.readable(caller("patient/Task.r", patient_id="p1"), stored)
    assert not granted.readable(caller("patient/Task.r", patient_id="p2"), stored)


def test_a_grant_may_name_thousands_of_studies(store: Store) -> None:
    for number, uid in enumerate(("1.2.7", "1.3.7")):
        body = {**orjson.loads(study("p1", uid).body), "id": f"s{number}"}
        store.transact(lambda connection, body=body: resources.put(connection, body, cause="test"))
    access = caller("user/*.rs", studies=frozenset(f"1.2.{number}" for number in range(3000)))
    for query in ("", "modality=CT", "_sort=-started"):
        with store.read() as connection:
            found = rows.search(connection, confined(access, "ImagingStudy", query), limit=9)
        assert [hit.stored.resource_id for hit in found] == ["s0"]
