"""Each hand-compiled invariant: one node that breaks it, one that keeps it."""

from __future__ import annotations

from typing import Any

import pytest

from app.fhir import invariants

Node = dict[str, Any]
UCUM = "http://unitsofmeasure.org"
HL7 = "http://hl7.org/fhir/StructureDefinition/"
ERROR = {
    "coding": [
        {
            "system": "http://terminology.hl7.org/CodeSystem/allergyintolerance-verification",
            "code": "entered-in-error",
        }
    ]
}


def contained(**content: Any) -> Node:
    return {"subject": {"reference": "#a"}, "contained": [{"id": "a", **content}]}


def element(**content: Any) -> Node:
    return {"element": [{"path": "A"}, {"path": "A.b", **content}]}


# structure, key, a node that breaks the rule, a node that keeps it
ROWS: list[tuple[str, str, Node, Node]] = [
    ("DomainResource", "dom-2", contained(contained=[{"id": "b"}]), contained()),
    ("DomainResource", "dom-3", {"contained": [{"id": "a"}]}, {"contained": [{"id": "a", "x": {"reference": "#"}}]}),
    ("DomainResource", "dom-4", contained(meta={"lastUpdated": "2020"}), contained(meta={"profile": ["p"]})),
    (
        "DomainResource",
        "dom-5",
        contained(meta={"security": [{"code": "R"}]}),
        contained(meta={"tag": [{"code": "R"}]}),
    ),
    ("Extension", "ext-1", {"url": "u", "valueCode": "c", "extension": []}, {"url": "u", "_valueCode": {}}),
    ("Attachment", "att-1", {"data": "aa=="}, {"url": "u"}),
    ("ContactPoint", "cpt-2", {"value": "1"}, {"value": "1", "system": "phone"}),
    (
        "Period",
        "per-1",
        {"start": "2020-01-01T10:00:00Z", "end": "2020-01-01T10:30:00+01:00"},
        {"start": "2020", "end": "2020"},
    ),
    ("Quantity", "qty-3", {"code": "mm"}, {"code": "mm", "system": UCUM}),
    ("SimpleQuantity", "sqty-1", {"comparator": "<"}, {"value": 1}),
    ("Age", "age-1", {"value": 0, "code": "a", "system": UCUM}, {"value": 1, "code": "a", "system": UCUM}),
    ("Count", "cnt-3", {"value": 1.5, "code": "1"}, {"value": 2, "code": "1", "system": UCUM}),
    ("Distance", "dis-1", {"value": 1}, {"value": 1, "code": "m", "system": UCUM}),
    ("Duration", "drt-1", {"code": "h", "value": 1}, {"code": "h", "value": 1, "system": UCUM}),
    (
        "Range",
        "rng-2",
        {"low": {"value": 2}, "high": {"value": 1}},
        {"low": {"value": 2, "unit": "mm"}, "high": {"value": 1, "unit": "cm"}},
    ),
    ("Ratio", "rat-1", {}, {"numerator": {"value": 1}, "denominator": {"value": 2}}),
    ("Timing.repeat", "tim-1", {"duration": 1}, {"duration": 1, "durationUnit": "h"}),
    ("Timing.repeat", "tim-2", {"period": 1}, {"period": 1, "periodUnit": "h"}),
    ("Timing.repeat", "tim-4", {"duration": -1}, {"duration": 0}),
    ("Timing.repeat", "tim-5", {"period": -0.5}, {"period": 0.5}),
    ("Timing.repeat", "tim-6", {"periodMax": 2}, {"periodMax": 2, "period": 1}),
    ("Timing.repeat", "tim-7", {"durationMax": 2}, {"durationMax": 2, "duration": 1}),
    ("Timing.repeat", "tim-8", {"countMax": 2}, {"countMax": 2, "count": 1}),
    ("Timing.repeat", "tim-9", {"offset": 5}, {"offset": 5, "when": ["AC"]}),
    ("Timing.repeat", "tim-10", {"timeOfDay": ["09:00:00"], "when": ["AC"]}, {"when": ["AC"]}),
    ("Expression", "exp-1", {"language": "x"}, {"expression": "1"}),
    ("DataRequirement.codeFilter", "drq-1", {"path": "a", "searchParam": "b"}, {"path": "a"}),
    ("DataRequirement.dateFilter", "drq-2", {}, {"searchParam": "b"}),
    ("TriggerDefinition", "trd-1", {"data": [{}], "timingDate": "2020"}, {"data": [{}]}),
    ("TriggerDefinition", "trd-2", {"condition": {}}, {"condition": {}, "data": [{}]}),
    ("TriggerDefinition", "trd-3", {"type": "periodic"}, {"type": "data-added", "data": [{}]}),
    ("AllergyIntolerance", "ait-1", {}, {"verificationStatus": ERROR}),
    ("AllergyIntolerance", "ait-2", {"verificationStatus": ERROR, "clinicalStatus": {}}, {"clinicalStatus": {}}),
    ("Appointment", "app-2", {"start": "2020"}, {"start": "2020", "end": "2021"}),
    ("Appointment", "app-3", {"status": "booked"}, {"status": "waitlist"}),
    (
        "Appointment",
        "app-4",
        {"status": "booked", "cancelationReason": {}},
        {"status": "no-show", "cancelationReason": {}},
    ),
    ("Appointment.participant", "app-1", {"status": "accepted"}, {"actor": {}}),
    ("AuditEvent.entity", "sev-1", {"name": "a", "query": "aa=="}, {"query": "aa=="}),
    ("Group", "grp-1", {"actual": False, "member": [{}]}, {"actual": True, "member": [{}]}),
    ("Observation", "obs-6", {"dataAbsentReason": {}, "valueCodeableConcept": {}}, {"dataAbsentReason": {}}),
    (
        "Observation",
        "obs-7",
        {"valueString": "x", "code": {"coding": [{"code": "a"}]}, "component": [{"code": {"coding": [{"code": "a"}]}}]},
        {"valueString": "x", "code": {"coding": [{"code": "a"}]}, "component": [{"code": {"coding": [{"code": "b"}]}}]},
    ),
    ("Observation.referenceRange", "obs-3", {"type": {}}, {"text": "x"}),
    ("Organization", "org-1", {"active": True}, {"identifier": [{}]}),
    ("Organization", "org-2", {"address": [{"use": "work"}, {"use": "home"}]}, {"address": [{"use": "work"}]}),
    ("Organization", "org-3", {"telecom": [{"use": "home"}]}, {"telecom": [{}]}),
    ("Patient.contact", "pat-1", {"gender": "male"}, {"organization": {}}),
    ("ServiceRequest", "prr-1", {"orderDetail": [{}]}, {"orderDetail": [{}], "code": {}}),
    (
        "Task",
        "inv-1",
        {"authoredOn": "2020-02", "lastModified": "2020-01-30"},
        {"authoredOn": "2020-02", "lastModified": "2020-01-31T23:59:59-12:00"},
    ),
    ("Bundle", "bdl-1", {"type": "batch", "total": 1}, {"type": "history", "total": 1}),
    ("Bundle", "bdl-2", {"type": "batch", "entry": [{"search": {}}]}, {"type": "searchset", "entry": [{"search": {}}]}),
    ("Bundle", "bdl-3", {"type": "batch", "entry": [{}]}, {"type": "batch", "entry": [{"request": {}}]}),
    (
        "Bundle",
        "bdl-4",
        {"type": "batch", "entry": [{"response": {}}]},
        {"type": "history", "entry": [{"response": {}}]},
    ),
    (
        "Bundle",
        "bdl-7",
        {"type": "batch", "entry": [{"fullUrl": "a"}] * 2},
        {"type": "history", "entry": [{"fullUrl": "a"}] * 2},
    ),
    (
        "Bundle",
        "bdl-9",
        {"type": "document", "identifier": {"value": "1"}},
        {"type": "document", "identifier": {"value": "1", "system": "s"}},
    ),
    ("Bundle", "bdl-10", {"type": "document"}, {"type": "document", "timestamp": "2020"}),
    (
        "Bundle",
        "bdl-11",
        {"type": "document", "entry": [{"resource": {"resourceType": "Basic"}}]},
        {"type": "document", "entry": [{"resource": {"resourceType": "Composition"}}]},
    ),
    (
        "Bundle",
        "bdl-12",
        {"type": "message"},
        {"type": "message", "entry": [{"resource": {"resourceType": "MessageHeader"}}]},
    ),
    ("Bundle.entry", "bdl-5", {"fullUrl": "a"}, {"response": {}}),
    ("Bundle.entry", "bdl-8", {"fullUrl": "http://a/Basic/1/_history/1"}, {"fullUrl": "http://a/Basic/1"}),
    ("Parameters.parameter", "inv-1", {"valueCode": "c", "resource": {}}, {"part": [{}]}),
    ("CapabilityStatement", "cpb-1", {}, {"rest": [{}]}),
    ("CapabilityStatement", "cpb-2", {}, {"software": {}}),
    (
        "CapabilityStatement",
        "cpb-3",
        {"kind": "capability", "messaging": [{"endpoint": [{}]}]},
        {"kind": "instance", "messaging": [{"endpoint": [{}]}]},
    ),
    (
        "CapabilityStatement",
        "cpb-7",
        {"document": [{"mode": "producer", "profile": "p"}] * 2},
        {"document": [{"mode": "producer", "profile": "p"}, {"mode": "consumer", "profile": "p"}]},
    ),
    ("CapabilityStatement", "cpb-14", {"kind": "instance"}, {"kind": "instance", "implementation": {}}),
    (
        "CapabilityStatement",
        "cpb-15",
        {"kind": "capability", "implementation": {}},
        {"kind": "capability", "software": {}},
    ),
    ("CapabilityStatement", "cpb-16", {"kind": "requirements", "software": {}}, {"kind": "requirements"}),
    (
        "CapabilityStatement.rest",
        "cpb-9",
        {"resource": [{"type": "A"}, {"type": "A"}]},
        {"resource": [{"type": "A"}, {"type": "B"}]},
    ),
    (
        "CapabilityStatement.rest.resource",
        "cpb-12",
        {"searchParam": [{"name": "a"}, {"name": "a"}]},
        {"searchParam": [{"name": "a"}]},
    ),
    (
        "CodeSystem",
        "csd-1",
        {"concept": [{"code": "a", "concept": [{"code": "a"}]}]},
        {"concept": [{"code": "a", "concept": [{"code": "b"}]}]},
    ),
    (
        "ConceptMap.group.element.target",
        "cmd-1",
        {"equivalence": "narrower"},
        {"equivalence": "narrower", "comment": "x"},
    ),
    ("ConceptMap.group.unmapped", "cmd-2", {"mode": "fixed"}, {"mode": "provided"}),
    ("ConceptMap.group.unmapped", "cmd-3", {"mode": "other-map"}, {"mode": "other-map", "url": "u"}),
    (
        "ImplementationGuide",
        "ig-2",
        {"fhirVersion": ["4.0.1"], "definition": {"resource": [{"fhirVersion": ["3.0.2"]}]}},
        {"fhirVersion": ["4.0.1"], "definition": {"resource": [{"fhirVersion": ["4.0.1"]}]}},
    ),
    (
        "ImplementationGuide.definition",
        "ig-1",
        {"resource": [{"groupingId": "a"}]},
        {"resource": [{"groupingId": "a"}], "grouping": [{"id": "a"}]},
    ),
    ("OperationDefinition.parameter", "opd-1", {"name": "a"}, {"part": [{}]}),
    (
        "OperationDefinition.parameter",
        "opd-2",
        {"searchType": "token", "type": "code"},
        {"searchType": "token", "type": "string"},
    ),
    (
        "OperationDefinition.parameter",
        "opd-3",
        {"targetProfile": ["p"], "type": "code"},
        {"targetProfile": ["p"], "type": "canonical"},
    ),
    ("SearchParameter", "spd-1", {"xpath": "a"}, {"xpath": "a", "xpathUsage": "normal"}),
    ("SearchParameter", "spd-2", {"chain": ["a"], "type": "token"}, {"chain": ["a"], "type": "reference"}),
    ("ValueSet.compose.include", "vsd-1", {"version": "1"}, {"valueSet": ["u"]}),
    ("ValueSet.compose.include", "vsd-2", {"filter": [{}], "valueSet": ["u"]}, {"filter": [{}], "system": "s"}),
    ("ValueSet.compose.include", "vsd-3", {"filter": [{}], "concept": [{}]}, {"filter": [{}]}),
    ("ValueSet.expansion.contains", "vsd-6", {"abstract": True}, {"display": "x"}),
    ("ValueSet.expansion.contains", "vsd-9", {"display": "x"}, {"display": "x", "abstract": True}),
    ("ValueSet.expansion.contains", "vsd-10", {"code": "a"}, {"code": "a", "system": "s"}),
    ("ElementDefinition", "eld-2", {"min": 2, "max": "1"}, {"min": 2, "max": "*"}),
    ("ElementDefinition", "eld-3", {"max": "many"}, {"max": "12"}),
    ("ElementDefinition", "eld-5", {"contentReference": "#a", "fixedCode": "c"}, {"contentReference": "#a"}),
    ("ElementDefinition", "eld-6", {"fixedCode": "c", "type": [{}, {}]}, {"fixedCode": "c", "type": [{}]}),
    ("ElementDefinition", "eld-7", {"patternCode": "c", "type": [{}, {}]}, {"type": [{}, {}]}),
    ("ElementDefinition", "eld-8", {"patternCode": "c", "fixedCode": "c"}, {"patternCode": "c"}),
    (
        "ElementDefinition",
        "eld-11",
        {"binding": {}, "type": [{"code": "boolean"}]},
        {"binding": {}, "type": [{"code": "boolean"}, {"code": "Coding"}]},
    ),
    ("ElementDefinition", "eld-13", {"type": [{"code": "A"}, {"code": "A"}]}, {"type": [{"code": "A"}, {"code": "B"}]}),
    ("ElementDefinition", "eld-14", {"constraint": [{"key": "a"}, {"key": "a"}]}, {"constraint": [{"key": "a"}]}),
    ("ElementDefinition", "eld-15", {"meaningWhenMissing": "x", "defaultValueCode": "c"}, {"meaningWhenMissing": "x"}),
    ("ElementDefinition", "eld-16", {"sliceName": "a b"}, {"sliceName": "a/b-1"}),
    ("ElementDefinition", "eld-18", {"isModifier": True}, {"isModifier": True, "isModifierReason": "x"}),
    ("ElementDefinition", "eld-19", {"path": "A.b c"}, {"path": "A.b.value[x]:one"}),
    ("ElementDefinition", "eld-22", {"sliceIsConstraining": True}, {"sliceIsConstraining": True, "sliceName": "a"}),
    ("ElementDefinition.binding", "eld-12", {"valueSet": "ftp://a"}, {"valueSet": "urn:a"}),
    ("ElementDefinition.slicing", "eld-1", {"rules": "open"}, {"description": "x"}),
    (
        "ElementDefinition.type",
        "eld-4",
        {"code": "Coding", "aggregation": ["bundled"]},
        {"code": "Reference", "aggregation": ["bundled"]},
    ),
    (
        "ElementDefinition.type",
        "eld-17",
        {"code": "Coding", "targetProfile": ["p"]},
        {"code": "canonical", "targetProfile": ["p"]},
    ),
    (
        "StructureDefinition",
        "sdf-1",
        {"snapshot": element(path="A")},
        {"derivation": "constraint", "snapshot": element(path="A")},
    ),
    ("StructureDefinition", "sdf-4", {"abstract": False}, {"abstract": True}),
    (
        "StructureDefinition",
        "sdf-5",
        {"type": "Extension", "derivation": "constraint"},
        {"type": "Extension", "context": [{}]},
    ),
    ("StructureDefinition", "sdf-6", {}, {"differential": {}}),
    (
        "StructureDefinition",
        "sdf-14",
        {"snapshot": {"element": [{"path": "A"}]}},
        {"snapshot": {"element": [{"path": "A", "id": "A"}]}},
    ),
    (
        "StructureDefinition",
        "sdf-16",
        {"snapshot": {"element": [{"id": "A"}, {"id": "A"}]}},
        {"snapshot": {"element": [{"id": "A"}]}},
    ),
    (
        "StructureDefinition",
        "sdf-17",
        {"differential": {"element": [{"id": "A"}, {"id": "A"}]}},
        {"differential": {"element": [{"id": "A"}]}},
    ),
    (
        "StructureDefinition",
        "sdf-18",
        {"type": "Basic", "contextInvariant": ["x"]},
        {"type": "Extension", "contextInvariant": ["x"]},
    ),
    (
        "StructureDefinition",
        "sdf-23",
        {"differential": {"element": [{"path": "A", "sliceName": "x"}]}},
        {"differential": element(sliceName="x")},
    ),
    (
        "StructureDefinition",
        "sdf-9",
        {"differential": {"element": [{"path": "A", "code": [{}]}]}},
        {"differential": {"element": [{"path": "A.b", "code": [{}]}]}},
    ),
    (
        "StructureDefinition",
        "sdf-11",
        {"kind": "resource", "type": "B", "snapshot": element()},
        {"kind": "logical", "type": "B", "snapshot": element()},
    ),
    (
        "StructureDefinition",
        "sdf-15",
        {"kind": "resource", "snapshot": {"element": [{"path": "A", "type": [{}]}]}},
        {"kind": "resource", "snapshot": element(type=[{}])},
    ),
    (
        "StructureDefinition",
        "sdf-15a",
        {"kind": "resource", "differential": {"element": [{"path": "A", "type": [{}]}]}},
        {"kind": "resource", "differential": {"element": [{"path": "A.b", "type": [{}]}]}},
    ),
    (
        "StructureDefinition",
        "sdf-19",
        {"url": f"{HL7}A", "differential": element(type=[{"code": "a.b"}])},
        {"url": f"{HL7}A", "snapshot": element(type=[{"code": "a.b"}])},
    ),
    (
        "StructureDefinition",
        "sdf-21",
        {"derivation": "constraint", "differential": element(defaultValueCode="c")},
        {"derivation": "specialization", "differential": element(defaultValueCode="c")},
    ),
    (
        "StructureDefinition",
        "sdf-22",
        {"url": f"{HL7}A", "snapshot": element(defaultValueCode="c")},
        {"url": "http://x.example.org/A", "snapshot": element(defaultValueCode="c")},
    ),
    ("StructureDefinition.mapping", "sdf-2", {"identity": "x"}, {"uri": "u"}),
    (
        "StructureDefinition.snapshot",
        "sdf-3",
        element(min=0, max="1"),
        {"element": [{"definition": "x", "min": 0, "max": "1"}]},
    ),
    ("StructureDefinition.snapshot", "sdf-8b", element(), {"element": [{"base": {}}]}),
    (
        "StructureDefinition.snapshot",
        "sdf-8",
        {"type": "A", "snapshot": {"element": [{"path": "A"}, {"path": "B.c"}]}},
        {"type": "A", "snapshot": element()},
    ),
    (
        "StructureDefinition.snapshot",
        "sdf-10",
        element(binding={"strength": "required"}),
        element(binding={"valueSet": "u"}),
    ),
    (
        "StructureDefinition.differential",
        "sdf-8a",
        {"type": "A", "differential": {"element": [{"path": "A.b"}, {"path": "C.d"}]}},
        {"type": "A", "differential": {"element": [{"path": "A.b"}, {"path": "A.c"}]}},
    ),
    ("StructureDefinition.differential", "sdf-20", {"element": [{"path": "A", "slicing": {}}]}, element(slicing={})),
]


@pytest.mark.parametrize(("structure", "key", "broken", "kept"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_an_invariant_tells_a_broken_node_from_a_kept_one(structure: str, key: str, broken: Node, kept: Node) -> None:
    rule = invariants.RULES[structure, key]
    assert (rule.holds(broken), rule.holds(kept)) == (False, True)
    assert rule.faults(broken)


def test_every_invariant_has_its_row() -> None:
    assert [row[:2] for row in ROWS] == list(invariants.RULES)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("2020", "2020-01-01", True),
        ("2020-02", "2020-01", False),
        ("2020-12-31", "2020", True),
        ("2020-01-02", "2020-01-01T23:30:00-10:00", True),
        ("2020-01-03", "2020-01-01T23:30:00-10:00", False),
        ("2020-01-01T12:00:00+02:00", "2020-01-01T11:00:00+01:00", True),
        ("2020-01-01T12:00:01+02:00", "2020-01-01T11:00:00+01:00", False),
        ("2016-12-31T23:59:60Z", "2016-12-31T00:00:00Z", True),
        ("not a date", "2020", True),
        (None, "2020", True),
    ],
)
def test_dates_are_in_order_unless_surely_not(first: str | None, second: str | None, expected: bool) -> None:
    assert invariants.in_order(first, second) is expected
