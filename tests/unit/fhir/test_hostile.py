"""Whatever is sent, the door answers soon: accepted, or refused with issues; ISOCENTER_FUZZ says how often to try."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import BadRequest, Issue
from app.fhir import parsing, validation
from tests.fhir_examples import examples

TRIES = int(os.environ.get("ISOCENTER_FUZZ", "150"))
SMALL = sorted(name for name, body in examples().items() if len(body) < 4000)
MEGABYTE = 1024 * 1024

texts = st.text(max_size=20) | st.sampled_from(
    [
        "",
        " ",
        "\x00",
        "2020-02-30",
        "urn:oid:",
        "urn:uuid:1",
        "#",
        "#a",
        "Patient/",
        "Patient?",
        "http://",
        "<div/>",
        "é",
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
anything = st.recursive(
    scalars, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(texts, inside, max_size=3), max_leaves=8
)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys."""
    found: list[tuple[Any, Any]] = []
    waiting = [node]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item))
        found += [(item, key) for key in keys]
        waiting += [item[key] for key in keys if isinstance(item[key], dict | list)]
    return found


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """An example of HL7 with a few elements replaced, renamed or removed."""
    resource = json.loads(examples()[draw(st.sampled_from(SMALL))])
    for _ in range(draw(st.integers(1, 4))):
        node, key = draw(st.sampled_from(places(resource)))
        match draw(st.sampled_from(["replace", "remove", "add", "wrap"])):
            case "replace":
                node[key] = draw(anything)
            case "wrap":
                node[key] = [node[key]]
            case "add" if isinstance(node, dict):
                node[draw(st.sampled_from(["_" + str(key), "extension", "contained", "id", "value", "text"]))] = draw(
                    anything
                )
            case _:
                del node[key]
        if not resource:
            break
    return json.dumps(resource).encode()


def answer(body: bytes) -> list[Issue]:
    try:
        return validation.judge(body)[1]
    except BadRequest as refused:
        return list(refused.issues)


@settings(max_examples=TRIES, deadline=None)
@given(spoiled())
def test_a_spoiled_resource_is_accepted_or_refused_and_nothing_else(body: bytes) -> None:
    for issue in answer(body):
        assert issue.diagnostics
        assert issue.expression is None or issue.expression.isprintable()


@settings(max_examples=TRIES, deadline=None)
@given(spoiled())
def test_what_is_accepted_stays_accepted_when_written_again(body: bytes) -> None:
    if not answer(body):
        resource = validation.parse(body)
        assert answer(msgspec.json.Encoder(decimal_format="number").encode(resource)) == []


PIECES = [
    b'"a"',
    b":",
    b" :",
    b",",
    b"{",
    b"}",
    b"[",
    b"]",
    b"1",
    b"01",
    b"1.50",
    b"-0",
    b"1e3",
    b"1e2000",
    b"0" * 1001,
]
PIECES += [
    b"true",
    b"null",
    b"NaN",
    b'"\\":"',
    b'"\\\\":',
    b'"\\u0022:"',
    b'"\\ud800"',
    b'"\xc3\xa9"',
    b'"\xff"',
    b'"\t"',
]
PIECES += [b"\n", b" ", b"\t", b'"b"', b'{"a":1,"a":2}', b'{"a" :1,"a":2}', b'{"a":"b"}', b"\xef\xbb\xbf", b"\x00"]


@settings(max_examples=TRIES * 10, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join), st.booleans())
def test_the_quick_reader_is_as_strict_as_the_slow_one(inside: bytes, is_object: bool) -> None:
    body = b'{"x":' + inside + b"}" if is_object else inside
    assert read(parsing.parse, body) == read(parsing.read_slowly, body)


def read(reader: Any, body: bytes) -> str:
    try:
        return repr(reader(body))
    except BadRequest as refused:
        return refused.issues[0].diagnostics


HOSTILE: dict[str, bytes] = {
    "lists": b"[" * 16 * MEGABYTE,
    "lists in an object": b'{"resourceType":"Patient","name":' + b"[" * 16 * MEGABYTE,
    "objects": b'{"a":' * (3 * MEGABYTE),
    "closed lists": b'{"resourceType":"Patient","name":[' + b"[]," * (MEGABYTE) + b"[]]}",
    "empty objects": b'{"resourceType":"Patient","name":[' + b"{}," * (MEGABYTE // 4) + b"{}]}",
    "the same name": b'{"resourceType":"Patient",' + b'"id":"1",' * MEGABYTE + b'"id":"1"}',
    "unknown names": b'{"resourceType":"Patient"' + b"".join(b',"x%d":1' % index for index in range(200_000)) + b"}",
    "a long number": b'{"resourceType":"Patient","multipleBirthInteger":' + b"9" * MEGABYTE + b"}",
    "a long fraction": b'{"resourceType":"Observation","valueQuantity":{"value":0.' + b"9" * MEGABYTE + b"}}",
    "quotes": b'{"resourceType":"Patient","id":"' + b'\\":' * MEGABYTE + b'"}',
    "nested extensions": b'{"resourceType":"Patient","extension":['
    + b'{"url":"u","extension":[' * 45
    + b"]}" * 45
    + b"]}",
}
REPEATED = {
    "blanks in a code": ("/language", "a " * 500_000),
    "blanks at the end of a code": ("/language", "a" + " " * 1_000_000),
    "slashes in a reference": ("/managingOrganization/reference", "http://" + "a/" * 500_000),
    "letters in a reference": ("/managingOrganization/reference", "a" * 1_000_000),
    "a search in a reference": ("/managingOrganization/reference", "Organization?" + "a" * 1_000_000 + " "),
    "points in an OID": ("/implicitRules", "urn:oid:1" + ".1" * 500_000 + "."),
    "points in an id": ("/id", "." * 1_000_000),
    "digits in a date": ("/birthDate", "1" * 1_000_000),
    "tags": ("/text/div", '<div xmlns="http://www.w3.org/1999/xhtml">' + "<b>" * 300_000),
    "styles": (
        "/text/div",
        '<div xmlns="http://www.w3.org/1999/xhtml" style="' + "url ( " * 50_000 + " " * 50_000 + '">x</div>',
    ),
    "links": ("/text/div", '<div xmlns="http://www.w3.org/1999/xhtml"><a href="' + "a" * 900_000 + '!">x</a></div>'),
    "half a name": ("/maritalStatus/coding/0/system", "urn:uuid:" + "a" * 1_000_000),
}


def repeated(where: str, value: str) -> bytes:
    resource: dict[str, Any] = {"resourceType": "Patient", "text": {"status": "generated"}}
    *steps, last = where.split("/")[1:]
    node: Any = resource
    for step, following in zip(steps, where.split("/")[2:], strict=True):
        if isinstance(node, list):
            node.append({})
            node = node[0]
        else:
            node = node.setdefault(step, [] if following.isdecimal() else {})
    node[last] = value
    return json.dumps(resource).encode()


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_body_is_refused_soon(body: bytes) -> None:
    began = time.monotonic()
    assert answer(body)
    # A hundred times what it takes: only growth without bound is a fault.
    assert time.monotonic() - began < 60


def test_a_refusal_does_not_grow_with_the_number_of_faults() -> None:
    issues = answer(HOSTILE["empty objects"])
    assert len(issues) == validation.MAX_ISSUES + 1
    assert issues[-1].severity == "information"
    assert issues[-2].expression == f"Patient.name[{validation.MAX_ISSUES - 1}]"


@pytest.mark.parametrize("name", REPEATED)
def test_a_hostile_text_is_judged_soon(name: str) -> None:
    began = time.monotonic()
    answer(repeated(*REPEATED[name]))
    assert time.monotonic() - began < 60
