"""Scopes: nothing breaks the parser, and no negotiation gives more than was asked or allowed (checklist S01-S03)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.access import VERBS, Scope, parse_scope, parse_scopes
from app.smart import scopes
from app.smart.facts import facts

TYPES = ("*", "Patient", "ImagingStudy", "Observation", "Task")
ABOUT = {"study_uid": "1.2.3", "imaging_study_id": "i1", "order_id": "o1"}

criteria = st.lists(
    st.tuples(st.sampled_from(["identifier", "category", "code", "_filter", "status:not"]), st.text(min_size=1)),
    max_size=2,
)
resource_scope = st.builds(
    lambda context, kind, verbs, found: scopes.render(Scope(context, kind, frozenset(verbs), tuple(found))),
    st.sampled_from(["patient", "user", "system"]),
    st.sampled_from(TYPES),
    st.sets(st.sampled_from(VERBS), min_size=1),
    criteria,
)
word = st.one_of(
    resource_scope,
    st.sampled_from(["openid", "launch", "isocenter/sign", "isocenter/launch", "patient/Observation.dus", "user/*.*"]),
    st.text(max_size=20),
)
wish = st.lists(word, max_size=8).map(" ".join)


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    """S01"""
    asked = scopes.parse(text)
    assert set(asked.text.split()) <= set(text.split())


@given(resource_scope)
def test_a_rendered_scope_reads_back_as_itself(text: str) -> None:
    scope = parse_scope(text)
    assert scope is not None
    assert parse_scope(scopes.render(scope)) == scope


@given(wish, wish)
def test_negotiation_never_widens(asked: str, allowed: str) -> None:
    """S08"""
    for scope, text in scopes.within(scopes.parse(asked), allowed).scopes:
        assert parse_scope(text) == scope
        assert scopes.covers(asked, text)
        assert any(scopes.intersect(scope, bound) == scope for bound in parse_scopes(allowed)[0])


@given(wish)
def test_a_person_never_gets_system_scopes_or_words(asked: str) -> None:
    """S12 S13"""
    got = scopes.for_person(scopes.parse(asked), cap="user/*.cruds isocenter/launch", patient=False)
    assert {scope.context for scope, _ in got.scopes} <= {"user"}
    assert not {"isocenter/launch", "isocenter/introspect", "isocenter/sign"} & set(got.words)


@given(wish)
def test_a_study_grant_holds_bound_patient_scopes_only(asked: str) -> None:
    """S05 S13"""
    for scope, text in scopes.for_study(scopes.parse(asked), ABOUT).scopes:
        assert parse_scope(text) == scope
        assert scope.context == "patient"
        assert scope.resource_type in facts().study
        assert scope.verbs <= frozenset("rus")
        if scope.resource_type == "ImagingStudy":
            assert ("identifier", "urn:dicom:uid|urn:oid:1.2.3") in scope.criteria


def test_reports_without_a_known_order_are_dropped() -> None:
    asked = scopes.parse("patient/DiagnosticReport.rs patient/ServiceRequest.r patient/ImagingStudy.rs")
    got = scopes.for_study(asked, {**ABOUT, "order_id": None})
    assert got.text == "patient/ImagingStudy.rs?identifier=urn:dicom:uid|urn:oid:1.2.3"


def test_a_wide_wish_is_granted_as_narrower_granular_scopes() -> None:
    """S09"""
    got = scopes.within(
        scopes.parse("patient/Observation.rs"),
        "patient/Observation.rs?category=laboratory patient/Observation.s?category=vital-signs",
    )
    assert got.text == "patient/Observation.rs?category=laboratory patient/Observation.s?category=vital-signs"


def test_v1_scopes_stay_v1_and_read_never_means_write() -> None:
    """S02 S03"""
    asked = scopes.parse("patient/Observation.read patient/Patient.* patient/Task.write")
    assert scopes.within(asked, "patient/*.cruds").text == asked.text
    assert scopes.within(asked, "patient/*.rs").text == "patient/Observation.read patient/Patient.rs"


def test_criteria_we_cannot_enforce_drop_the_scope() -> None:
    """S06"""
    for query in ("code:in=x", "subject.name=x", "code=", "_filter=x", "value-quantity=1"):
        assert scopes.parse(f"patient/Observation.rs?{query}").text == ""
    assert scopes.parse("patient/*.rs?code=1").text == ""


def test_less_is_covered_and_more_is_not() -> None:
    """F02"""
    held = "openid patient/Observation.rs patient/Task.r?status=ready"
    assert scopes.covers(held, "patient/Observation.r?category=laboratory")
    assert scopes.covers(held, "openid")
    assert not scopes.covers(held, "patient/Task.r")
    assert not scopes.covers(held, "patient/Observation.rsu")
    assert not scopes.covers(held, "user/Observation.r")
    assert not scopes.covers(held, "patient/Observation.r nonsense/x")
