"""From words to queries: what each word means, and which words are refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

import pytest

from app.errors import BadRequest
from app.fhir import conditions, search
from app.fhir.registry import offers
from app.fhir.search import Include, Search
from app.fhir.site import Site
from app.store.query import (
    Below,
    Clause,
    Condition,
    Date,
    Ids,
    Key,
    Link,
    Number,
    Present,
    Query,
    Referred,
    Target,
    Text,
    Token,
)

BASE = "https://pacs.example/fhir"
MODALITY = Token("modality", None, "CT")


def read(resource_type: str, query: str, **how: Any) -> Search:
    return search.parse(offers()[resource_type], parse_qsl(query, keep_blank_values=True), BASE, **how)


def only(resource_type: str, query: str) -> tuple[Condition, ...]:
    """The alternatives of the one clause that is read."""
    (clause,) = read(resource_type, query).query.clauses
    assert not clause.negated
    return clause.any_of


def refused(resource_type: str, query: str) -> tuple[str, str]:
    with pytest.raises(BadRequest) as caught:
        read(resource_type, query)
    (issue,) = caught.value.issues
    return str(issue.expression), issue.diagnostics


def on(resource_type: str, *conditions: Condition) -> Query:
    return Query(resource_type, (Clause(conditions),), natural=offers()[resource_type].sort)


def day(year: int, month: int, day: int, zone: Any = UTC) -> int:
    return int(datetime(year, month, day, tzinfo=zone).timestamp() * 1000)


# --- tokens, strings, uris ------------------------------------------------------------------------------------

VALUES: list[tuple[str, str, Condition]] = [
    ("ImagingStudy", "modality=CT", MODALITY),
    ("ImagingStudy", "modality=http://d|CT", Token("modality", "http://d", "CT")),
    ("ImagingStudy", "modality=|CT", Token("modality", "", "CT")),
    ("ImagingStudy", "modality=http://d|", Token("modality", "http://d", None)),
    ("ImagingStudy", r"identifier=a\|b|c\,d", Token("identifier", "a|b", "c,d")),
    ("ImagingStudy", r"identifier=a\\b", Token("identifier", None, r"a\b")),
    ("ImagingStudy", "modality:text=Computed  TOMO", Text("modality:text", "starts", "computed tomo")),
    ("Patient", "identifier:of-type=http://t|MR|12", Token("identifier:of-type", "", "http://t|MR|12")),
    ("Patient", "name=Mü", Text("name", "starts", "mu")),
    ("Patient", "name:contains=Mü", Text("name", "contains", "mu")),
    ("Patient", "name:exact=Mü", Text("name", "exact", "Mü")),
    ("Patient", "_profile=http://p", Token("_profile", None, "http://p")),
    ("Patient", "_profile:below=http://p", Below("_profile", "http://p")),
    ("Patient", "_tag=s|c", Token("_tag", "s", "c")),
    ("Patient", "active=true", Token("active", None, "true")),
    ("Patient", "_id=a,b", Ids(frozenset({"a", "b"}))),
]


@pytest.mark.requirement("S4", "S5")
@pytest.mark.parametrize(("kind", "query", "expected"), VALUES)
def test_a_value_becomes_its_condition(kind: str, query: str, expected: Condition) -> None:
    assert only(kind, query) == (expected,)


@pytest.mark.requirement("S9")
def test_a_comma_means_or_and_repetition_means_and() -> None:
    clauses = read("ImagingStudy", "modality=CT,MR&modality=US").query.clauses
    assert clauses == (
        Clause((MODALITY, Token("modality", None, "MR"))),
        Clause((Token("modality", None, "US"),)),
    )


def test_not_negates_all_alternatives_together() -> None:
    (clause,) = read("ImagingStudy", "modality:not=CT,MR").query.clauses
    assert clause == Clause((MODALITY, Token("modality", None, "MR")), negated=True)


def test_missing_asks_for_the_lack_of_a_value() -> None:
    for value, negated in (("true", True), ("false", False)):
        (clause,) = read("ImagingStudy", f"started:missing={value}").query.clauses
        assert clause == Clause((Present("started", "date"),), negated=negated)
    assert only("Observation", "value-quantity:missing=false") == (Present("value-quantity", "number"),)


# --- dates and numbers ----------------------------------------------------------------------------------------


@pytest.mark.requirement("S6")
def test_a_date_is_the_interval_its_precision_implies() -> None:
    assert only("ImagingStudy", "started=2024-03") == (Date("started", "eq", day(2024, 3, 1), day(2024, 4, 1)),)
    for prefix in ("ne", "gt", "lt", "ge", "le", "sa", "eb"):
        (found,) = only("ImagingStudy", f"started={prefix}2024-03-01")
        assert found == Date("started", prefix, day(2024, 3, 1), day(2024, 3, 2))


def test_a_plus_that_arrived_as_a_blank_is_a_zone() -> None:
    expected = only("ImagingStudy", "started=2024-03-01T10:00:00%2B02:00")
    assert only("ImagingStudy", "started=2024-03-01T10:00:00+02:00") == expected


def test_a_time_without_zone_is_the_sites() -> None:
    zone = ZoneInfo("Europe/Vienna")
    (found,) = search.together([offers()["ImagingStudy"]], [("started", "2024-03-01")], Site(BASE, zone))
    (clause,) = found.query.clauses
    assert clause.any_of == (Date("started", "eq", day(2024, 3, 1, zone), day(2024, 3, 2, zone)),)


def test_approximately_is_a_tenth_of_the_distance_to_now() -> None:
    (found,) = only("ImagingStudy", "started=ap2000")
    assert isinstance(found, Date)
    assert found.lo < day(1999, 1, 1) < day(2002, 1, 1) < found.hi


NUMBERS = [
    ("5.4", 5.4, 5.35, 5.45),
    ("100", 100, 99.5, 100.5),
    ("100.00", 100, 99.995, 100.005),
    ("1e2", 100, 95, 105),
    ("1.00e2", 100, 99.5, 100.5),
    ("-0.5", -0.5, -0.55, -0.45),
    ("5.40e-3", 0.0054, 0.005395, 0.005405),
]


@pytest.mark.requirement("S8")
@pytest.mark.parametrize(("text", "exact", "lo", "hi"), NUMBERS)
def test_a_number_means_the_interval_that_its_digits_imply(text: str, exact: float, lo: float, hi: float) -> None:
    assert only("ImagingStudy", f"number-of-instances={text}") == (Number("number-of-instances", "eq", exact, lo, hi),)


@pytest.mark.requirement("S8")
def test_a_quantity_has_system_and_code_or_a_code_of_any_system() -> None:
    assert only("Observation", "value-quantity=gt5.4|http://unitsofmeasure.org|mg") == (
        Number("value-quantity", "gt", 5.4, 5.35, 5.45, "http://unitsofmeasure.org", "mg"),
    )
    assert only("Observation", "value-quantity=5.4||mg,7") == (
        Number("value-quantity", "eq", 5.4, 5.35, 5.45, None, "mg"),
        Number("value-quantity", "eq", 7, 6.5, 7.5),
    )


def test_approximately_is_a_tenth_of_a_number() -> None:
    assert only("Observation", "value-quantity=ap50") == (Number("value-quantity", "ap", 50, 45, 55),)


@pytest.mark.requirement("S8")
def test_a_composite_folds_its_first_part_into_the_name() -> None:
    assert only("Observation", "code-value-quantity=8480-6$gt5.4") == (
        Number("code-value-quantity$8480-6", "gt", 5.4, 5.35, 5.45),
    )
    assert only("Observation", r"code-value-concept=s|a\$b$c,|d$t|e") == (
        Token("code-value-concept$s|a$b", None, "c"),
        Token("code-value-concept$|d", "t", "e"),
    )
    assert only("DocumentReference", "relationship=DocumentReference/1$replaces") == (
        Token("relationship$DocumentReference/1", None, "replaces"),
    )


# --- references -----------------------------------------------------------------------------------------------

REFERENCES: list[tuple[str, Condition]] = [
    ("patient=1", Target("patient", "Patient", "1")),
    ("patient=Patient/1", Target("patient", "Patient", "1")),
    ("subject=1", Target("subject", None, "1")),
    ("subject:Patient=1", Target("subject", "Patient", "1")),
    ("subject:Patient=Patient/1", Target("subject", "Patient", "1")),
    ("subject=Patient/1/_history/2", Target("subject", "Patient", "1")),
    (f"subject={BASE}/Patient/1", Target("subject", "Patient", "1")),
    ("subject=https://other.example/fhir/Patient/1", Target("subject", "", "https://other.example/fhir/Patient/1")),
    ("subject=urn:uuid:0c3151bd", Target("subject", "", "urn:uuid:0c3151bd")),
    ("subject:identifier=s|v", Token("subject:identifier", "s", "v")),
    ("basedOn=ServiceRequest/1", Target("basedon", "ServiceRequest", "1")),
]


@pytest.mark.parametrize(("query", "expected"), REFERENCES)
def test_a_reference_is_read_in_each_of_its_spellings(query: str, expected: Condition) -> None:
    assert only("ImagingStudy", query) == (expected,)


@pytest.mark.requirement("S10")
def test_a_chain_asks_what_the_reference_leads_to() -> None:
    patient = Link("patient", on("Patient", Token("identifier", "s", "v")))
    assert only("ImagingStudy", "patient.identifier=s|v") == (patient,)
    assert only("DiagnosticReport", "imaging-study.patient.identifier=s|v") == (
        Link("imaging-study", on("ImagingStudy", patient)),
    )


def test_an_untyped_chain_tries_every_type_that_has_the_parameter() -> None:
    assert only("ImagingStudy", "subject.identifier=v") == tuple(
        Link("subject", on(kind, Token("identifier", None, "v"))) for kind in ("Device", "Group", "Patient")
    )
    assert only("ImagingStudy", "subject.birthdate=2000") == only("ImagingStudy", "subject:Patient.birthdate=2000")


def test_a_chain_takes_modifiers_at_its_end() -> None:
    (found,) = only("ImagingStudy", "patient.active:missing=true")
    inner = Query("Patient", (Clause((Present("active", "token"),), negated=True),))
    assert found == Link("patient", inner)


def test_imr_asks_for_the_parts_of_a_name_by_path() -> None:
    assert only("DiagnosticReport", "patient.name.given=A") == only("DiagnosticReport", "patient.given=A")
    assert only("DiagnosticReport", "patient.name.family:exact=B") == only("DiagnosticReport", "patient.family:exact=B")


@pytest.mark.requirement("S10")
def test_has_asks_for_something_that_leads_here() -> None:
    final = on("DiagnosticReport", Token("status", None, "final"))
    assert only("ImagingStudy", "_has:DiagnosticReport:imaging-study:status=final") == (
        Referred("imaging-study", final),
    )
    nested = on("ServiceRequest", Referred("based-on", final))
    assert only("Patient", "_has:ServiceRequest:patient:_has:DiagnosticReport:based-on:status=final") == (
        Referred("patient", nested),
    )
    assert only("ImagingStudy", "patient._has:ServiceRequest:patient:status=active") == (
        Link("patient", on("Patient", Referred("patient", on("ServiceRequest", Token("status", None, "active"))))),
    )


# --- the shape of the answer ----------------------------------------------------------------------------------


def test_the_natural_order_is_the_newest_first() -> None:
    assert read("ImagingStudy", "").query.order == (Key("sort", "column", descending=True),)
    assert read("ImagingStudy", "").query.natural == "started"


def test_any_indexed_parameter_sorts() -> None:
    assert read("ImagingStudy", "_sort=-started,_lastUpdated,-_id,modality,started").query.order == (
        Key("sort", "column", descending=True),
        Key("updated", "column", descending=False),
        Key("id", "column", descending=True),
        Key("modality", "token", descending=False),
    )
    assert read("Observation", "_sort=-value-quantity").query.order == (Key("value-quantity", "number"),)


def test_count_is_clamped_and_nothing_may_be_asked_for() -> None:
    assert [read("Patient", query).count for query in ("", "_count=7", "_count=999999999", "_count=0")] == [
        50,
        7,
        1000,
        0,
    ]
    assert read("Patient", "_count=0").counts_only
    assert read("Patient", "_summary=count").counts_only


def test_includes_are_read_with_star_target_and_iteration() -> None:
    found = read(
        "DiagnosticReport", "_include=DiagnosticReport:imagingStudy&_include:recurse=ImagingStudy:subject:Patient"
    )
    assert found.include == (
        Include("DiagnosticReport", "imaging-study"),
        Include("ImagingStudy", "subject", "Patient", iterate=True),
    )
    assert found.applied == (
        ("_include", "DiagnosticReport:imaging-study"),
        ("_include:iterate", "ImagingStudy:subject:Patient"),
    )
    assert {one.param for one in read("Endpoint", "_include=*").include} == {"organization"}
    assert Include("Provenance", "target") in read("ImagingStudy", "_revinclude=*").revinclude
    assert all(one.resource_type == "Provenance" for one in read("ImagingStudy", "_revinclude=Provenance:*").revinclude)


def test_an_alias_is_applied_under_the_declared_name() -> None:
    found = read("DiagnosticReport", "basedOn.patient.name.given=x&_lastupdated=ge2024&resultsInterpreter=1&status=")
    assert found.applied == (
        ("based-on.patient.given", "x"),
        ("_lastUpdated", "ge2024"),
        ("results-interpreter", "1"),
    )


# --- refusals -------------------------------------------------------------------------------------------------

REFUSED = [
    ("foo=1", "foo"),
    ("foo=", "foo"),
    ("_text=x", "_text"),
    ("_content=x", "_content"),
    ("_contained=true", "_contained"),
    ("_filter=x", "_filter"),
    ("_count=-1", "_count"),
    ("_count=1&_count=2", "_count"),
    ("_pretty=true&_pretty=false", "_pretty"),
    ("_count:exact=1", "_count"),
    ("_total=some", "_total"),
    ("_summary=all", "_summary"),
    ("_summary=true&_elements=id", "_elements"),
    ("_elements=id,colour", "_elements"),
    ("_elements=series.colour", "_elements"),
    ("_elements=Colour.red", "_elements"),
    ("_summary=text&_include=ImagingStudy:endpoint", "_summary"),
    ("_sort=colour", "_sort"),
    ("_sort=patient.name", "_sort"),
    ("_sort=_id,", "_sort"),
    ("_include=ImagingStudy:status", "_include"),
    ("_include=ImagingStudy:colour", "_include"),
    ("_include=ImagingStudy:endpoint:Patient", "_include"),
    ("_include=ImagingStudy", "_include"),
    ("_include=Endpoint:organization", "_include"),
    ("_include:exact=ImagingStudy:endpoint", "_include"),
    ("_include=AuditEvent:agent", "_include"),
    ("_revinclude=Endpoint:organization", "_revinclude"),
    ("_revinclude=Colour:red", "_revinclude"),
    ("status=|", "status"),
    ("status=a,,b", "status"),
    ("status=a|b|c", "status"),
    ("status:missing=x", "status"),
    ("status:text=x", "status"),
    ("status:in=http://v", "status"),
    ("status:below=x", "status"),
    ("status:colour=x", "status"),
    ("modality:of-type=a|b|c", "modality"),
    ("identifier:of-type=a|b", "identifier"),
    ("_profile:above=x", "_profile"),
    ("started=foo", "started"),
    ("started=xx2024", "started"),
    ("started=2024-13", "started"),
    ("started:exact=2024", "started"),
    ("_id:not=x", "_id"),
    ("_id=a,", "_id"),
    ("_lastUpdated=x", "_lastUpdated"),
    ("number-of-instances=many", "number-of-instances"),
    ("number-of-instances=1e999", "number-of-instances"),
    ("number-of-instances=1|s|c", "number-of-instances"),
    ("patient=Device/1", "patient"),
    ("patient=a b", "patient"),
    ("subject:Practitioner=x", "subject"),
    ("subject:Patient=Device/1", "subject"),
    ("patient.colour=x", "patient"),
    ("subject:Patient.colour=x", "subject:Patient.colour"),
    ("patient.birthdate=x", "patient.birthdate"),
    ("status.code=x", "status"),
    ("endpoint.endpoint=x", "endpoint"),
    ("_has:Observation=x", "_has"),
    ("_has:Colour:patient:code=x", "_has"),
    ("_has:Observation:patient:code=x", "_has"),
    ("_has:AuditEvent:entity:action=x", "_has"),
    ("_has:DiagnosticReport:imaging-study:colour=x", "_has:DiagnosticReport:imaging-study:colour"),
    ("_has:DiagnosticReport:imaging-study=x", "_has"),
]


@pytest.mark.requirement("S3", "S5")
@pytest.mark.parametrize(("query", "named"), REFUSED)
def test_what_is_not_understood_is_refused_by_name(query: str, named: str) -> None:
    assert refused("ImagingStudy", query)[0] == f"http.{named}"


def test_a_field_of_a_form_that_nobody_filled_in_restricts_nothing() -> None:
    found = read("ImagingStudy", "status=&patient.name=&modality=CT")
    assert (found.query.clauses, found.applied) == ((Clause((MODALITY,)),), (("modality", "CT"),))


def test_a_chain_has_an_end() -> None:
    assert read("ServiceRequest", "based-on:ServiceRequest." * 5 + "status=x")
    named, told = refused("ServiceRequest", "based-on:ServiceRequest." * 6 + "status=x")
    assert named.endswith(".status")
    assert "at most 5" in told


def test_a_refusal_guesses_what_was_meant_and_lists_what_there_is() -> None:
    _, told = refused("ImagingStudy", "patinet=1")
    assert "patient?" in told
    assert all(name in told for name in ("modality", "started", "_id", "_sort", "_has"))
    assert "did you mean" not in refused("ImagingStudy", "zzz=1")[1]


def test_a_nul_and_too_many_values_are_refused() -> None:
    with pytest.raises(BadRequest):
        read("Patient", "name=a%00b")
    for query in ("identifier=" + ",".join(["a"] * 501), "_id=" + ",".join(map(str, range(5001)))):
        with pytest.raises(BadRequest) as caught:
            read("Patient", query)
        assert caught.value.issues[0].code == "too-costly"
    chained = "&".join(["subject.identifier=a"] * 200)
    with pytest.raises(BadRequest):
        read("ImagingStudy", chained)


def test_lenient_ignores_and_tells_what_it_ignored() -> None:
    found = read("ImagingStudy", "foo=1&patient=1&_sort=colour&started=x&_count=1&_count=2", lenient=True)
    assert found.applied == (("patient", "1"), ("_count", "1"))
    assert [issue.expression for issue in found.ignored] == ["http.foo", "http._sort", "http.started", "http._count"]
    assert {issue.severity for issue in found.ignored} == {"warning"}


def test_a_condition_needs_criteria() -> None:
    assert not search.has_criteria(read("Patient", "_count=1&identifier="))
    assert search.has_criteria(read("Patient", "identifier=1"))


def test_every_declared_modifier_is_read() -> None:
    values = {"missing": "true", "of-type": "a|b|c"}
    for kind, offer in offers().items():
        for name, parameter in offer.search.items():
            for modifier in conditions.modifiers(parameter):
                assert len(read(kind, f"{name}:{modifier}={values.get(modifier, 'x')}").query.clauses) == 1
