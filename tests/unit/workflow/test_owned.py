"""What a client adds to a resource of the server outlives the next time the server makes it; the rest does not."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import Conflict
from app.fhir.mapping import named, terms
from app.workflow import owned
from tests.unit.workflow.conftest import Clinic

Json = dict[str, Any]

OURS = {"system": terms.CHECK, "code": "unit-not-verified"}
THEIRS = {"system": "http://example.org/tags", "code": "teaching"}
STUDY: Json = {
    "resourceType": "ImagingStudy",
    "id": "s",
    "status": "available",
    "subject": {"reference": "Patient/p"},
    "description": "CT",
}
OBSERVATION: Json = {
    "resourceType": "Observation",
    "id": "o",
    "meta": {"tag": [OURS]},
    "identifier": [{"system": terms.CONTENT_ITEM, "value": "1.2#1"}],
    "status": "preliminary",
    "code": {"text": "Length"},
    "note": [{"text": "from the document"}],
}


def test_what_a_client_added_stays_and_what_the_server_makes_is_new() -> None:
    added = {"note": [{"text": "motion"}], "interpreter": [{"reference": "Practitioner/1"}], "meta": {"tag": [THEIRS]}}
    earlier = STUDY | added | {"description": "old", "endpoint": [{"reference": "Endpoint/dicomweb"}]}
    assert owned.kept(STUDY, earlier) == STUDY | added
    assert owned.kept(STUDY, None) is STUDY


def test_a_reference_that_the_server_filled_in_gives_way_to_a_clients_own() -> None:
    filled = named.taken({"display": "Rita Reader"}, "NameOfPhysiciansReadingStudy")
    place = named.taken({"display": "Radiology"}, "InstitutionName")
    made = STUDY | {"interpreter": [filled], "location": place}
    own: Json = {"interpreter": [{"reference": "Practitioner/1"}], "location": {"reference": "Location/1"}}
    assert owned.kept(made, STUDY) == made
    assert owned.kept(made, STUDY | own) == STUDY | own
    assert owned.kept(made, STUDY | {"interpreter": [filled, *own["interpreter"]]}) == made | {
        "interpreter": own["interpreter"]
    }


def test_what_the_images_say_no_more_does_not_stay_as_if_a_client_had_said_it() -> None:
    gone = named.taken({"display": "Rita Reader"}, "NameOfPhysiciansReadingStudy")
    assert owned.kept(STUDY, STUDY | {"interpreter": [gone], "location": gone}) == STUDY


def test_of_the_notes_on_a_measurement_those_with_an_author_stay() -> None:
    signed = {"authorString": "Dr. A", "text": "looks right"}
    earlier = OBSERVATION | {"note": [{"text": "of an older document"}, signed], "meta": {"tag": [OURS, THEIRS]}}
    made = owned.kept(OBSERVATION, earlier)
    assert made["note"] == [{"text": "from the document"}, signed]
    assert made["meta"]["tag"] == [OURS, THEIRS]


def test_every_element_a_client_would_change_is_named() -> None:
    with pytest.raises(Conflict) as caught:
        owned.require_unchanged(STUDY | {"description": "MR", "status": "cancelled"}, STUDY, "this follows the images")
    assert [issue.expression for issue in caught.value.issues] == ["ImagingStudy.description", "ImagingStudy.status"]


def test_the_servers_tags_are_its_own_and_a_clients_are_not() -> None:
    owned.require_unchanged(OBSERVATION | {"meta": {"tag": [OURS, THEIRS]}}, OBSERVATION, "")
    with pytest.raises(Conflict, match="may not change"):
        owned.require_unchanged(OBSERVATION | {"meta": {"tag": [THEIRS]}}, OBSERVATION, "")


def test_the_shadow_of_a_protected_element_is_protected_too() -> None:
    shadow = {"_description": {"extension": [{"url": "http://example.org/x", "valueCode": "y"}]}}
    with pytest.raises(Conflict):
        owned.require_unchanged(STUDY | shadow, STUDY, "")


def test_an_identifier_by_which_the_server_knows_its_own_cannot_be_claimed() -> None:
    with pytest.raises(Conflict):
        owned.require_no_marks(OBSERVATION, None)
    owned.require_no_marks(OBSERVATION, OBSERVATION)


def test_a_change_of_the_order_keeps_what_was_said_of_its_steps_and_its_study(clinic: Clinic) -> None:
    order = clinic.order()
    [step], [study] = clinic.find("Task"), clinic.find("ImagingStudy")
    clinic.write(step | {"note": [{"text": "needs a lift"}], "priority": "urgent"})
    clinic.write(study | {"note": [{"text": "prior abroad"}]})

    clinic.write(order | {"occurrenceDateTime": "2026-03-03T09:30:00+01:00", "reasonCode": [{"text": "Cough"}]})

    [step], [study] = clinic.find("Task"), clinic.find("ImagingStudy")
    assert step["restriction"]["period"]["start"].startswith("2026-03-03")
    assert (step["note"], step["priority"]) == ([{"text": "needs a lift"}], "urgent")
    assert study["reasonCode"] == [{"text": "Cough"}]
    assert study["note"] == [{"text": "prior abroad"}]
