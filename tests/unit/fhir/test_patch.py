"""JSON Patch as in RFC 6902 and FHIRPath Patch as in R4: what each operation does, and what is refused and how."""

from __future__ import annotations

import copy
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import errors
from app.errors import BadRequest, IsocenterError, TooLarge, Unprocessable, UnsupportedMediaType
from app.fhir import patch, validation
from app.fhir.locations import BadPath, parse

PATIENT: dict[str, Any] = {
    "resourceType": "Patient",
    "id": "p1",
    "meta": {"versionId": "3", "lastUpdated": "2026-01-01T00:00:00Z", "tag": [{"code": "a"}]},
    "identifier": [{"system": "urn:x", "value": "1"}, {"system": "urn:y", "value": "2"}],
    "active": True,
    "name": [
        {"family": "Curie", "given": ["Marie", "Salomea"], "_given": [None, {"extension": [{"url": "u"}]}]},
        {"use": "nickname", "text": "Manya"},
    ],
    "birthDate": "1867-11-07",
    "_birthDate": {"extension": [{"url": "urn:time", "valueDateTime": "1867-11-07T10:00:00Z"}]},
    "deceasedDateTime": "1934-07-04",
    "contact": [{"name": {"text": "Pierre"}, "gender": "male"}, {"name": {"text": "Irene"}}],
}


def patched(*operations: Any, resource: Any = None) -> Any:
    return patch.json_patch(resource or PATIENT, list(operations))


def op(name: str, path: Any, **about: Any) -> dict[str, Any]:
    return {"op": name, "path": path, **about}


# --- JSON Patch ------------------------------------------------------------------------------------------------

DONE = {
    "replaces a member": (op("replace", "/active", value=False), lambda it: it["active"] is False),
    "adds a member": (op("add", "/gender", value="female"), lambda it: it["gender"] == "female"),
    "adds over a member": (op("add", "/active", value=False), lambda it: it["active"] is False),
    "removes a member": (op("remove", "/active"), lambda it: "active" not in it),
    "inserts into a list": (
        op("add", "/identifier/1", value={"value": "n"}),
        lambda it: [one["value"] for one in it["identifier"]] == ["1", "n", "2"],
    ),
    "appends to a list": (
        op("add", "/identifier/-", value={"value": "n"}),
        lambda it: [one["value"] for one in it["identifier"]] == ["1", "2", "n"],
    ),
    "removes from a list": (op("remove", "/identifier/0"), lambda it: [o["value"] for o in it["identifier"]] == ["2"]),
    "moves within a list": (
        op("move", "/identifier/1", **{"from": "/identifier/0"}),
        lambda it: [one["value"] for one in it["identifier"]] == ["2", "1"],
    ),
    "moves onto itself": (op("move", "/active", **{"from": "/active"}), lambda it: it["active"] is True),
    "copies": (
        op("copy", "/contact/1/gender", **{"from": "/contact/0/gender"}),
        lambda it: it["contact"][1]["gender"] == "male",
    ),
    "tests": (op("test", "/name/0/given", value=["Marie", "Salomea"]), lambda it: it == PATIENT),
    "replaces meta without what the server puts there": (
        op("replace", "/meta", value={"tag": [{"code": "b"}]}),
        lambda it: it["meta"] == {"tag": [{"code": "b"}]},
    ),
    "replaces the whole by itself": (op("replace", "", value=PATIENT), lambda it: it == PATIENT),
}


@pytest.mark.requirement("I14")
@pytest.mark.parametrize("name", DONE)
def test_json_patch(name: str) -> None:
    operation, holds = DONE[name]
    before = copy.deepcopy(PATIENT)
    assert holds(patched(operation))
    assert before == PATIENT


MALFORMED = {
    "no list": {"op": "remove", "path": "/active"},
    "a text for an operation": ["remove"],
    "an unknown operation": [op("merge", "/active", value=1)],
    "an operation that is no text": [op([], "/active")],  # type: ignore[arg-type]
    "no path": [{"op": "remove"}],
    "a path that is no text": [op("remove", 5)],
    "a path that is no pointer": [op("remove", "active")],
    "a bad escape": [op("remove", "/a~2b")],
    "no value": [op("add", "/gender")],
    "no from": [op("copy", "/gender")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_json_patch_is_a_bad_request(name: str) -> None:
    with pytest.raises(BadRequest):
        patch.json_patch(PATIENT, MALFORMED[name])


MISFIT = {
    "a failing test": (op("test", "/active", value=False), "Patient.active"),
    "a test of true against 1": (op("test", "/active", value=1), "Patient.active"),
    "removing nothing": (op("remove", "/gender"), "Patient.gender"),
    "replacing nothing": (op("replace", "/gender", value="male"), "Patient.gender"),
    "a place beyond the list": (op("add", "/identifier/3", value={}), "Patient.identifier[3]"),
    "a place with a leading zero": (op("remove", "/identifier/01"), None),
    "a place below zero": (op("remove", "/identifier/-1"), None),
    "replacing the end of a list": (op("replace", "/identifier/-", value={}), "Patient.identifier"),
    "below a text": (op("add", "/birthDate/x", value=1), "Patient.birthDate.x"),
    "below nothing": (op("add", "/photo/0/url", value="u"), "Patient.photo[0].url"),
    "copying nothing": (op("copy", "/gender", **{"from": "/photo"}), "Patient.gender"),
    "moving into itself": (op("move", "/contact/0/name/x", **{"from": "/contact/0"}), "Patient.contact[0].name.x"),
    "removing the server's version": (op("remove", "/meta/versionId"), "Patient.meta.versionId"),
}


@pytest.mark.requirement("I14")
@pytest.mark.parametrize("name", MISFIT)
def test_a_json_patch_that_does_not_fit_says_where(name: str) -> None:
    operation, expression = MISFIT[name]
    with pytest.raises(Unprocessable) as caught:
        patched(op("test", "/active", value=True), operation)
    assert caught.value.issues[0].expression == expression
    assert caught.value.issues[0].diagnostics.startswith("operation 1: ")
    assert "Curie" not in str(caught.value)


@pytest.mark.requirement("I14")
@pytest.mark.parametrize(
    ("path", "value", "expression"),
    [
        ("/id", "p2", "Patient.id"),
        ("/resourceType", "Person", "Patient.resourceType"),
        ("/meta/versionId", "4", "Patient.meta.versionId"),
        ("/meta/lastUpdated", "2027-01-01T00:00:00Z", "Patient.meta.lastUpdated"),
        ("/meta", {"versionId": "4"}, "Patient.meta.versionId"),
        ("", {"resourceType": "Patient", "id": "p2"}, "Patient.id"),
    ],
)
def test_what_the_server_owns_cannot_be_patched(path: str, value: Any, expression: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        patched(op("add", path, value=value))
    assert [issue.expression for issue in caught.value.issues] == [expression]


@pytest.mark.parametrize("path", ["", "/id", "/resourceType"])
def test_nor_can_it_be_removed(path: str) -> None:
    with pytest.raises(Unprocessable):
        patched(op("remove", path))


def test_digits_survive_and_numbers_compare_by_value() -> None:
    quantity = {"resourceType": "Observation", "id": "o", "valueQuantity": {"value": Decimal("12.50")}}
    found = patched(
        op("test", "/valueQuantity/value", value=Decimal("12.5")),
        op("add", "/component", value=[{"valueQuantity": {"value": Decimal("7.100")}}]),
        resource=quantity,
    )
    assert str(found["valueQuantity"]["value"]) == "12.50"
    assert str(found["component"][0]["valueQuantity"]["value"]) == "7.100"


@pytest.mark.parametrize(
    "operations",
    [
        [op("add", "/name/0/given/0", value="X"), op("remove", "/name/0/given/2")],
        [op("move", "/name/0/given/0", **{"from": "/name/0/given/1"})],
        [op("remove", "/name/0/_given/0"), op("add", "/name/0/_given/-", value=None)],
        [op("add", "/name/0/given/0", value="X"), op("add", "/name/0/_given/2", value=None)],
    ],
)
def test_a_list_that_leaves_its_siblings_behind_is_refused(operations: list[Any]) -> None:
    with pytest.raises(Unprocessable, match="aligned"):
        patch.json_patch(PATIENT, operations)


@pytest.mark.parametrize(
    ("operations", "values", "siblings"),
    [
        (
            [op("add", "/name/0/given/0", value="X"), op("add", "/name/0/_given/0", value=None)],
            ["X", "Marie", "Salomea"],
            [None, None, {"extension": [{"url": "u"}]}],
        ),
        (
            [op("remove", "/name/0/_given/0"), op("remove", "/name/0/given/0")],
            ["Salomea"],
            [{"extension": [{"url": "u"}]}],
        ),
        (
            [op("add", "/name/0/given/0", value="X"), op("replace", "/name/0/_given", value=[None, None, {"id": "i"}])],
            ["X", "Marie", "Salomea"],
            [None, None, {"id": "i"}],
        ),
        ([op("remove", "/name/0/_given"), op("remove", "/name/0/given/0")], ["Salomea"], None),
    ],
)
def test_a_list_changed_together_with_its_siblings_stays_aligned(
    operations: list[Any], values: Any, siblings: Any
) -> None:
    name = patch.json_patch(PATIENT, operations)["name"][0]
    assert (name["given"], name.get("_given")) == (values, siblings)


def test_a_patch_cannot_double_a_resource_again_and_again() -> None:
    bomb = [op("copy", "/identifier/-", **{"from": "/identifier"}) for _ in range(60)]
    with pytest.raises(Unprocessable, match="copy at most"):
        patch.json_patch(PATIENT, bomb)


def test_a_patch_cannot_nest_without_end() -> None:
    deep = [op("add", "/contact/0" + "/x" * n, value={}) for n in range(1, 990)]
    with pytest.raises(Unprocessable, match="too deeply"):
        patch.json_patch(PATIENT, [*deep, op("copy", "/contact/1", **{"from": "/contact/0"})])


def test_a_patch_has_a_limited_number_of_operations() -> None:
    with pytest.raises(TooLarge):
        patch.json_patch(PATIENT, [op("test", "/active", value=True)] * (patch.MAX_OPERATIONS + 1))
    with pytest.raises(TooLarge):
        patch.fhirpath_patch(PATIENT, parameters(*[operation("delete", "Patient.photo")] * (patch.MAX_OPERATIONS + 1)))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json-patch+json", b'[{"op": "test", "path": "/active", "value": true}]'),
        ("application/json-patch+json; charset=utf-8", b" []\n"),
        ("application/fhir+json", b'{"resourceType": "Parameters"}'),
    ],
)
def test_a_body_is_read_by_its_media_type(content_type: str, body: bytes) -> None:
    assert patch.read(content_type, body)(PATIENT) == PATIENT


@pytest.mark.parametrize(
    ("content_type", "body", "error"),
    [
        ("application/json-patch+json", b"", BadRequest),
        ("application/json-patch+json", b"{}", BadRequest),
        ("application/json-patch+json", b'[], "more": []', BadRequest),
        ("application/json-patch+json", b'[{"op": "remove", "op": "remove", "path": "/active"}]', BadRequest),
        ("application/fhir+json", b"[]", BadRequest),
        ("application/fhir+json", b'{"resourceType": "Patient"}', BadRequest),
        ("application/merge-patch+json", b"{}", UnsupportedMediaType),
        ("", b"[]", UnsupportedMediaType),
    ],
)
def test_a_body_that_is_no_patch_is_refused_before_anything_is_looked_up(
    content_type: str, body: bytes, error: type[IsocenterError]
) -> None:
    with pytest.raises(error):
        patch.read(content_type, body)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "a", "Marie", "/id", "Patient"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abg"), inner, max_size=3),
    max_leaves=6,
)
pointers = st.lists(
    st.sampled_from(["name", "given", "_given", "0", "1", "-", "id", "meta", "identifier", "~1", ""]), max_size=4
).map(lambda parts: "".join(f"/{part}" for part in parts))
operations_ = st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]), "path": pointers | anything},
    optional={"value": anything, "from": pointers},
)


@settings(max_examples=400, deadline=None)
@given(st.lists(operations_, max_size=6))
def test_no_json_patch_breaks_the_door_or_changes_the_identity(operations: list[Any]) -> None:
    before = json.dumps(PATIENT)
    try:
        found = patch.json_patch(PATIENT, operations)
    except (BadRequest, Unprocessable):
        found = PATIENT
    assert (found["resourceType"], found["id"]) == ("Patient", "p1")
    assert json.dumps(PATIENT) == before


# --- FHIRPath Patch --------------------------------------------------------------------------------------------


def operation(kind: str, path: str, *more: dict[str, Any], **plain: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"name": "type", "valueCode": kind}, {"name": "path", "valueString": path}]
    for name, value in plain.items():
        parts.append({"name": name, "valueInteger" if isinstance(value, int) else "valueString": value})
    return {"name": "operation", "part": [*parts, *more]}


def value(**content: Any) -> dict[str, Any]:
    return {"name": "value", **content}


def parameters(*operations: dict[str, Any]) -> dict[str, Any]:
    return {"resourceType": "Parameters", **({"parameter": list(operations)} if operations else {})}


def after(resource: dict[str, Any], *operations: dict[str, Any]) -> dict[str, Any]:
    before = copy.deepcopy(resource)
    found = patch.fhirpath_patch(resource, parameters(*operations))
    assert resource == before
    return found


def person(**elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", **elements}


def numbers(*values: str) -> dict[str, Any]:
    return person(identifier=[{"system": "urn:x", "value": one} for one in values])


def insert(place: int, text: str) -> dict[str, Any]:
    content = value(valueIdentifier={"system": "urn:x", "value": text})
    return operation("insert", "Patient.identifier", content, index=place)


def move(source: int, destination: int) -> dict[str, Any]:
    return operation("move", "Patient.identifier", source=source, destination=destination)


NAMED = person(contact=[{"name": {"text": "a name"}, "gender": "male"}])
MARRIED = person(maritalStatus={"id": "1", "text": "married"})
TIME = {"extension": [{"url": "urn:time", "valueDateTime": "1867-11-07T10:00:00Z"}]}

# name: resource, operations, outcome
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = {
    "nothing": (person(birthDate="1920"), [], person(birthDate="1920")),
    "replace a primitive": (
        person(birthDate="1920-01-01"),
        [operation("replace", "Patient.birthDate", value(valueDate="1930-01-01"))],
        person(birthDate="1930-01-01"),
    ),
    "replacing a primitive replaces its extensions": (
        person(birthDate="1867-11-07", _birthDate=TIME),
        [operation("replace", "Patient.birthDate", value(valueDate="1867", _valueDate={"id": "b"}))],
        person(birthDate="1867", _birthDate={"id": "b"}),
    ),
    "delete a primitive": (person(birthDate="1920"), [operation("delete", "Patient.birthDate")], person()),
    "delete a primitive with its extensions": (
        person(birthDate="1867", _birthDate=TIME),
        [operation("delete", "Patient.birthDate")],
        person(),
    ),
    "delete nothing": (person(active=True), [operation("delete", "Patient.birthDate")], person(active=True)),
    "add a primitive": (
        person(),
        [operation("add", "Patient", value(valueDate="1930-01-01"), name="birthDate")],
        person(birthDate="1930-01-01"),
    ),
    "a path need not begin with the type": (
        person(birthDate="1920"),
        [operation("replace", "birthDate", value(valueDate="1930"))],
        person(birthDate="1930"),
    ),
    "replace a nested primitive": (
        NAMED,
        [operation("replace", "Patient.contact[0].gender", value(valueCode="female"))],
        person(contact=[{"name": {"text": "a name"}, "gender": "female"}]),
    ),
    "replace two levels down": (
        NAMED,
        [operation("replace", "Patient.contact[0].name.text", value(valueString="the name"))],
        person(contact=[{"name": {"text": "the name"}, "gender": "male"}]),
    ),
    "delete a nested primitive": (
        NAMED,
        [operation("delete", "Patient.contact[0].gender")],
        person(contact=[{"name": {"text": "a name"}}]),
    ),
    "deleting the last child deletes the parent": (
        NAMED,
        [operation("delete", "Patient.contact[0].name.text")],
        person(contact=[{"gender": "male"}]),
    ),
    "deleting all deletes the list": (
        person(contact=[{"name": {"text": "a name"}}]),
        [operation("delete", "Patient.contact[0].name.text")],
        person(),
    ),
    "add a nested primitive": (
        person(contact=[{"name": {"text": "a name"}}]),
        [operation("add", "Patient.contact[0]", value(valueCode="male"), name="gender")],
        NAMED,
    ),
    "add a complex": (
        person(),
        [operation("add", "Patient", value(valueCodeableConcept={"text": "married"}), name="maritalStatus")],
        person(maritalStatus={"text": "married"}),
    ),
    "replace a complex": (
        MARRIED,
        [operation("replace", "Patient.maritalStatus", value(valueCodeableConcept={"id": "2", "text": "not"}))],
        person(maritalStatus={"id": "2", "text": "not"}),
    ),
    "delete a complex": (MARRIED, [operation("delete", "Patient.maritalStatus")], person()),
    "add a backbone element": (
        person(),
        [
            operation(
                "add",
                "Patient",
                value(
                    part=[
                        {"name": "name", "valueHumanName": {"text": "a name"}},
                        {"name": "telecom", "valueContactPoint": {"system": "fax", "value": "1"}},
                        {"name": "telecom", "valueContactPoint": {"system": "fax", "value": "2"}},
                        {"name": "gender", "valueCode": "male"},
                    ]
                ),
                name="contact",
            )
        ],
        person(
            contact=[
                {
                    "name": {"text": "a name"},
                    "telecom": [{"system": "fax", "value": "1"}, {"system": "fax", "value": "2"}],
                    "gender": "male",
                }
            ]
        ),
    ),
    "replace a backbone element": (
        NAMED,
        [operation("replace", "Patient.contact[0]", value(part=[{"name": "gender", "valueCode": "other"}]))],
        person(contact=[{"gender": "other"}]),
    ),
    "delete a backbone element": (NAMED, [operation("delete", "Patient.contact[0]")], person()),
    "change the contents of a list": (
        numbers("1", "2"),
        [
            operation("replace", "Patient.identifier[0].value", value(valueString="2")),
            operation("replace", "Patient.identifier[1].value", value(valueString="1")),
        ],
        numbers("2", "1"),
    ),
    "add to a list": (
        numbers("1"),
        [operation("add", "Patient", value(valueIdentifier={"system": "urn:x", "value": "2"}), name="identifier")],
        numbers("1", "2"),
    ),
    "add the first of a list": (
        person(),
        [operation("add", "Patient", value(valueIdentifier={"system": "urn:x", "value": "1"}), name="identifier")],
        numbers("1"),
    ),
    "insert at the end": (numbers("1", "2"), [insert(2, "3")], numbers("1", "2", "3")),
    "insert within": (numbers("1", "2"), [insert(1, "3")], numbers("1", "3", "2")),
    "insert at the beginning": (numbers("1", "2"), [insert(0, "3")], numbers("3", "1", "2")),
    "insert into no list yet": (person(), [insert(0, "1")], numbers("1")),
    "delete the first": (numbers("1", "2", "3"), [operation("delete", "Patient.identifier[0]")], numbers("2", "3")),
    "delete the middle": (numbers("1", "2", "3"), [operation("delete", "Patient.identifier[1]")], numbers("1", "3")),
    "delete the last": (numbers("1", "2", "3"), [operation("delete", "Patient.identifier.last()")], numbers("1", "2")),
    "move up": (numbers("1", "2", "3", "4"), [move(3, 1)], numbers("1", "4", "2", "3")),
    "move to the top": (numbers("1", "2", "3", "4"), [move(3, 0)], numbers("4", "1", "2", "3")),
    "move by one": (numbers("1", "2", "3", "4"), [move(3, 2)], numbers("1", "2", "4", "3")),
    "move down": (numbers("1", "2", "3", "4"), [move(0, 3)], numbers("2", "3", "4", "1")),
    "move twice": (numbers("1", "2", "3", "4"), [move(1, 0), move(2, 1)], numbers("2", "3", "1", "4")),
    "reverse": (numbers("1", "2", "3", "4"), [move(3, 0), move(3, 1), move(3, 2)], numbers("4", "3", "2", "1")),
    "select by a condition": (
        PATIENT,
        [operation("delete", "Patient.identifier.where(system = 'urn:x' and value='1')")],
        PATIENT | {"identifier": PATIENT["identifier"][1:]},
    ),
    "select by a nested condition": (
        NAMED,
        [operation("delete", "Patient.contact.where(name.where(text='a name').exists()).gender")],
        person(contact=[{"name": {"text": "a name"}}]),
    ),
    "select by what is not there": (
        PATIENT,
        [operation("delete", "Patient.name.where(given.empty() or (use != 'nickname'))")],
        PATIENT | {"name": PATIENT["name"][:1]},
    ),
    "replace a narrative": (
        person(text={"status": "generated", "div": "<div>a</div>"}),
        [operation("replace", "Patient.text.div", value(valueString="<div>b</div>"))],
        person(text={"status": "generated", "div": "<div>b</div>"}),
    ),
    "replace a choice by another type": (
        person(deceasedDateTime="1934", _deceasedDateTime={"id": "d"}),
        [operation("replace", "Patient.deceased", value(valueBoolean=True))],
        person(deceasedBoolean=True),
    ),
    "add a choice": (
        person(),
        [operation("add", "Patient", value(valueBoolean=False), name="deceased")],
        person(deceasedBoolean=False),
    ),
    "select a choice by type": (
        person(deceasedDateTime="1934"),
        [operation("delete", "Patient.deceased.ofType(dateTime)")],
        person(),
    ),
    "a choice of another type is not selected": (
        person(deceasedDateTime="1934"),
        [operation("delete", "Patient.deceased.ofType(boolean)")],
        person(deceasedDateTime="1934"),
    ),
    "replace an extension's value": (
        person(birthDate="1867-11-07", _birthDate=TIME),
        [
            operation(
                "replace", "Patient.birthDate.extension('urn:time').value", value(valueDateTime="1867-11-07T11:00:00Z")
            )
        ],
        person(
            birthDate="1867-11-07",
            _birthDate={"extension": [{"url": "urn:time", "valueDateTime": "1867-11-07T11:00:00Z"}]},
        ),
    ),
    "delete a primitive's only extension": (
        person(birthDate="1867", _birthDate=TIME),
        [operation("delete", "Patient.birthDate.extension('urn:time')")],
        person(birthDate="1867"),
    ),
    "add an extension to a primitive": (
        person(birthDate="1867"),
        [
            operation(
                "add",
                "Patient.birthDate",
                value(part=[{"name": "url", "valueUri": "urn:time"}, {"name": "value", "valueString": "noon"}]),
                name="extension",
            )
        ],
        person(birthDate="1867", _birthDate={"extension": [{"url": "urn:time", "valueString": "noon"}]}),
    ),
    "add to a list of primitives with siblings": (
        person(name=[{"given": ["A", "B"], "_given": [None, {"id": "b"}]}]),
        [operation("add", "Patient.name[0]", value(valueString="C"), name="given")],
        person(name=[{"given": ["A", "B", "C"], "_given": [None, {"id": "b"}, None]}]),
    ),
    "insert a primitive with an extension": (
        person(name=[{"given": ["A", "B"]}]),
        [operation("insert", "Patient.name[0].given", value(valueString="C", _valueString={"id": "c"}), index=1)],
        person(name=[{"given": ["A", "C", "B"], "_given": [None, {"id": "c"}, None]}]),
    ),
    "move primitives with their siblings": (
        person(name=[{"given": ["A", "B"], "_given": [None, {"id": "b"}]}]),
        [operation("move", "Patient.name[0].given", source=1, destination=0)],
        person(name=[{"given": ["B", "A"], "_given": [{"id": "b"}, None]}]),
    ),
    "delete a primitive of a list with its sibling": (
        person(name=[{"given": ["A", "B"], "_given": [None, {"id": "b"}]}]),
        [operation("delete", "Patient.name.given[1]")],
        person(name=[{"given": ["A"]}]),
    ),
    "what follows sees what came before": (
        person(),
        [
            operation("add", "Patient", value(part=[{"name": "gender", "valueCode": "male"}]), name="contact"),
            operation("add", "Patient.contact.first()", value(valueHumanName={"text": "b"}), name="name"),
        ],
        person(contact=[{"gender": "male", "name": {"text": "b"}}]),
    ),
    "a contained resource has its own elements": (
        person(contained=[{"resourceType": "Organization", "id": "o", "name": "A"}]),
        [operation("replace", "Patient.contained.where(id='o').name", value(valueString="B"))],
        person(contained=[{"resourceType": "Organization", "id": "o", "name": "B"}]),
    ),
}


@pytest.mark.requirement("I15")
@pytest.mark.parametrize("name", CASES)
def test_fhirpath_patch(name: str) -> None:
    resource, operations, expected = CASES[name]
    assert after(resource, *operations) == expected


def test_a_fhirpath_patch_leaves_the_structure_of_a_resource_whole() -> None:
    for resource, operations, _ in CASES.values():
        issues = validation.validate(after(resource, *operations))
        assert "<div>" in str(resource) or [issue for issue in issues if issue.code != "invariant"] == []


REFUSED = {
    "add below what is missing": operation(
        "add", "Patient.identifier.where(value='1').period", value(valueDateTime="2021-12-01"), name="end"
    ),
    "add what is there and no list": operation("add", "Patient", value(valueDate="1930"), name="birthDate"),
    "add a choice that is there": operation("add", "Patient", value(valueBoolean=True), name="deceased"),
    "add an unknown element": operation("add", "Patient", value(valueString="x"), name="nickname"),
    "replace nothing": operation("replace", "Patient.gender", value(valueCode="male")),
    "replace several": operation("replace", "Patient.identifier.value", value(valueString="x")),
    "delete several": operation("delete", "Patient.identifier"),
    "delete the resource": operation("delete", "Patient"),
    "replace the resource": operation("replace", "Patient", value(resource={"resourceType": "Patient"})),
    "a path with an unknown element": operation("delete", "Patient.identifer[0]"),
    "a condition with an unknown element": operation("delete", "Patient.identifier.where(sytem='urn:x')"),
    "a choice by its JSON name": operation("delete", "Patient.deceasedDateTime"),
    "insert beyond the end": operation("insert", "Patient.identifier", value(valueIdentifier={"value": "x"}), index=3),
    "insert before the beginning": operation("insert", "Patient.contact", value(part=[]), index=-1),
    "insert into no list": operation("insert", "Patient.birthDate", value(valueDate="1930"), index=0),
    "insert into a selection": operation(
        "insert", "Patient.identifier.where(value='1')", value(valueIdentifier={"value": "x"}), index=0
    ),
    "move from beyond": operation("move", "Patient.identifier", source=2, destination=0),
    "move to beyond": operation("move", "Patient.identifier", source=0, destination=2),
    "move in an empty list": operation("move", "Patient.photo", source=0, destination=0),
    "a value of another type": operation("replace", "Patient.birthDate", value(valueBoolean=True)),
    "a complex of another type": operation("add", "Patient", value(valueHumanName={"text": "x"}), name="identifier"),
    "a choice of no allowed type": operation("replace", "Patient.deceased", value(valueString="yes")),
    "the id": operation("replace", "Patient.id", value(valueId="p2")),
    "the version": operation("replace", "Patient.meta.versionId", value(valueId="4")),
}


@pytest.mark.requirement("I15")
@pytest.mark.parametrize("name", REFUSED)
def test_a_fhirpath_patch_that_does_not_fit_is_unprocessable(name: str) -> None:
    wanted: tuple[type[IsocenterError], ...] = (Unprocessable,)
    if name == "insert before the beginning":  # an empty list of parts is no valid Parameters
        wanted = (BadRequest,)
    with pytest.raises(wanted) as caught:
        after(PATIENT, REFUSED[name])
    assert caught.value.issues[0].expression
    assert "Curie" not in str(caught.value)


BAD = {
    "another resource": person(),
    "no resource": [],
    "another parameter": parameters({"name": "patch", "valueString": "x"}),
    "no parts": parameters({"name": "operation", "valueString": "x"}),
    "no type": parameters({"name": "operation", "part": [{"name": "path", "valueString": "Patient.active"}]}),
    "an unknown type": parameters(operation("upsert", "Patient.active", value(valueBoolean=True))),
    "no path": parameters({"name": "operation", "part": [{"name": "type", "valueCode": "delete"}]}),
    "a part twice": parameters(operation("delete", "Patient.active", {"name": "path", "valueString": "Patient.name"})),
    "no value": parameters(operation("replace", "Patient.active")),
    "no name": parameters(operation("add", "Patient", value(valueDate="1930"))),
    "no index": parameters(operation("insert", "Patient.identifier", value(valueIdentifier={"value": "x"}))),
    "an index that is a text": parameters(
        operation("insert", "Patient.identifier", value(valueIdentifier={"value": "x"}), index="1")
    ),
    "an invalid value": parameters(operation("replace", "Patient.birthDate", value(valueDate="yesterday"))),
    "an unknown function": parameters(operation("delete", "Patient.managingOrganization.resolve().name")),
    "an unfinished path": parameters(operation("delete", "Patient.identifier[")),
    "an unfinished condition": parameters(operation("delete", "Patient.identifier.where(system=")),
    "an empty condition": parameters(operation("delete", "Patient.identifier.where()")),
    "something after the path": parameters(operation("delete", "Patient.identifier[0] Patient")),
    "an escape FHIRPath does not know": parameters(operation("delete", "Patient.extension('\\q')")),
    "a path without end": parameters(operation("delete", "Patient" + ".contact" * 500)),
    "conditions without end": parameters(operation("delete", "Patient.name.where(" + "(" * 500)),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_fhirpath_patch_is_a_bad_request(name: str) -> None:
    with pytest.raises(BadRequest):
        patch.fhirpath_patch(PATIENT, BAD[name])


def test_an_error_names_the_operation() -> None:
    with pytest.raises(Unprocessable) as caught:
        after(PATIENT, operation("delete", "Patient.active"), operation("delete", "Patient.contact"))
    assert [issue.expression for issue in caught.value.issues] == ["Parameters.parameter[1]"]


def test_texts_in_paths_may_have_escapes() -> None:
    resource = person(identifier=[{"value": "it's"}, {"value": "é"}])
    assert after(resource, operation("delete", r"identifier.where(value='it\'s')")) == person(
        identifier=[{"value": "é"}]
    )
    assert after(resource, operation("delete", r"identifier.where(value='\u00e9')")) == person(
        identifier=[{"value": "it's"}]
    )


def test_numbers_and_booleans_are_literals_too() -> None:
    resource = {"resourceType": "ImagingStudy", "series": [{"uid": "1", "number": 1}, {"uid": "2", "number": 2}]}
    assert len(after(resource, operation("delete", "ImagingStudy.series.where(number = 2)"))["series"]) == 1
    assert after(
        person(communication=[{"preferred": True}]), operation("delete", "communication.where(preferred=true)")
    ) == (person())


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="Patient.idnfw()[]='01 @\\`where", max_size=40))
def test_no_path_breaks_the_parser(text: str) -> None:
    try:
        path = parse(text, "Patient")
        path.find([])
    except (BadPath, errors.Unprocessable):
        pass
