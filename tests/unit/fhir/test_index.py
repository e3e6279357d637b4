"""What the index keeps of each type of value, and whose a resource is."""

from __future__ import annotations

import json
from pathlib import Path
from sys import float_info
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.fhir import dates, index
from app.fhir.registry import offer
from app.store.query import UNDATED, Index

Json = dict[str, Any]

# An OperationOutcome is an answer, which nobody stores.
EXAMPLES = sorted(
    path
    for path in (Path(__file__).parents[2] / "data" / "fhir" / "examples").glob("*.json")
    if not path.name.startswith("OperationOutcome")
)
BASE = "https://pacs.example.org/fhir"
LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"
ACSN = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}


def indexed(resource_type: str, **elements: Any) -> Index:
    return index.extract({"resourceType": resource_type, **elements}, offer(resource_type), BASE)


def tokens(found: Index, name: str) -> set[tuple[str, str]]:
    return {(system, value) for param, system, value in found.tokens if param == name}


def references(found: Index, name: str) -> set[tuple[str, str]]:
    return {(kind, value) for param, kind, value in found.references if param == name}


def strings(found: Index, name: str) -> set[str]:
    return {text for param, _, text in found.strings if param == name}


def numbers(found: Index, name: str) -> set[tuple[float, float, str, str]]:
    return {tuple(rest) for param, *rest in found.numbers if param == name}  # type: ignore[misc]


def spans(found: Index, name: str) -> set[tuple[int, int]]:
    return {(lo, hi) for param, lo, hi in found.dates if param == name}


def day(text: str) -> dates.Interval:
    found = dates.interval(text)
    assert found
    return found


# --- all of it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_rows_of_hl7s_examples_stand_under_parameters_of_their_type(path: Path) -> None:
    resource = json.loads(path.read_text("utf-8"))
    known = offer(resource["resourceType"])
    found = index.extract(resource, known)
    rows = [*found.tokens, *found.references, *found.dates, *found.strings, *found.numbers]
    assert rows
    suffixes = {name.partition(":")[2] for name, *_ in rows if "$" not in name}
    assert {name.partition("$")[0].partition(":")[0] for name, *_ in rows} <= known.search.keys()
    assert suffixes <= {"", "text", "of-type", "identifier"}


def test_nothing_in_a_resource_is_nothing_in_the_index_but_what_asks_for_presence() -> None:
    assert indexed("ServiceRequest") == Index()
    assert indexed("Patient").tokens == {("deceased", "", "false")}
    assert indexed("Binary") == Index()


def test_a_null_that_holds_an_extensions_place_is_no_value() -> None:
    found = indexed("Patient", name=[{"given": [None, "Ann"], "family": "Lee"}])
    assert strings(found, "given") == {"Ann"}
    assert strings(found, "name") == {"Ann", "Lee"}


# --- tokens ---------------------------------------------------------------------------------------------------


def test_a_code_has_the_system_of_its_value_set() -> None:
    found = indexed("ImagingStudy", status="available")
    assert tokens(found, "status") == {("http://hl7.org/fhir/imagingstudy-status", "available")}


def test_a_coding_is_a_token_and_its_display_a_text() -> None:
    found = indexed("ImagingStudy", modality=[{"system": "urn:dcm", "code": "CT", "display": "Computed  Tomography"}])
    assert tokens(found, "modality") == {("urn:dcm", "CT")}
    assert found.strings == {("modality:text", "computed tomography", "Computed  Tomography")}


def test_a_concept_is_found_by_each_coding_and_by_its_text() -> None:
    code = {"coding": [{"system": LOINC, "code": "1", "display": "One"}, {"code": "2"}], "text": "Both"}
    found = indexed("DiagnosticReport", code=code)
    assert tokens(found, "code") == {(LOINC, "1"), ("", "2")}
    assert strings(found, "code:text") == {"One", "Both"}


def test_a_coding_without_a_code_is_no_token() -> None:
    found = indexed("ImagingStudy", series=[{"uid": "1.2", "bodySite": {"display": "CHEST"}}])
    assert tokens(found, "bodysite") == set()
    assert strings(found, "bodysite:text") == {"CHEST"}


def test_an_identifier_is_found_by_system_and_value_by_its_type_and_by_its_types_text() -> None:
    kind = {"coding": [{"system": "urn:types", "code": "MR"}], "text": "Medical record"}
    found = indexed("Patient", identifier=[{"type": kind, "system": "urn:mrn", "value": "7"}, {"value": "8"}])
    assert tokens(found, "identifier") == {("urn:mrn", "7"), ("", "8")}
    assert tokens(found, "identifier:of-type") == {("", "urn:types|MR|7")}
    assert strings(found, "identifier:text") == {"Medical record"}


def test_an_identifier_without_a_value_is_no_token() -> None:
    found = indexed("Patient", identifier=[{"system": "urn:mrn", "type": {"coding": [{"code": "MR"}]}}])
    assert tokens(found, "identifier") | tokens(found, "identifier:of-type") == set()


def test_a_contact_is_found_by_its_value_and_by_its_kind() -> None:
    telecom = [{"system": "phone", "value": "555"}, {"system": "email", "value": "a@example.org"}, {"system": "sms"}]
    found = indexed("Patient", telecom=telecom)
    assert tokens(found, "telecom") == {("", "555"), ("", "a@example.org")}
    assert tokens(found, "phone") == {("", "555")}
    assert tokens(found, "email") == {("", "a@example.org")}


def test_booleans_are_words() -> None:
    assert tokens(indexed("Patient", active=False), "active") == {("", "false")}
    assert tokens(indexed("Patient", active=True), "active") == {("", "true")}


@pytest.mark.parametrize(
    ("elements", "answer"),
    [
        ({}, "false"),
        ({"deceasedBoolean": False}, "false"),
        ({"deceasedBoolean": True}, "true"),
        ({"deceasedDateTime": "2024-01-01"}, "true"),
    ],
)
def test_who_died_is_a_yes_or_no(elements: Json, answer: str) -> None:
    assert tokens(indexed("Patient", **elements), "deceased") == {("", answer)}


def test_an_accession_number_is_an_identifier_of_that_type_and_of_no_other() -> None:
    typed = [{"type": ACSN, "system": "urn:acc", "value": "A1"}, {"system": "urn:acc", "value": "A2"}]
    other = {"type": {"coding": [{"system": "urn:x", "code": "ACSN"}]}, "value": "A3"}
    for resource_type in ("ImagingStudy", "ServiceRequest"):
        found = indexed(resource_type, identifier=[*typed, other])
        assert tokens(found, "accession") == {("urn:acc", "A1")}
        assert len(tokens(found, "identifier")) == 3


def test_a_modality_is_found_in_the_study_and_in_its_series() -> None:
    found = indexed("ImagingStudy", modality=[{"code": "CT"}], series=[{"modality": {"code": "SR"}}])
    assert tokens(found, "modality") == {("", "CT"), ("", "SR")}


def test_a_thousand_instances_are_a_thousand_tokens() -> None:
    sop_class = {"system": "urn:ietf:rfc:3986", "code": "urn:oid:1.2.840.10008.5.1.4.1.1.2"}
    series = [
        {"uid": f"1.{number}", "instance": [{"uid": f"1.{number}.{one}", "sopClass": sop_class} for one in range(200)]}
        for number in range(5)
    ]
    found = indexed("ImagingStudy", series=series)
    assert len(tokens(found, "instance")) == 1000
    assert len(tokens(found, "series")) == 5
    assert tokens(found, "dicom-class") == {("urn:ietf:rfc:3986", "urn:oid:1.2.840.10008.5.1.4.1.1.2")}


def test_addresses_and_profiles_are_uris() -> None:
    assert tokens(indexed("Device", url="urn:x", meta={"profile": ["urn:p|2"]}), "url") == {("", "urn:x")}
    assert tokens(indexed("Device", meta={"profile": ["urn:p|2"]}), "_profile") == {("", "urn:p|2")}


# --- references -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("Patient/1", ("Patient", "1")),
        ("Patient/1/_history/3", ("Patient", "1")),
        (f"{BASE}/Patient/1", ("Patient", "1")),
        (f"{BASE}/Patient/1/_history/3", ("Patient", "1")),
        ("https://other.example.org/fhir/Patient/1", ("", "https://other.example.org/fhir/Patient/1")),
        ("https://other.example.org/fhir/Patient/1/_history/3", ("", "https://other.example.org/fhir/Patient/1")),
        (f"{BASE}x/Patient/1", ("", f"{BASE}x/Patient/1")),
        ("urn:uuid:6f8e", ("", "urn:uuid:6f8e")),
    ],
)
def test_a_reference_is_local_or_stands_as_it_is_without_its_version(text: str, pair: tuple[str, str]) -> None:
    assert references(indexed("ImagingStudy", subject={"reference": text}), "subject") == {pair}
    assert index.target({"reference": text}, BASE) == pair


def test_what_is_contained_leads_nowhere() -> None:
    assert indexed("ImagingStudy", subject={"reference": "#p"}).references == frozenset()
    assert index.target("#p") is None


def test_only_patients_are_a_patient_wherever_the_type_is_told() -> None:
    def patient(**subject: Any) -> set[tuple[str, str]]:
        return references(indexed("ImagingStudy", subject=subject), "patient")

    assert patient(reference="Patient/1") == {("Patient", "1")}
    assert patient(reference="Device/1") == set()
    assert patient(reference="urn:uuid:1", type="Patient") == {("", "urn:uuid:1")}
    assert patient(reference="urn:uuid:1") == set()
    assert patient(reference="https://x.example/fhir/Patient/1") == {("", "https://x.example/fhir/Patient/1")}
    assert patient(reference="https://x.example/fhir/Device/1") == set()


def test_a_reference_is_found_by_the_identifier_it_has() -> None:
    known = {"system": "urn:mrn", "value": "7"}
    found = indexed("ImagingStudy", subject={"identifier": known})
    assert tokens(found, "subject:identifier") == tokens(found, "patient:identifier") == {("urn:mrn", "7")}
    found = indexed("ImagingStudy", subject={"identifier": known, "type": "Device"})
    assert tokens(found, "subject:identifier") == {("urn:mrn", "7")}
    assert tokens(found, "patient:identifier") == set()


def test_a_canonical_is_found_with_its_version_and_without() -> None:
    found = indexed("Procedure", instantiatesCanonical=["http://x.example/PlanDefinition/1|2", "#p"])
    assert references(found, "instantiates-canonical") == {
        ("", "http://x.example/PlanDefinition/1|2"),
        ("", "http://x.example/PlanDefinition/1"),
    }


def test_the_first_entry_of_a_document_is_its_composition() -> None:
    entries = [{"resource": {"resourceType": kind, "id": kind.lower()}} for kind in ("Composition", "Patient")]
    found = indexed("Bundle", entry=entries)
    assert references(found, "composition") == {("Composition", "composition")}
    assert references(found, "message") == set()


def test_the_study_of_an_observation_is_what_it_is_derived_from() -> None:
    derived = [{"reference": "ImagingStudy/s"}, {"reference": "Media/m"}]
    found = indexed("Observation", derivedFrom=derived)
    assert references(found, "study") == {("ImagingStudy", "s")}
    assert references(found, "derived-from") == {("ImagingStudy", "s"), ("Media", "m")}
    assert references(indexed("DiagnosticReport", imagingStudy=derived[:1]), "imaging-study") == {("ImagingStudy", "s")}


# --- dates ----------------------------------------------------------------------------------------------------


def test_periods_are_open_where_they_have_no_end() -> None:
    start, end = "2024-01-01", "2024-02"
    assert spans(indexed("Encounter", period={"start": start, "end": end}), "date") == {(day(start)[0], day(end)[1])}
    assert spans(indexed("Encounter", period={"start": start}), "date") == {(day(start)[0], dates.MOST)}
    assert spans(indexed("Encounter", period={"end": end}), "date") == {(dates.LEAST, day(end)[1])}
    assert spans(indexed("Encounter", period={"extension": [{"url": "urn:x"}]}), "date") == set()


def test_of_a_schedule_only_the_outer_limits_count() -> None:
    events = {"event": ["2024-01-05", "2024-01-01", "2024-01-09"]}
    found = indexed("ServiceRequest", occurrenceTiming=events)
    assert spans(found, "occurrence") == {(day("2024-01-01")[0], day("2024-01-09")[1])}
    bounds = {"repeat": {"boundsPeriod": {"start": "2024-01-01"}}}
    assert spans(indexed("ServiceRequest", occurrenceTiming=bounds), "occurrence") == {
        (day("2024-01-01")[0], dates.MOST)
    }
    assert spans(indexed("ServiceRequest", occurrenceTiming={"repeat": {"frequency": 2}}), "occurrence") == set()


def test_what_a_date_cannot_be_read_from_is_no_date() -> None:
    assert indexed("Procedure", performedString="last spring").dates == frozenset()


def test_the_natural_date_is_what_a_resource_is_sorted_by() -> None:
    assert indexed("ImagingStudy", started="2024-01-01").sort == day("2024-01-01")[0]
    assert indexed("ImagingStudy").sort == UNDATED
    assert indexed("Patient", birthDate="2024-01-01").sort == UNDATED


def test_a_date_without_a_zone_is_read_in_the_sites() -> None:
    zone = ZoneInfo("Australia/Sydney")
    study = {"resourceType": "ImagingStudy", "started": "2024-01-01"}
    found = index.extract(study, offer("ImagingStudy"), BASE, zone)
    assert found.dates == {("started", *(dates.interval("2024-01-01", zone) or ()))}
    assert found.sort == day("2024-01-01")[0] - 11 * 3_600_000


# --- strings --------------------------------------------------------------------------------------------------


def test_names_are_found_by_each_part_without_case_and_accents() -> None:
    name = {"family": "Müller-Weiß", "given": ["Zoë", "ANN"], "prefix": ["Dr."], "use": "official"}
    found = indexed("Patient", name=[name])
    assert {(folded, text) for param, folded, text in found.strings if param == "name"} == {
        ("muller-weiss", "Müller-Weiß"),
        ("zoe", "Zoë"),
        ("ann", "ANN"),
        ("dr.", "Dr."),
    }


def test_addresses_are_found_by_each_part_but_their_use() -> None:
    address = {"use": "home", "line": ["1 High St", "Flat 2"], "city": "Leeds", "country": "GB", "text": "all"}
    found = indexed("Patient", address=[address])
    assert strings(found, "address") == {"1 High St", "Flat 2", "Leeds", "GB", "all"}
    assert tokens(found, "address-use") == {("http://hl7.org/fhir/address-use", "home")}


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        *(("  A \t b ", "a b"), ("STRASSE", "strasse"), ("Straße", "strasse"), ("İstanbul", "istanbul")),
        *(("ﬁn", "fin"), ("Ångström", "angstrom"), ("山田", "山田"), ("", "")),
    ],
)
def test_folding_leaves_no_case_no_accents_and_single_blanks(text: str, folded: str) -> None:
    assert index.fold(text) == folded
    assert index.fold(index.fold(text)) == folded


# --- numbers --------------------------------------------------------------------------------------------------


def quantity(**value: Any) -> set[tuple[float, float, str, str]]:
    return numbers(indexed("Observation", valueQuantity=value), "value-quantity")


def test_a_quantity_is_found_by_its_code_and_by_its_unit() -> None:
    assert quantity(value=5.4, system=UCUM, code="mm") == {(5.4, 5.4, UCUM, "mm")}
    assert quantity(value=5.4, unit="mmHg", system=UCUM, code="mm[Hg]") == {
        (5.4, 5.4, UCUM, "mm[Hg]"),
        (5.4, 5.4, "", "mmHg"),
    }
    assert quantity(value=5.4, unit="mm", system=UCUM, code="mm") == {(5.4, 5.4, UCUM, "mm")}
    assert quantity(value=5, unit="mm") == {(5.0, 5.0, "", "mm")}
    assert quantity(value=0) == {(0.0, 0.0, "", "")}
    assert quantity(unit="mm") == set()


def test_a_comparator_leaves_one_side_open() -> None:
    most = float_info.max
    assert quantity(value=5, comparator="<") == quantity(value=5, comparator="<=") == {(-most, 5.0, "", "")}
    assert quantity(value=5, comparator=">") == quantity(value=5, comparator=">=") == {(5.0, most, "", "")}


def test_ranges_and_samples_are_quantities_too() -> None:
    def context(**value: Any) -> set[tuple[float, float, str, str]]:
        uses = [{"code": {"code": "age"}, "valueRange": value}]
        return numbers(indexed("ValueSet", useContext=uses), "context-quantity")

    assert context(low={"value": 1, "code": "a"}, high={"value": 2, "code": "a"}) == {(1.0, 2.0, "", "a")}
    assert context(low={"value": 1}) == {(1.0, float_info.max, "", "")}
    assert context(high={"value": 2, "unit": "years"}) == {(-float_info.max, 2.0, "", "years")}
    assert context() == set()
    sampled = indexed("Observation", valueSampledData={"origin": {"value": 2048, "code": "mV"}, "period": 10})
    assert numbers(sampled, "value-quantity") == {(2048.0, 2048.0, "", "mV")}


def test_durations_and_counts_are_numbers() -> None:
    found = indexed("Encounter", length={"value": 56, "system": UCUM, "code": "min"})
    assert numbers(found, "length") == {(56.0, 56.0, UCUM, "min")}
    found = indexed("ImagingStudy", numberOfInstances=12)
    assert numbers(found, "number-of-instances") == {(12.0, 12.0, "", "")}


# --- composites -----------------------------------------------------------------------------------------------


def test_a_composite_pairs_values_of_one_place_only() -> None:
    def component(code: str, value: int) -> Json:
        return {"code": {"coding": [{"system": LOINC, "code": code}]}, "valueQuantity": {"value": value}}

    found = indexed("Observation", component=[component("8480-6", 107), component("8462-4", 60)])
    name = "component-code-value-quantity"
    assert numbers(found, f"{name}$8480-6") == numbers(found, f"{name}${LOINC}|8480-6") == {(107.0, 107.0, "", "")}
    assert numbers(found, f"{name}$8462-4") == {(60.0, 60.0, "", "")}


def test_a_composite_of_two_places_looks_into_both() -> None:
    value = {"valueCodeableConcept": {"coding": [{"code": "x"}], "text": "X"}}
    inner = {"code": {"coding": [{"code": "b"}]}, **value}
    found = indexed("Observation", code={"coding": [{"code": "a"}]}, component=[inner], **value)
    assert tokens(found, "combo-code-value-concept$a") == tokens(found, "combo-code-value-concept$|b") == {("", "x")}
    assert tokens(found, "code-value-concept$a") == {("", "x")}
    assert tokens(found, "code-value-concept$b") == set()
    assert not any("$" in name for name, *_ in found.strings)


def test_the_second_part_is_kept_by_its_own_type() -> None:
    code = {"coding": [{"code": "a"}]}
    assert strings(indexed("Observation", code=code, valueString="Grade II"), "code-value-string$a") == {"Grade II"}
    found = indexed("Observation", code=code, valueDateTime="2024-01-01")
    assert spans(found, "code-value-date$a") == {day("2024-01-01")}
    found = indexed("Group", characteristic=[{"code": code, "valueBoolean": True}])
    assert tokens(found, "characteristic-value$a") == {("", "true")}


def test_the_first_part_may_be_a_reference() -> None:
    relates = {"code": "replaces", "target": {"reference": "DocumentReference/1"}}
    found = indexed("DocumentReference", relatesTo=[relates])
    wanted = {("http://hl7.org/fhir/document-relationship-type", "replaces")}
    assert tokens(found, "relationship$DocumentReference/1") == tokens(found, "relationship$1") == wanted


def test_a_composite_without_its_first_part_is_none() -> None:
    assert not any("$" in row[0] for row in indexed("Observation", valueQuantity={"value": 1}).numbers)


# --- whose it is ----------------------------------------------------------------------------------------------


def owner(resource_type: str, **elements: Any) -> str | None:
    found = indexed(resource_type, **elements).patient_id
    assert found == index.patient_id({"resourceType": resource_type, **elements}, offer(resource_type), BASE)
    return found


def test_a_resource_belongs_to_the_patient_it_is_about() -> None:
    one = {"reference": "Patient/1"}
    assert owner("Patient", id="1") == "1"
    assert owner("Task", **{"for": one}) == "1"
    assert owner("AllergyIntolerance", patient=one) == "1"
    assert owner("Binary", securityContext=one) == "1"
    for resource_type in ("ImagingStudy", "Observation", "Media", "Flag", "Basic", "Procedure", "Encounter"):
        assert owner(resource_type, subject=one) == "1"
        assert owner(resource_type, subject={"reference": f"{BASE}/Patient/1/_history/2"}) == "1"


@pytest.mark.parametrize(
    "subject",
    [
        {"reference": "Group/1"},
        {"reference": "https://other.example.org/fhir/Patient/1"},
        {"reference": "urn:uuid:1", "type": "Patient"},
        {"reference": "#1"},
        {"identifier": {"value": "1"}, "type": "Patient"},
        {"display": "Ann"},
    ],
    ids=lambda subject: str(next(iter(subject.values()))),
)
def test_what_is_about_nobody_here_belongs_to_nobody(subject: Json) -> None:
    assert owner("ImagingStudy", subject=subject, contained=[{"resourceType": "Patient", "id": "1"}]) is None


def test_types_without_a_patient_belong_to_nobody_whatever_they_say() -> None:
    one = {"reference": "Patient/1"}
    assert owner("Group", member=[{"entity": one}]) is None
    assert owner("Bundle", entry=[{"resource": {"resourceType": "Patient", "id": "1"}}]) is None
    assert owner("AuditEvent", entity=[{"what": one}]) is None


def appointment(*actors: Json, **elements: Any) -> str | None:
    return owner("Appointment", participant=[{"actor": actor} for actor in actors], **elements)


def test_an_appointment_belongs_to_its_patient_among_others_who_come() -> None:
    one, again = {"reference": "Patient/1"}, {"reference": f"{BASE}/Patient/1"}
    others = [{"reference": "Practitioner/1"}, {"reference": "https://x.example/Location/2"}, {"display": "Room 3"}]
    assert appointment(one, again, *others) == "1"
    assert appointment(*others) is None
    contained = [{"resourceType": "Practitioner", "id": "p"}]
    assert appointment(one, {"reference": "#p"}, contained=contained) == "1"


@pytest.mark.parametrize(
    "other",
    [
        {"reference": "Patient/2"},
        {"reference": "https://other.example.org/fhir/Patient/1"},
        {"reference": "urn:uuid:2"},
        {"reference": "#p"},
        {"reference": "#nothing"},
        {"identifier": {"value": "2"}},
        {"identifier": {"value": "2"}, "type": "Patient"},
    ],
    ids=str,
)
def test_where_somebody_else_is_named_or_may_be_it_belongs_to_nobody(other: Json) -> None:
    contained = [{"resourceType": "Patient", "id": "p"}]
    assert appointment({"reference": "Patient/1"}, other, contained=contained) is None


def test_a_record_of_what_was_done_belongs_to_the_one_patient_among_its_targets() -> None:
    targets = [{"reference": "DiagnosticReport/r"}, {"reference": "Patient/1"}]
    assert owner("Provenance", target=targets) == "1"
    assert owner("Provenance", target=targets[:1]) is None
    assert owner("Provenance", target=[*targets, {"reference": "Patient/2"}]) is None
