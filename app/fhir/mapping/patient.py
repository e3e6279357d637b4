"""Patients between DICOM's Patient Module (PS3.3 C.7.1.1) and FHIR Patient (https://hl7.org/fhir/R4/patient.html)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.fhir.mapping import codes, values
from app.fhir.mapping.codes import Json

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.valuerep import PersonName

IDEOGRAPHIC = "IDE"
PHONETIC = "SYL"
REPRESENTATION = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"
GENDER_TO_SEX = {"male": "M", "female": "F", "other": "O"}
SEX_TO_GENDER = {sex: gender for gender, sex in GENDER_TO_SEX.items()}
PLACEHOLDER_TAG = {"system": "https://isocenter.dev/fhir/CodeSystem/patient-origin", "code": "from-images"}


def person_name(names: list[Json]) -> str:
    """FHIR HumanNames as one DICOM person name: the official one, then its ideographic and phonetic forms."""
    plain = [name for name in names if _representation(name) is None]
    official = next((name for name in plain if name.get("use") == "official"), plain[0] if plain else {})
    wanted = (IDEOGRAPHIC, PHONETIC)
    others = [next((name for name in names if _representation(name) == kind), {}) for kind in wanted]
    groups = [_group(name) for name in (official, *others)]
    return "=".join(groups).rstrip("=")


def human_names(value: PersonName | str | None) -> list[Json]:
    """A DICOM person name as FHIR HumanNames, one per component group."""
    groups = codes.line(str(value or "")).split("=")
    kinds = (None, IDEOGRAPHIC, PHONETIC)
    return [found for group, kind in zip(groups, kinds, strict=False) if (found := _human_name(group, kind))]


def sex(gender: str | None) -> str:
    """Patient's Sex (0010,0040); unknown stays empty."""
    return GENDER_TO_SEX.get(gender or "", "")


def from_images(header: Dataset, identifier: Json | None) -> Json:
    """A placeholder Patient for images of somebody no order is known of."""
    patient: Json = {"resourceType": "Patient", "meta": {"tag": [PLACEHOLDER_TAG]}}
    if identifier:
        patient["identifier"] = [identifier]
    names = human_names(header.get("PatientName"))
    born = values.day(header.get("PatientBirthDate"))
    gender = SEX_TO_GENDER.get((values.text(header.get("PatientSex")) or "").upper())
    found: dict[str, Any] = {"name": names, "birthDate": born.isoformat() if born else None, "gender": gender}
    return patient | {key: value for key, value in found.items() if value}


def is_placeholder(patient: Json) -> bool:
    """Whether only images tell of this patient."""
    return PLACEHOLDER_TAG in patient.get("meta", {}).get("tag", [])


def _representation(name: Json) -> str | None:
    extensions: list[Json] = name.get("extension", [])
    return next((entry.get("valueCode") for entry in extensions if entry.get("url") == REPRESENTATION), None)


def _group(name: Json) -> str:
    given: list[str] = name.get("given", [])
    family = name.get("family") or ("" if given else name.get("text", ""))
    parts = [family, " ".join(given[:1]), " ".join(given[1:]), _joined(name, "prefix"), _joined(name, "suffix")]
    # The delimiters of a person name cannot be escaped (PS3.5 6.2.1).
    clean = [part.translate(str.maketrans({"^": " ", "=": " ", "\\": " "})) for part in parts]
    return "^".join(clean).rstrip("^")[:64]


def _joined(name: Json, element: str) -> str:
    return " ".join(name.get(element, []))


def _human_name(group: str, kind: str | None) -> Json | None:
    family, given, middle, prefix, suffix = [*(part.strip() for part in group.split("^")), "", "", "", "", ""][:5]
    found: Json = {"use": "official"} if kind is None else {}
    if kind:
        found["extension"] = [{"url": REPRESENTATION, "valueCode": kind}]
    givens = [part for part in (given, middle) if part]
    parts = {
        "family": family,
        "given": givens,
        "prefix": [prefix] if prefix else [],
        "suffix": [suffix] if suffix else [],
    }
    filled = {key: value for key, value in parts.items() if value}
    return found | filled if filled else None
