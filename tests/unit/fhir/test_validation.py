"""What the door lets in and what it refuses: HL7's examples pass, each single defect is found where it is."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fhir.resources.R4B import get_fhir_model_class
from hypothesis import given
from hypothesis import strategies as st

from app import errors
from app.fhir import definitions, invariants, validation

EXAMPLES = sorted((Path(__file__).parents[2] / "data" / "fhir" / "examples").glob("*.json"))
# Examples of HL7 that break R4's own rules.
FAULTY = {
    "Observation-clinical-gender.json": [("value", "Observation.performer[0].reference")],
    "Bundle-10bb101f-a121-4264-a920-67be9cb82c74.json": [("value", "Bundle.entry[2].fullUrl")],
}
ABSENT = object()

UCUM = "http://unitsofmeasure.org"
XHTML = '<div xmlns="http://www.w3.org/1999/xhtml">%s</div>'
CT = {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "CT"}
SOP_CLASS = {"system": "urn:ietf:rfc:3986", "code": "urn:oid:1.2.840.10008.5.1.4.1.1.2"}
CODE = {"coding": [{"system": "http://loinc.org", "code": "29463-7"}]}
VERIFIED = "http://terminology.hl7.org/CodeSystem/allergyintolerance-verification"
CLINICAL = "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical"

EXTENSION = {"url": "u", "valueCode": "c"}


def narrative(div: str) -> dict[str, Any]:
    return {"text": {"status": "generated", "div": div}}


def containing(resource: dict[str, Any]) -> dict[str, Any]:
    """The change by which the subject is a contained resource."""
    return {"contained": [{"id": "p", **resource}], "subject": {"reference": "#p"}}


VALID: dict[str, dict[str, Any]] = {
    "Patient": {"resourceType": "Patient", "id": "p1", "birthDate": "1970-02-28", "active": True},
    "Basic": {"resourceType": "Basic", "code": CODE},
    "Organization": {"resourceType": "Organization", "name": "Radiology"},
    "Observation": {
        "resourceType": "Observation",
        "status": "final",
        "code": CODE,
        "subject": {"reference": "Patient/p1"},
        "valueQuantity": {"value": Decimal("12.50"), "unit": "mm", "system": UCUM, "code": "mm"},
    },
    "ServiceRequest": {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": {"reference": "Patient/p1"},
        "code": CODE,
    },
    "ImagingStudy": {
        "resourceType": "ImagingStudy",
        "status": "available",
        "subject": {"reference": "Patient/p1"},
        "started": "2020-01-31T09:30:00+01:00",
        "series": [{"uid": "1.2.3", "modality": CT, "instance": [{"uid": "1.2.3.4", "sopClass": SOP_CLASS}]}],
    },
    "Task": {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "authoredOn": "2020-01-02T10:00:00Z",
        "lastModified": "2020-01-02T11:30:00+01:00",
    },
    "DiagnosticReport": {"resourceType": "DiagnosticReport", "status": "final", "code": CODE},
    "Endpoint": {
        "resourceType": "Endpoint",
        "status": "active",
        "connectionType": {"code": "dicom-wado-rs"},
        "payloadType": [{"text": "DICOM"}],
        "payloadMimeType": ["application/dicom"],
        "address": "https://pacs.example.org/dicom-web",
    },
    "AllergyIntolerance": {
        "resourceType": "AllergyIntolerance",
        "clinicalStatus": {"coding": [{"system": CLINICAL, "code": "active"}]},
        "patient": {"reference": "Patient/p1"},
    },
    "Appointment": {
        "resourceType": "Appointment",
        "status": "booked",
        "start": "2020-01-02T10:00:00Z",
        "end": "2020-01-02T11:00:00Z",
        "participant": [{"actor": {"reference": "Patient/p1"}, "status": "accepted"}],
    },
    "Group": {"resourceType": "Group", "type": "person", "actual": True},
    "Binary": {"resourceType": "Binary", "contentType": "image/png", "data": "aGFs\nbG8="},
    "Bundle": {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"resource": {"resourceType": "Basic", "code": CODE}}],
    },
    "Parameters": {"resourceType": "Parameters", "parameter": [{"name": "a", "valueString": "b"}]},
    "ValueSet": {"resourceType": "ValueSet", "status": "draft", "compose": {"include": [{"system": "urn:x"}]}},
    "CodeSystem": {"resourceType": "CodeSystem", "status": "draft", "content": "complete", "concept": [{"code": "a"}]},
}

# resource, what is changed in it, code and FHIRPath of the one issue
DEFECTS: list[tuple[str, dict[str, Any], str, str]] = [
    # names
    ("Patient", {"nmae": "x"}, "structure", "Patient.nmae"),
    ("Patient", {"a name with 'blanks'": "x"}, "structure", "Patient"),
    ("Patient", {"name": [{"familie": "x"}]}, "structure", "Patient.name[0].familie"),
    ("Patient", {"fhir_comments": ["x"]}, "structure", "Patient"),
    (
        "Patient",
        {"name": [{"family": "x", "modifierExtension": [EXTENSION]}]},
        "structure",
        "Patient.name[0].modifierExtension",
    ),
    ("Patient", {"name": [{"resourceType": "HumanName", "family": "x"}]}, "structure", "Patient.name[0].resourceType"),
    # resource types and ids
    ("Patient", {"resourceType": ABSENT}, "required", "resourceType"),
    ("Patient", {"resourceType": "Patience"}, "value", "resourceType"),
    ("Patient", {"resourceType": "DomainResource"}, "value", "resourceType"),
    ("Patient", {"resourceType": 1}, "value", "resourceType"),
    ("Patient", {"id": "a_b"}, "value", "Patient.id"),
    ("Patient", {"id": "a" * 65}, "value", "Patient.id"),
    ("Patient", {"id": ""}, "structure", "Patient.id"),
    # cardinality
    ("Observation", {"status": ABSENT}, "required", "Observation.status"),
    ("Observation", {"code": ABSENT}, "required", "Observation.code"),
    ("Observation", {"status": ["final"]}, "structure", "Observation.status"),
    ("Observation", {"code": [CODE]}, "structure", "Observation.code"),
    ("Patient", {"name": {"family": "x"}}, "structure", "Patient.name"),
    ("ImagingStudy", {"subject": ABSENT}, "required", "ImagingStudy.subject"),
    ("ImagingStudy", {"series": [{"modality": CT}]}, "required", "ImagingStudy.series[0].uid"),
    (
        "ImagingStudy",
        {"series": [{"uid": "1", "modality": CT}, {"uid": "2"}]},
        "required",
        "ImagingStudy.series[1].modality",
    ),
    (
        "ImagingStudy",
        {"series": [{"uid": "1", "modality": CT, "instance": [{"uid": "2"}]}]},
        "required",
        "ImagingStudy.series[0].instance[0].sopClass",
    ),
    ("Patient", {"link": [{"type": "seealso"}]}, "required", "Patient.link[0].other"),
    ("Endpoint", {"payloadType": ABSENT}, "required", "Endpoint.payloadType"),
    # empties and nulls
    ("Patient", {"name": []}, "structure", "Patient.name"),
    ("Patient", {"name": [{}]}, "structure", "Patient.name[0]"),
    ("Patient", {"maritalStatus": {}}, "structure", "Patient.maritalStatus"),
    ("Patient", {"maritalStatus": {"id": "x"}}, "structure", "Patient.maritalStatus"),
    ("Patient", {"name": [{"family": ""}]}, "structure", "Patient.name[0].family"),
    ("Patient", {"birthDate": None}, "structure", "Patient.birthDate"),
    ("Patient", {"maritalStatus": None}, "structure", "Patient.maritalStatus"),
    ("Patient", {"name": [None]}, "structure", "Patient.name[0]"),
    ("Patient", {"name": [{"given": [None]}]}, "structure", "Patient.name[0].given[0]"),
    # JSON types
    ("Patient", {"active": "true"}, "structure", "Patient.active"),
    ("Patient", {"active": 1}, "structure", "Patient.active"),
    ("Patient", {"birthDate": 1970}, "structure", "Patient.birthDate"),
    ("Patient", {"multipleBirthInteger": "3"}, "structure", "Patient.multipleBirth"),
    ("Patient", {"multipleBirthInteger": True}, "structure", "Patient.multipleBirth"),
    ("Patient", {"multipleBirthInteger": Decimal("1.0")}, "value", "Patient.multipleBirth"),
    ("Patient", {"multipleBirthInteger": 2**31}, "value", "Patient.multipleBirth"),
    ("Patient", {"name": ["Miller"]}, "structure", "Patient.name[0]"),
    ("Observation", {"valueQuantity": {"value": "12"}}, "structure", "Observation.value.value"),
    ("ImagingStudy", {"numberOfSeries": -1}, "value", "ImagingStudy.numberOfSeries"),
    ("Patient", {"telecom": [{"system": "phone", "value": "1", "rank": 0}]}, "value", "Patient.telecom[0].rank"),
    # primitive formats
    ("Patient", {"birthDate": "1970-02-30"}, "value", "Patient.birthDate"),
    ("Patient", {"birthDate": "1900-02-29"}, "value", "Patient.birthDate"),
    ("Patient", {"birthDate": "1970-13"}, "value", "Patient.birthDate"),
    ("Patient", {"birthDate": "28.02.1970"}, "value", "Patient.birthDate"),
    ("Patient", {"birthDate": "1970-02-28\n"}, "value", "Patient.birthDate"),
    ("Patient", {"birthDate": "0000"}, "value", "Patient.birthDate"),
    ("ImagingStudy", {"started": "2020-13-01"}, "value", "ImagingStudy.started"),
    ("ImagingStudy", {"started": "2020-01-31T09:30:00"}, "value", "ImagingStudy.started"),
    ("ImagingStudy", {"started": "2020-01-31T09:30Z"}, "value", "ImagingStudy.started"),
    ("ImagingStudy", {"started": "2020-01-31T24:00:00Z"}, "value", "ImagingStudy.started"),
    ("Observation", {"issued": "2020-01-31"}, "value", "Observation.issued"),
    ("Observation", {"valueQuantity": ABSENT, "valueTime": "25:00:00"}, "value", "Observation.value"),
    ("ImagingStudy", {"series": [{"uid": "1 2", "modality": CT}]}, "value", "ImagingStudy.series[0].uid"),
    ("Patient", {"implicitRules": "a b"}, "value", "Patient.implicitRules"),
    ("Patient", {"identifier": [{"system": "urn:oid:1.2.x", "value": "1"}]}, "value", "Patient.identifier[0].system"),
    ("Patient", {"identifier": [{"system": "urn:uuid:12", "value": "1"}]}, "value", "Patient.identifier[0].system"),
    ("Patient", {"identifier": [{"value": "\x00"}]}, "value", "Patient.identifier[0].value"),
    ("Patient", {"identifier": [{"value": "\ud800"}]}, "value", "Patient.identifier[0].value"),
    ("Patient", {"identifier": [{"value": "x" * 1_048_577}]}, "too-long", "Patient.identifier[0].value"),
    ("Patient", {"language": " en"}, "value", "Patient.language"),
    ("Binary", {"data": "aGFsbG8"}, "value", "Binary.data"),
    ("Binary", {"data": "aGFs*G8="}, "value", "Binary.data"),
    ("Binary", {"contentType": "image png"}, "value", "Binary.contentType"),
    ("Endpoint", {"payloadMimeType": ["application/dicom", "/"]}, "value", "Endpoint.payloadMimeType[1]"),
    # choices
    ("Observation", {"valueString": "x"}, "structure", "Observation.value"),
    ("Observation", {"_valueString": {"extension": [EXTENSION]}}, "structure", "Observation.value"),
    ("Observation", {"valueQuantity": ABSENT, "valueAddress": {"city": "x"}}, "structure", "Observation.value"),
    ("Observation", {"valueQuantity": ABSENT, "value": "x"}, "structure", "Observation.value"),
    ("Patient", {"deceasedBoolean": False, "deceasedDateTime": "2020"}, "structure", "Patient.deceased"),
    # required bindings
    ("Observation", {"status": "finale"}, "code-invalid", "Observation.status"),
    ("Observation", {"status": "final "}, "value", "Observation.status"),
    ("Patient", {"gender": "m"}, "code-invalid", "Patient.gender"),
    ("ImagingStudy", {"status": "complete"}, "code-invalid", "ImagingStudy.status"),
    ("ServiceRequest", {"intent": "wish"}, "code-invalid", "ServiceRequest.intent"),
    ("ServiceRequest", {"priority": "high"}, "code-invalid", "ServiceRequest.priority"),
    ("Task", {"status": "done"}, "code-invalid", "Task.status"),
    ("Patient", {"name": [{"use": "nick", "family": "x"}]}, "code-invalid", "Patient.name[0].use"),
    (
        "AllergyIntolerance",
        {"clinicalStatus": {"coding": [{"system": CLINICAL, "code": "x"}]}},
        "code-invalid",
        "AllergyIntolerance.clinicalStatus",
    ),
    (
        "AllergyIntolerance",
        {"clinicalStatus": {"coding": [{"system": "urn:x", "code": "active"}]}},
        "code-invalid",
        "AllergyIntolerance.clinicalStatus",
    ),
    ("AllergyIntolerance", {"clinicalStatus": {"text": "active"}}, "code-invalid", "AllergyIntolerance.clinicalStatus"),
    # siblings with ids and extensions
    ("Patient", {"_birthDate": {"value": "x"}}, "structure", "Patient.birthDate.value"),
    ("Patient", {"_birthDate": {}}, "structure", "Patient.birthDate"),
    ("Patient", {"_birthDate": [{"id": "a"}]}, "structure", "Patient.birthDate"),
    ("Patient", {"birthDate": ABSENT, "_birthDate": {"id": "a"}}, "structure", "Patient.birthDate"),
    ("Patient", {"_maritalStatus": {"id": "a"}}, "structure", "Patient.maritalStatus"),
    (
        "Patient",
        {"name": [{"given": ["a", "b"], "_given": [{"extension": [EXTENSION]}]}]},
        "structure",
        "Patient.name[0].given",
    ),
    ("Patient", {"name": [{"_given": [None]}]}, "structure", "Patient.name[0].given[0]"),
    # references
    ("Observation", {"subject": {"reference": "Practitioner/1"}}, "value", "Observation.subject.reference"),
    (
        "Observation",
        {"subject": {"reference": "https://x.example.org/fhir/Encounter/1"}},
        "value",
        "Observation.subject.reference",
    ),
    ("Observation", {"subject": {"reference": "Encounter/1/_history/2"}}, "value", "Observation.subject.reference"),
    ("Observation", {"subject": {"reference": "p1"}}, "value", "Observation.subject.reference"),
    ("Observation", {"subject": {"reference": "Patience/1"}}, "value", "Observation.subject.reference"),
    ("Observation", {"subject": {"type": "Encounter", "display": "x"}}, "value", "Observation.subject.type"),
    ("Observation", {"subject": {"reference": "#p"}}, "invariant", "Observation.subject.reference"),
    (
        "Observation",
        containing({"resourceType": "Encounter", "status": "planned", "class": CT}),
        "value",
        "Observation.subject.reference",
    ),
    (
        "DiagnosticReport",
        {"result": [{"reference": "Observation/1"}, {"reference": "Media/1"}]},
        "value",
        "DiagnosticReport.result[1].reference",
    ),
    # extensions
    ("Patient", {"extension": [{"valueCode": "c"}]}, "required", "Patient.extension[0].url"),
    ("Patient", {"extension": [{"url": "u"}]}, "invariant", "Patient.extension[0]"),
    (
        "Patient",
        {"extension": [{"url": "u", "valueCode": "c", "extension": [{"url": "v", "valueCode": "c"}]}]},
        "invariant",
        "Patient.extension[0]",
    ),
    ("Patient", {"extension": [{"url": "u", "valueHumanNames": "c"}]}, "structure", "Patient.extension[0].value"),
    # contained resources
    ("Observation", {"contained": [{"resourceType": "Patient", "id": "p"}]}, "invariant", "Observation.contained[0]"),
    (
        "Observation",
        containing({"resourceType": "Patient", "meta": {"versionId": "1"}}),
        "invariant",
        "Observation.contained[0]",
    ),
    (
        "Observation",
        containing({"resourceType": "Patient", "meta": {"security": [CT]}}),
        "invariant",
        "Observation.contained[0]",
    ),
    (
        "Observation",
        containing(
            {
                "resourceType": "Patient",
                "contained": [{**VALID["Basic"], "subject": {"reference": "#p"}, "id": "b", "language": "#b"}],
            }
        ),
        "invariant",
        "Observation.contained[0]",
    ),
    (
        "Observation",
        containing({"resourceType": "Patient", "gender": "x"}),
        "code-invalid",
        "Observation.contained[0].gender",
    ),
    # narrative
    ("Patient", {"text": {"status": "generated"}}, "required", "Patient.text.div"),
    ("Patient", {"text": {"status": "made", "div": XHTML % "x"}}, "code-invalid", "Patient.text.status"),
    ("Patient", narrative("x"), "invariant", "Patient.text.div"),
    ("Patient", narrative("<div>x</div>"), "invariant", "Patient.text.div"),
    ("Patient", narrative(XHTML % " "), "invariant", "Patient.text.div"),
    ("Patient", narrative(XHTML % "<p>x"), "invariant", "Patient.text.div"),
    ("Patient", narrative(XHTML % "x<script>1</script>"), "invariant", "Patient.text.div"),
    ("Patient", narrative(XHTML % '<p onclick="1">x</p>'), "invariant", "Patient.text.div"),
    ("Patient", narrative(XHTML % '<a href="javascript:1">x</a>'), "invariant", "Patient.text.div"),
    (
        "Patient",
        narrative(XHTML % '<p style="background: url(https://x.example.org)">x</p>'),
        "invariant",
        "Patient.text.div",
    ),
    ("Patient", narrative(XHTML % '<img src="file:///x"/>'), "invariant", "Patient.text.div"),
    ("Patient", narrative('<!DOCTYPE div [<!ENTITY a "b">]>' + XHTML % "&a;"), "invariant", "Patient.text.div"),
    ("Patient", narrative(XHTML % "<object>x</object>"), "invariant", "Patient.text.div"),
    # invariants of datatypes
    (
        "Patient",
        {"name": [{"family": "x", "period": {"start": "2020-02", "end": "2020-01-31"}}]},
        "invariant",
        "Patient.name[0].period",
    ),
    ("Patient", {"telecom": [{"value": "1"}]}, "invariant", "Patient.telecom[0].system"),
    ("Patient", {"photo": [{"data": "aGFsbG8="}]}, "invariant", "Patient.photo[0].contentType"),
    ("Observation", {"valueQuantity": {"value": 1, "code": "mm"}}, "invariant", "Observation.value.system"),
    (
        "Observation",
        {"valueQuantity": ABSENT, "valueRange": {"low": {"value": 2}, "high": {"value": 1}}},
        "invariant",
        "Observation.value",
    ),
    (
        "Observation",
        {"valueQuantity": ABSENT, "valueRange": {"low": {"value": 2, "comparator": "<"}}},
        "invariant",
        "Observation.value.low.comparator",
    ),
    (
        "Observation",
        {"valueQuantity": ABSENT, "valueRatio": {"numerator": {"value": 2}}},
        "invariant",
        "Observation.value",
    ),
    (
        "Observation",
        {"effectiveTiming": {"repeat": {"duration": 1}}},
        "invariant",
        "Observation.effective.repeat.durationUnit",
    ),
    (
        "Observation",
        {"effectiveTiming": {"repeat": {"period": -1, "periodUnit": "d"}}},
        "invariant",
        "Observation.effective.repeat.period",
    ),
    (
        "Observation",
        {"effectiveTiming": {"repeat": {"offset": 5, "when": ["C"]}}},
        "invariant",
        "Observation.effective.repeat.offset",
    ),
    # invariants of resources
    ("Observation", {"dataAbsentReason": {"text": "x"}}, "invariant", "Observation.dataAbsentReason"),
    ("Observation", {"component": [{"code": CODE}]}, "invariant", "Observation.value"),
    ("Observation", {"referenceRange": [{"appliesTo": [CODE]}]}, "invariant", "Observation.referenceRange[0]"),
    ("Patient", {"contact": [{"gender": "male"}]}, "invariant", "Patient.contact[0]"),
    ("ServiceRequest", {"code": ABSENT, "orderDetail": [CODE]}, "invariant", "ServiceRequest.orderDetail"),
    ("Task", {"lastModified": "2020-01-02T10:30:00+01:00"}, "invariant", "Task.lastModified"),
    ("Task", {"lastModified": "2019"}, "invariant", "Task.lastModified"),
    ("Organization", {"name": ABSENT, "active": True}, "invariant", "Organization"),
    (
        "Organization",
        {"telecom": [{"system": "phone", "value": "1", "use": "home"}]},
        "invariant",
        "Organization.telecom[0]",
    ),
    ("Group", {"actual": False, "member": [{"entity": {"reference": "Patient/1"}}]}, "invariant", "Group.member"),
    ("Appointment", {"end": ABSENT, "status": "proposed"}, "invariant", "Appointment"),
    ("Appointment", {"start": ABSENT, "end": ABSENT}, "invariant", "Appointment"),
    ("Appointment", {"participant": [{"status": "accepted"}]}, "invariant", "Appointment.participant[0]"),
    ("AllergyIntolerance", {"clinicalStatus": ABSENT}, "invariant", "AllergyIntolerance.clinicalStatus"),
    (
        "AllergyIntolerance",
        {"verificationStatus": {"coding": [{"system": VERIFIED, "code": "entered-in-error"}]}},
        "invariant",
        "AllergyIntolerance.clinicalStatus",
    ),
    ("Bundle", {"total": 1}, "invariant", "Bundle.total"),
    (
        "Bundle",
        {"entry": [{"search": {"mode": "match"}, "resource": VALID["Patient"]}]},
        "invariant",
        "Bundle.entry[0]",
    ),
    ("Bundle", {"type": "transaction"}, "invariant", "Bundle.entry[0]"),
    ("Bundle", {"type": "batch-response"}, "invariant", "Bundle.entry[0]"),
    ("Bundle", {"entry": [{"fullUrl": "urn:x:1"}]}, "invariant", "Bundle.entry[0]"),
    ("Bundle", {"entry": [{"fullUrl": "urn:x:1", "resource": VALID["Patient"]}] * 2}, "invariant", "Bundle.entry[1]"),
    (
        "Bundle",
        {"entry": [{"fullUrl": "http://x/Patient/p1/_history/1", "resource": VALID["Patient"]}]},
        "invariant",
        "Bundle.entry[0].fullUrl",
    ),
    ("Bundle", {"entry": [{"resource": {"resourceType": "Basic"}}]}, "required", "Bundle.entry[0].resource.code"),
    ("Bundle", {"entry": [{"resource": {"id": "x"}}]}, "required", "Bundle.entry[0].resource"),
    ("Bundle", {"type": "message"}, "invariant", "Bundle.entry"),
    ("Parameters", {"parameter": [{"name": "a"}]}, "invariant", "Parameters.parameter[0]"),
    (
        "Parameters",
        {"parameter": [{"name": "a", "valueCode": "c", "part": [{"name": "b", "valueCode": "c"}]}]},
        "invariant",
        "Parameters.parameter[0]",
    ),
    (
        "ValueSet",
        {"compose": {"include": [{"concept": [{"code": "a"}], "valueSet": ["urn:x"]}]}},
        "invariant",
        "ValueSet.compose.include[0].system",
    ),
    ("CodeSystem", {"concept": [{"code": "a", "concept": [{"code": "a"}]}]}, "invariant", "CodeSystem.concept"),
]


def changed(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**VALID[name], **changes}.items() if value is not ABSENT}


def found(resource: Any) -> list[tuple[str, str | None]]:
    return [(issue.code, issue.expression) for issue in validation.validate(resource)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_of_hl7_are_valid_but_for_their_known_faults(path: Path) -> None:
    assert found(validation.parse(path.read_bytes())) == FAULTY.get(path.name, [])


@pytest.mark.parametrize("name", VALID)
def test_the_resources_that_defects_are_put_into_are_valid(name: str) -> None:
    assert found(VALID[name]) == []


@pytest.mark.parametrize(
    ("name", "changes", "code", "expression"),
    DEFECTS,
    ids=[f"{expression}-{index}" for index, (_, _, _, expression) in enumerate(DEFECTS)],
)
def test_a_single_defect_is_the_one_issue(name: str, changes: dict[str, Any], code: str, expression: str) -> None:
    assert found(changed(name, changes)) == [(code, expression)]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Patient", {"birthDate": ABSENT, "_birthDate": {"extension": [{"url": "u", "valueCode": "unknown"}]}}),
        ("Patient", {"name": [{"given": [None, "b"], "_given": [{"extension": [EXTENSION]}, {"id": "a"}]}]}),
        ("Patient", {"_birthDate": {"id": "a"}}),
        ("Patient", {"name": [{"_given": [{"extension": [EXTENSION]}]}]}),
        ("Patient", {"modifierExtension": [EXTENSION]}),
        ("Patient", {"birthDate": "2000-02-29"}),
        ("Patient", {"name": [{"family": "\u00a0"}]}),
        ("Patient", {"name": [{"family": "x", "period": {"start": "2020-01-31", "end": "2020-01"}}]}),
        ("Observation", {"subject": {"reference": "urn:uuid:c757873d-ec9a-4326-a141-556f43239520"}}),
        ("Observation", {"subject": {"reference": "Patient?identifier=urn:x|1"}}),
        ("Observation", {"subject": {"reference": "https://x.example.org/fhir/Patient/1/_history/2"}}),
        ("Observation", {"subject": {"identifier": {"value": "1"}}}),
        ("Observation", containing({"resourceType": "Patient"})),
        ("Observation", {"valueQuantity": {"value": Decimal("-1.000E+245")}}),
        ("Observation", {"status": ABSENT, "_status": {"extension": [EXTENSION]}}),
        ("ImagingStudy", {"started": "2016-12-31T23:59:60Z"}),
        ("ImagingStudy", {"started": "2020-01-31"}),
        ("Bundle", {"type": "transaction", "entry": [{"request": {"method": "DELETE", "url": "Patient/1"}}]}),
        ("Patient", narrative(XHTML % '<b style="color: red">&#160;x &amp; y</b><img src="#i"/>')),
    ],
)
def test_what_is_legal_but_rare_passes(name: str, changes: dict[str, Any]) -> None:
    assert found(changed(name, changes)) == []


def test_a_coding_like_the_one_before_is_judged_by_what_it_says() -> None:
    good, faulty = dict(CT), {**CT, "code": ""}
    series = [
        {"uid": f"1.{number}", "modality": one} for number, one in enumerate((good, {**CT, "code": True}, good, {}))
    ]
    series += [
        {"uid": "1.9", "modality": faulty},
        {"uid": "1.10", "modality": dict(faulty)},
        {"uid": "1.11", "modality": good},
    ]
    for _ in range(2):
        issues = validation.validate(changed("ImagingStudy", {"series": series}))
        places = [issue.expression for issue in issues]
        assert places == [
            "ImagingStudy.series[1].modality.code",
            "ImagingStudy.series[3].modality",
            "ImagingStudy.series[4].modality.code",
            "ImagingStudy.series[5].modality.code",
        ]


def test_all_issues_are_collected() -> None:
    study = changed(
        "ImagingStudy",
        {
            "status": "complete",
            "subject": ABSENT,
            "series": [{"uid": "1", "modality": CT}, {"modality": CT, "numberOfInstances": "2", "colour": "red"}],
        },
    )
    assert sorted(found(study), key=str) == [
        ("code-invalid", "ImagingStudy.status"),
        ("required", "ImagingStudy.series[1].uid"),
        ("required", "ImagingStudy.subject"),
        ("structure", "ImagingStudy.series[1].colour"),
        ("structure", "ImagingStudy.series[1].numberOfInstances"),
    ]


PATIENT, NOBODY = "urn:uuid:c757873d-ec9a-4326-a141-556f43239520", "urn:uuid:00000000-ec9a-4326-a141-556f43239520"


def posting(kind: str, *references: str, of: str = "transaction") -> dict[str, Any]:
    """A Bundle that brings a Patient under a placeholder, and a resource for each reference to it."""
    request = {"method": "POST", "url": "x"}
    resources = [{**VALID[kind], "subject": {"reference": reference}} for reference in references]
    entries = [{"resource": resource} for resource in resources]
    entries = [{"fullUrl": PATIENT, "resource": VALID["Patient"]}, *entries]
    sent = {"request": request} if of in {"transaction", "batch"} else {}
    return {"resourceType": "Bundle", "type": of, "entry": [{**entry, **sent} for entry in entries]}


def test_a_reference_inside_a_bundle_is_followed_to_its_entry() -> None:
    assert found(posting("Observation", PATIENT, "Patient/p2")) == []
    wrong = posting("Observation", PATIENT)
    wrong["entry"][0]["resource"] = {**VALID["Task"]}
    assert found(wrong) == [("value", "Bundle.entry[1].resource.subject.reference")]


def test_a_placeholder_of_a_transaction_must_be_one_of_its_entries() -> None:
    assert found(posting("Observation", PATIENT, NOBODY)) == [("value", "Bundle.entry[2].resource.subject.reference")]
    assert found(posting("Observation", NOBODY, of="collection")) == []


def test_an_address_of_an_entry_is_that_of_its_resource() -> None:
    def at(address: str) -> list[tuple[str, str | None]]:
        return found(changed("Bundle", {"entry": [{"fullUrl": address, "resource": VALID["Patient"]}]}))

    assert at("https://x.example.org/fhir/Patient/p1") == []
    assert at("urn:uuid:c757873d-ec9a-4326-a141-556f43239520") == []
    assert at("https://x.example.org/fhir/Patient/p2") == [("value", "Bundle.entry[0].fullUrl")]
    assert at("https://x.example.org/fhir/Group/p1") == [("value", "Bundle.entry[0].fullUrl")]


def test_the_type_of_a_reference_agrees_with_its_address() -> None:
    def said(kind: str) -> list[tuple[str, str | None]]:
        return found(changed("Observation", {"subject": {"reference": "Patient/p1", "type": kind}}))

    assert said("Patient") == said("http://hl7.org/fhir/StructureDefinition/Patient") == []
    assert said("Group") == [("value", "Observation.subject.type")]


def test_an_element_id_has_no_blanks() -> None:
    assert found(changed("Patient", {"name": [{"id": "a.b:c", "family": "x"}]})) == []
    assert found(changed("Patient", {"name": [{"id": "a b", "family": "x"}]})) == [("value", "Patient.name[0].id")]


def test_a_resource_must_be_of_the_expected_type() -> None:
    assert validation.validate(VALID["Patient"], "Patient") == []
    [issue] = validation.validate(VALID["Patient"], "Observation")
    assert (issue.code, issue.expression) == ("value", "resourceType")


def test_no_sentence_repeats_a_value() -> None:
    secret = "Miller"
    faulty = changed("Patient", {"birthDate": secret, "gender": secret, "id": secret + "!", "name": secret})
    issues = validation.validate(faulty)
    assert len(issues) == 4
    assert not [issue for issue in issues if secret in f"{issue.diagnostics}{issue.expression}"]


def test_resources_of_r4_that_are_not_served_are_known_too() -> None:
    assert found({"resourceType": "Questionnaire", "status": "draft"}) == []
    assert found({"resourceType": "Questionnaire"}) == [("required", "Questionnaire.status")]


# --- parsing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"{} {}",
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 01}',
        b'{"a": "\t"}',
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": 1e99999}',
        b'{"a": 1e99999999999999999999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=range(21),
)
def test_what_is_not_one_strict_json_object_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(errors.BadRequest) as refused:
        validation.parse(body)
    assert refused.value.issues[0].code == "structure"


def test_numbers_keep_every_digit() -> None:
    parsed = validation.parse(b'{"a": 12.50, "b": 1e2, "c": 3}')
    assert [str(parsed[key]) for key in "abc"] == ["12.50", "1E+2", "3"]


def test_a_deep_resource_that_was_never_parsed_is_an_issue_not_a_crash() -> None:
    extension: dict[str, Any] = EXTENSION
    for _ in range(5000):
        extension = {"url": "u", "extension": [extension]}
    assert ("structure", None) in found({"resourceType": "Patient", "extension": [extension]})


# --- completeness ----------------------------------------------------------------------------------------------

SERVED = {*definitions.read("search-parameters.json"), "Binary", "OperationOutcome", "Parameters", "Basic"}


def closure(names: set[str]) -> set[str]:
    reached: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        if name in reached or name not in definitions.read("structures.json"):
            continue
        reached.add(name)
        kinds = [kind for element in definitions.elements(name) for kind in element.kinds]
        waiting |= {kind.name for kind in kinds}
        waiting |= {target for kind in kinds if kind.name != "Reference" for target in kind.narrowed}
    return reached


def test_every_rule_of_the_served_types_is_checked() -> None:
    stated = {(where, key) for name in closure(SERVED) for where, key, _ in definitions.rules(name)}
    assert invariants.RULES.keys() | invariants.CHECKED_ELSEWHERE == stated
    assert not invariants.RULES.keys() & invariants.CHECKED_ELSEWHERE
    assert invariants.RAISED.keys() <= invariants.RULES.keys()


def test_every_structure_of_r4_compiles() -> None:
    for name in definitions.read("structures.json"):
        assert validation.compile_structure(name).members


def test_required_value_sets_have_codes_or_are_known_not_to() -> None:
    value_sets = definitions.read("value-sets.json")
    assert {name for name in value_sets if not definitions.codes(name)} == {
        *("LL379-9", "currencies", "mimetypes", "ucum-units"),
    }
    assert "available" in definitions.codes("imagingstudy-status")["http://hl7.org/fhir/imagingstudy-status"]


def test_references_point_to_resource_types_only() -> None:
    targets = {
        target
        for name in definitions.read("structures.json")
        for element in definitions.elements(name)
        for kind in element.kinds
        if kind.name == "Reference"
        for target in kind.narrowed
    }
    assert targets <= definitions.resource_types()


def test_search_parameters_are_about_their_own_type() -> None:
    parameters = definitions.read("search-parameters.json")
    for resource_type, rows in parameters.items():
        for row in rows.values():
            parts = row.get("expression", resource_type).split(" | ")
            assert all(part.lstrip("(").split(".")[0].split(" ")[0] == resource_type for part in parts)
    addresses = {row["url"] for rows in parameters.values() for row in rows.values()}
    components = [item for rows in parameters.values() for row in rows.values() for item in row.get("component", ())]
    assert {item["definition"] for item in components} <= addresses
    assert parameters["ImagingStudy"]["started"] == {
        "type": "date",
        "expression": "ImagingStudy.started",
        "url": "http://hl7.org/fhir/SearchParameter/ImagingStudy-started",
    }


@pytest.mark.parametrize("name", VALID)
def test_a_second_judge_accepts_what_is_valid(name: str) -> None:
    plain = json.loads(json.dumps(VALID[name], default=float))
    assert get_fhir_model_class(name).model_validate(plain)


# --- anything at all -------------------------------------------------------------------------------------------

TYPICAL = ("Patient", "Observation", "Bundle", "Task", "Timing.repeat")
NAMES = sorted(
    {"resourceType", "reference", "div", "_status", "_given", "", "valueQuantity", "valueString", "effectiveTiming"}
    | {"repeat", "value", "coding", "url", "resource", "start", "end"}
    | {element.name for name in TYPICAL for element in definitions.elements(name)}
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.decimals()
    | st.floats()
    | st.text()
    | st.sampled_from(
        ["Patient", "Bundle", "2020-01-01", "2020-99-99T00:00:00Z", "#", "#a", "Patient/1", "final", XHTML]
    )
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=30,
)
RESOURCES = st.builds(
    lambda kind, content: {"resourceType": kind, **content},
    st.sampled_from(sorted(VALID)),
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=8),
)


@given(RESOURCES | JSON)
def test_validation_never_raises(resource: Any) -> None:
    assert all(issue.diagnostics for issue in validation.validate(resource))


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value, default=str).encode()))
def test_parsing_answers_with_an_object_or_a_bad_request(body: bytes) -> None:
    try:
        parsed = validation.parse(body)
    except errors.BadRequest:
        return
    assert type(parsed) is dict


@given(st.sampled_from(sorted(VALID)), st.data())
def test_putting_anything_into_a_valid_resource_never_raises(name: str, data: st.DataObject) -> None:
    elements = [element.name for element in definitions.elements(name)]
    changes = data.draw(st.dictionaries(st.sampled_from(elements), JSON, max_size=4))
    assert isinstance(validation.validate({**VALID[name], **changes}), list)
