"""Write what docs/imaging-study.md says of the mapping's tables, and one traced ImagingStudy of each modality.

Usage: python scripts/imaging_study.py. A contract test compares the page with what this makes.
"""

from __future__ import annotations

import re
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import orjson
import pydicom
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import UID

from app.dicom import phantom, uids
from app.fhir.mapping import imaging_series, imaging_study, quality, terms, values
from app.fhir.mapping.imaging_study import Links, SeriesFacts
from app.fhir.mapping.rows import Row

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "imaging-study.md"
SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
OURS = ROOT / "tests" / "data" / "dicom"
BLOCK = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
ZONE = ZoneInfo("Europe/Berlin")

# What stands in no table of the mapping: it is the same for each study, or comes from the archive's index.
SERVER = {
    "resourceType": "",
    "id": "the server's: from Study Instance UID and patient",
    "status": "the server's: `registered` without images, `available` with them",
    "endpoint": "the server's own DICOMweb gateway",
    "basedOn": "the order, with its accession number as identifier",
    "encounter": "the order's",
    "numberOfSeries": "counted",
    "numberOfInstances": "counted",
    "series": "see below",
    "instance": "see below",
}
STUDY: Mapping[str, tuple[str, ...]] = {
    "identifier": ("StudyInstanceUID", "AccessionNumber", "IssuerOfAccessionNumberSequence", "StudyID"),
    "modality": ("Modality",),
    "subject": ("PatientID", "IssuerOfPatientID"),
    "extension": (),
}
SERIES: Mapping[str, tuple[str, ...]] = {"uid": ("SeriesInstanceUID",), "extension": ("TransferSyntaxUID",)}
INSTANCE: Mapping[str, tuple[str, ...]] = {
    "uid": ("SOPInstanceUID",),
    "sopClass": ("SOPClassUID",),
    "number": ("InstanceNumber",),
    "title": imaging_series.TITLES,
    "extension": ("NumberOfFrames", "TransferSyntaxUID"),
}
NOTES = {
    "referrer": "the order's requester first; a name without a resource",
    "interpreter": "a client's own first",
    "location": "a client's own first",
    "procedureCode": "the order's `code` first",
    "reasonCode": "the order's first; then of the image, then of the requests it answers",
    "identifier": "`urn:dicom:uid`; type ACSN with the issuer's system; `usual`",
    "subject": "by number and issuer, never by name",
    "started": "with the image's offset, else in the zone of the machine or the site; without a usable time a day",
    "bodySite": "PS3.16 Annex L as SNOMED CT; else the region as coded; else the words",
    "laterality": "that of the image where the series has one image",
    "performer": "performers (PRF), operators (SPRF), the machine",
    "specimen": "by number and issuer, else by UID",
    "title": "reports, documents, presentation states, segmentations, plans",
}


# --- the tables ------------------------------------------------------------------------------------------------


def table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown; a cell without content shows a dash."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") or "–" for cell in row) + " |\n" for row in lines)


def attribute(keyword: str) -> str:
    """An attribute as people look it up."""
    tag = tag_for_keyword(keyword) or 0
    return f"{dictionary_description(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def traced(fixed: Mapping[str, tuple[str, ...]], rows: Iterable[Row]) -> dict[str, tuple[str, ...]]:
    """Element to attributes; an element of both has the attributes of both."""
    found = dict(fixed)
    for row in rows:
        found[row.element] = (*found.get(row.element, ()), *row.keywords)
    return found


TRACED = {
    "": traced(STUDY, imaging_study.STUDY),
    "series.": traced(SERIES, imaging_series.SERIES),
    "series.instance.": dict(INSTANCE),
}


def elements() -> str:
    """Every element, the attributes it comes from, and what decides."""
    rows: list[tuple[str, str, str]] = []
    for place, found in TRACED.items():
        for element, keywords in found.items():
            if element == "extension" and not place:
                continue
            rows.append((f"`{place}{element}`", "; ".join(map(attribute, keywords)), NOTES.get(element, "")))
    rows += [(f"`{name}`", "", text) for name, text in SERVER.items() if text and text != "see below"]
    return table(("element", "attributes", "and"), rows)


def flags() -> str:
    """Every issue of the extension data-quality."""
    return table(("issue", "meaning"), [(f"`{code}`", text) for code, text in quality.ISSUES.items()])


def extensions() -> str:
    """The extensions that an ImagingStudy may have."""
    book = tomllib.loads((ROOT / "capability" / "definitions" / "own.toml").read_text("utf-8"))["extension"]
    rows = [
        (f"`{name}`", ", ".join(f"`{where}`" for where in row["on"]), row["text"])
        for name, row in book.items()
        if name in EXTENSIONS
    ]
    return table(("extension", "on", "what it says"), rows)


EXTENSIONS = frozenset(
    url.rpartition("/")[2]
    for url in (
        terms.QUALITY, terms.TAKEN_FROM, terms.ANATOMIC_REGION, terms.TRANSFER_SYNTAX, terms.NUMBER_OF_FRAMES,
        terms.WITHDRAWN,
    )
)  # fmt: skip


# --- examples --------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """Images of one modality: where they are from, and the datasets."""

    modality: str
    source: str
    images: tuple[Dataset, ...]


class Listed(NamedTuple):
    """An instance as the archive lists it."""

    sop_uid: str
    sop_class: str
    number: str
    frames: str
    syntax: str


FILES = {
    "NM": SHIPPED / "JPEG2000.dcm",
    "OT": SHIPPED / "SC_rgb_small_odd.dcm",
    "SEG": OURS / "highdicom" / "seg_image_ct_binary.dcm",
    "SR": OURS / "generated" / "tid1500_1410_verified.dcm",
    "KO": OURS / "generated" / "kos_of_interest.dcm",
    "DOC": OURS / "generated" / "encapsulated_pdf.dcm",
    "RTSTRUCT": SHIPPED / "rtstruct.dcm",
    "RTPLAN": SHIPPED / "rtplan.dcm",
    "RTDOSE": SHIPPED / "rtdose.dcm",
    "ECG": SHIPPED / "waveform_ecg.dcm",
}


@cache
def examples() -> tuple[Example, ...]:
    """One of each modality: our own phantom as scanners show it, then files."""
    made = [
        Example(modality, "the test object that `isocenter` itself makes", _phantom(modality)) for modality in KINDS
    ]
    return (*made, *(Example(modality, _origin(path), (_file(path),)) for modality, path in FILES.items()))


KINDS = tuple(phantom.KINDS)


def _origin(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(OURS) else f"pydicom's {path.name}"
    return f"[{path.name}](../{name})" if path.is_relative_to(OURS) else name


def _file(path: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        found.decode()
    return found


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _phantom(modality: str) -> tuple[Dataset, ...]:
    common, at = Dataset(), datetime(2026, 3, 1, 10, 15, tzinfo=ZONE)
    common.SpecificCharacterSet, common.Modality = "ISO_IR 192", modality
    common.PatientName, common.PatientID = "Beispiel^Ada", "4711"
    common.StudyInstanceUID, common.StudyID = UID(f"2.25.{1000 + KINDS.index(modality)}"), "S1"
    common.StudyDate, common.StudyTime, common.AccessionNumber = f"{at:%Y%m%d}", f"{at:%H%M%S}", "A-1"
    common.StudyDescription, common.SeriesDescription, common.SeriesNumber = f"{modality} of a phantom", "Phantom", 1
    if modality == "CT":
        _say_all(common)
    small = phantom.Phantom(slices=2, matrix=16)
    series = phantom.Series(common, UID(f"{common.StudyInstanceUID}.1"), at, seed="docs")
    return tuple(phantom.images(modality, small, series))


def _say_all(common: Dataset) -> None:
    """What a header may say besides: once is enough."""
    common.ReferringPhysicianName, common.PerformingPhysicianName = "Refer^Rita^^Dr.", "Perform^Paul"
    common.OperatorsName, common.NameOfPhysiciansReadingStudy = "Operate^Olga", "Reader^Ron"
    common.Manufacturer, common.ManufacturerModelName, common.StationName = "Isocenter", "Phantom", "CT1"
    common.DeviceSerialNumber, common.InstitutionalDepartmentName = "7", "Radiology"
    common.InstitutionName, common.TimezoneOffsetFromUTC = "Example Hospital", "+0100"
    common.ProcedureCodeSequence = [_code("24627-2", "LN", "CT Chest")]
    common.BodyPartExamined, common.ReasonForTheRequestedProcedure = "CHEST", "Cough"
    common.PerformingPhysicianIdentificationSequence = [Dataset()]
    person = common.PerformingPhysicianIdentificationSequence[0]
    person.PersonIdentificationCodeSequence = [_code("P-12", "99EXAMPLE", "Paul Perform")]


def study(example: Example) -> dict[str, Any]:
    """The ImagingStudy of an example, as the server makes it without an order."""
    first = example.images[0]
    number = values.verbatim(first.get("AccessionNumber"))
    links = Links(
        resource_id="example",
        subject={"reference": "Patient/example"},
        endpoint={"reference": "Endpoint/dicomweb"},
        accession=imaging_study.accession_identifier("urn:isocenter:accession", number) if number else None,
    )
    listed = [_listed(image) for image in example.images]
    image = str(first.get("Modality")) not in uids.NOT_IMAGES
    facts = SeriesFacts(str(first.SeriesInstanceUID), first, listed, titled=_titled(example), image=image)
    return imaging_study.available(str(first.StudyInstanceUID), [facts], links, ZONE)


def _titled(example: Example) -> dict[str, Dataset]:
    return {str(image.SOPInstanceUID): image for image in example.images if example.modality in FILES}


def _listed(image: Dataset) -> Listed:
    written = [str(image.get(keyword) or "") for keyword in ("SOPInstanceUID", "SOPClassUID", "InstanceNumber")]
    return Listed(*written, str(image.get("NumberOfFrames") or ""), str(image.file_meta.get("TransferSyntaxUID", "")))


def untraced(made: Mapping[str, Any]) -> set[str]:
    """Elements of an ImagingStudy that no table tells of."""
    series: list[dict[str, Any]] = made.get("series", [])
    instances = [one for entry in series for one in entry.get("instance", [])]
    found = {"": [made], "series.": series, "series.instance.": instances}
    return {
        place + name
        for place, parts in found.items()
        for part in parts
        for name in part
        if name not in TRACED[place] and name not in SERVER
    }


def _trace(example: Example, made: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Element, attribute and the value it has in the image."""
    first = example.images[0]
    series = made["series"][0]
    parts: dict[str, Mapping[str, Any]] = {"": made, "series.": series, "series.instance.": series["instance"][0]}
    for place, part in parts.items():
        for element, keywords in TRACED[place].items():
            for keyword in keywords if element in part else ():
                if shown := _shown(first, keyword):
                    yield f"`{place}{element}`", attribute(keyword), shown


def _shown(image: Dataset, keyword: str) -> str:
    source = image.file_meta if keyword == "TransferSyntaxUID" else image
    coded = [f"{code.value} {code.scheme} “{code.meaning}”" for code in values.coded(source, keyword)]
    if coded or values.items(source, keyword):
        return "; ".join(coded)
    return "; ".join(values.texts(source.get(keyword)))


def each() -> str:
    """Every example: its attributes, and the resource."""
    return "\n".join(_section(example) for example in examples())


def _section(example: Example) -> str:
    made = study(example)
    text = orjson.dumps(made, option=orjson.OPT_INDENT_2).decode()
    trace = table(("element", "attribute", "in the image"), _trace(example, made))
    return f"### {example.modality}\n\nOf {example.source}.\n\n{trace}\n```json\n{text}\n```\n"


# --- the page --------------------------------------------------------------------------------------------------

BLOCKS: dict[str, Callable[[], str]] = {
    "elements": elements,
    "flags": flags,
    "extensions": extensions,
    "examples": each,
}


def page() -> str:
    """The page with its blocks as they should be."""
    return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}{match[3]}", PAGE.read_text("utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
