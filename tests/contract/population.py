"""Resources of several types from small pools of values, so that a random search often finds some and not all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

Json = dict[str, Any]
EXAMPLES = Path(__file__).parents[1] / "data" / "fhir" / "examples"
KINDS = (
    "Organization",
    "Practitioner",
    "Patient",
    "Encounter",
    "ServiceRequest",
    "ImagingStudy",
    "Observation",
    "DiagnosticReport",
    "Provenance",
)
EACH = 12
FAMILY = ("Müller", "Mueller", "muller", "Ärzte", "O'Neil", "van der Berg", "Berg", "Łoś", "Smith, Jr.", "李")
GIVEN = ("Ada", "Adam", "Zoë", "Zoe", "Anne-Marie", "Jo")
CITY = ("Wien", "Wiener Neustadt", "Zürich", "Köln")
LOINC = ("24627-2", "8867-4", "8480-6", "8462-4", "30746-2")
DATES = (
    "2023",
    "2024",
    "2024-02",
    "2024-03",
    "2024-02-29",
    "2024-03-01",
    "2024-03-31",
    "2023-12-31",
    "2024-03-01T10:00:00Z",
    "2024-03-01T10:00:00.250Z",
    "2024-03-01T10:00:30+02:00",
    "2024-02-29T23:59:59.999Z",
    "2024-03-01T00:00:00Z",
    "2024-03-01T00:30:00+01:00",
    "2024-12-31T23:30:00-05:00",
    "1999-06-15",
)
MOMENTS = tuple(one for one in DATES if "T" in one)
DAYS = tuple(one for one in DATES if "T" not in one)
UCUM = "http://unitsofmeasure.org"
TAGS = ({"system": "urn:x", "code": "red"}, {"system": "urn:y", "code": "red"}, {"code": "blue"})
DICOM = "http://dicom.nema.org/resources/ontology/DCM"
AUTHORITIES = ("http://a.example/ids", "http://b.example/ids")


class Population:
    """Makes resources; the same seed makes the same ones."""

    def __init__(self, seed: int, base: str) -> None:
        self.random, self.base = Random(seed), base

    def maybe(self, **elements: Any) -> Json:
        """Each element or not."""
        return {name: value for name, value in elements.items() if self.random.random() < 0.7}

    def one(self, *values: Any) -> Any:
        return self.random.choice(values)

    def identifiers(self) -> list[Json]:
        def made() -> Json:
            value = self.one("1", "2", "a|b", "c,d", "1.2.3")
            one: Json = (
                {"system": self.one(*AUTHORITIES), "value": value} if self.random.random() < 0.8 else {"value": value}
            )
            kind = {
                "coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": self.one("MR", "ACSN")}]
            }
            return one | self.maybe(type=kind | self.maybe(text=self.one("Accession", "Record number")))

        return [made() for _ in range(self.random.randint(1, 2))]

    def concept(self, *codes: str, system: str = "http://loinc.org") -> Json:
        def coding() -> Json:
            code = self.one(*codes)
            return {"code": code} | self.maybe(system=system, display=f"Display of {code}")

        return {"coding": [coding() for _ in range(self.random.randint(1, 2))]} | self.maybe(
            text=self.one("Chest CT", "CT of chest", "Heart rate", "Größe")
        )

    def reference(self, *kinds: str) -> Json:
        kind, number = self.one(*kinds), self.random.randrange(EACH)
        local = f"{kind}/{kind.lower()}-{number}"
        text = self.random.choices(
            (local, f"{self.base}/{local}", f"https://other.example/fhir/{local}", f"{local}/_history/1"), (8, 2, 1, 1)
        )[0]
        return {"reference": text} | ({"identifier": self.identifiers()[0]} if self.random.random() < 0.2 else {})

    def period(self) -> Json:
        first, last = sorted(self.random.sample(("2023-05", "2024-02-29", "2024-03-01", "2024-03-15", "2024-12-31"), 2))
        return self.one({"start": first}, {"end": last}, {"start": first, "end": last})

    def quantity(self) -> Json:
        unit = self.one(
            {"unit": "mm", "system": UCUM, "code": "mm"},
            {"unit": "mm"},
            {"unit": "/min", "system": UCUM, "code": "/min"},
        )
        return {"value": self.one(5.4, 5.35, 5.45, 5, 70, 70.5, 0.1, -1, 120)} | unit

    def names(self) -> list[Json]:
        def made() -> Json:
            full = self.maybe(
                family=self.one(*FAMILY),
                given=self.random.sample(GIVEN, self.random.randint(1, 2)),
                text="Dr. Whole Name",
            )
            return full or {"family": "Berg"}

        return [made() for _ in range(self.random.randint(1, 2))]

    def person(self) -> Json:
        address = {"city": self.one(*CITY), "country": self.one("AT", "DE")} | self.maybe(
            line=["Ring 1"], postalCode="1010"
        )
        contact = {"system": self.one("phone", "email"), "value": self.one("+43 1 2", "a@b.example"), "use": "home"}
        return self.maybe(
            identifier=self.identifiers(),
            name=self.names(),
            gender=self.one("male", "female", "other"),
            birthDate=self.one(*DAYS),
            active=self.one(True, False),
            address=[address],
            telecom=[contact],
        )

    def patient(self) -> Json:
        deceased = self.one(
            {"deceasedBoolean": True}, {"deceasedBoolean": False}, {"deceasedDateTime": self.one(*DATES)}, {}
        )
        return (
            self.person()
            | deceased
            | self.maybe(
                generalPractitioner=[self.reference("Practitioner")],
                managingOrganization=self.reference("Organization"),
            )
        )

    def practitioner(self) -> Json:
        return self.person()

    def organization(self) -> Json:
        return {"name": self.one("Radiology", "Radiologie Wien", "Röntgen")} | self.maybe(
            identifier=self.identifiers(), active=self.one(True, False), partOf=self.reference("Organization")
        )

    def encounter(self) -> Json:
        kind = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": self.one("AMB", "IMP")}
        length = {"value": self.one(1, 2, 90), "unit": "min", "system": UCUM, "code": "min"}
        return {"status": self.one("planned", "finished"), "class": kind} | self.maybe(
            subject=self.reference("Patient"),
            period=self.period(),
            length=length,
            identifier=self.identifiers(),
            serviceProvider=self.reference("Organization"),
        )

    def servicerequest(self) -> Json:
        when = self.one(
            {"occurrenceDateTime": self.one(*DATES)},
            {"occurrencePeriod": self.period()},
            {"occurrenceTiming": {"event": self.random.sample(DAYS, 2)}},
            {},
        )
        fixed = {"status": self.one("active", "draft", "completed"), "intent": self.one("order", "plan")}
        return (
            fixed
            | {"subject": self.reference("Patient")}
            | when
            | self.maybe(
                identifier=self.identifiers(),
                code=self.concept(*LOINC),
                authoredOn=self.one(*DATES),
                requester=self.reference("Practitioner", "Organization"),
                basedOn=[self.reference("ServiceRequest")],
                priority=self.one("routine", "stat"),
                encounter=self.reference("Encounter"),
            )
        )

    def imagingstudy(self) -> Json:
        modalities = [
            {"system": DICOM, "code": one} for one in self.random.sample(("CT", "MR", "US"), self.random.randint(1, 2))
        ]
        series = [
            {"uid": f"1.2.{self.random.randrange(6)}.{number}", "modality": modality}
            | self.maybe(bodySite={"system": "http://snomed.info/sct", "code": self.one("51185008", "69536005")})
            for number, modality in enumerate(modalities)
        ]
        return {"status": self.one("available", "registered"), "subject": self.reference("Patient")} | self.maybe(
            identifier=self.identifiers(),
            started=self.one(*DATES),
            modality=modalities,
            series=series,
            basedOn=[self.reference("ServiceRequest")],
            numberOfInstances=self.one(0, 1, 150, 1000),
            description=self.one("CT Chest", "ct chest with contrast", "Schädel"),
            referrer=self.reference("Practitioner"),
        )

    def observation(self) -> Json:
        def valued() -> Json:
            return self.one(
                {"valueQuantity": self.quantity()},
                {"valueCodeableConcept": self.concept("A", "B", system="urn:s")},
                {"valueString": self.one("High", "higher", "hoch")},
                {"valueDateTime": self.one(*DATES)},
                {},
            )

        when = self.one(
            {"effectiveDateTime": self.one(*DATES)},
            {"effectivePeriod": self.period()},
            {"effectiveInstant": self.one(*MOMENTS)},
            {},
        )
        code = self.concept(*LOINC)
        # obs-7: a component does not repeat the observation's own code.
        others = [one for one in LOINC if one not in {coding["code"] for coding in code["coding"]}]
        components = [{"code": self.concept(*others)} | valued() for _ in range(self.random.randint(1, 2))]
        members = self.maybe(hasMember=[self.reference("Observation")]) if self.random.random() < 0.5 else {}
        fixed = {"status": self.one("final", "preliminary"), "code": code}
        components = [{name: value for name, value in one.items() if name != "valueDateTime"} for one in components]
        return (
            fixed
            | when
            | valued()
            | members
            | self.maybe(
                subject=self.reference("Patient"),
                component=components,
                basedOn=[self.reference("ServiceRequest")],
                category=[
                    self.concept(
                        "imaging", "vital-signs", system="http://terminology.hl7.org/CodeSystem/observation-category"
                    )
                ],
                encounter=self.reference("Encounter"),
                derivedFrom=[self.reference("ImagingStudy")],
            )
        )

    def diagnosticreport(self) -> Json:
        when = self.one({"effectiveDateTime": self.one(*DATES)}, {"effectivePeriod": self.period()}, {})
        return (
            {"status": self.one("final", "registered"), "code": self.concept(*LOINC)}
            | when
            | self.maybe(
                subject=self.reference("Patient"),
                identifier=self.identifiers(),
                issued=self.one(*MOMENTS),
                result=[self.reference("Observation"), self.reference("Observation")],
                basedOn=[self.reference("ServiceRequest")],
                imagingStudy=[self.reference("ImagingStudy")],
                performer=[self.reference("Practitioner", "Organization")],
            )
        )

    def provenance(self) -> Json:
        targets = [self.reference(self.one("Patient", "ImagingStudy", "Observation")) for _ in range(2)]
        return {"target": targets, "recorded": self.one(*MOMENTS), "agent": [{"who": self.reference("Practitioner")}]}

    def resources(self) -> Iterator[Json]:
        for kind in KINDS:
            for number in range(EACH):
                meta = self.maybe(
                    tag=[self.one(*TAGS)],
                    source=self.one("http://src.example/a", "http://src.example/a/b", "urn:example:x"),
                    profile=[self.one("http://p.example/one", "http://p.example/two")],
                )
                made = {"resourceType": kind, "id": f"{kind.lower()}-{number}"} | ({"meta": meta} if meta else {})
                yield made | getattr(self, kind.lower())()


def examples() -> Iterator[Json]:
    """HL7's own; its Bundles are not searched into, and one performer is of a type that R4 does not allow."""
    for path in sorted(EXAMPLES.glob("*.json")):
        if not path.name.startswith(("Bundle-", "Observation-clinical-gender")):
            yield json.loads(path.read_text("utf-8"))
