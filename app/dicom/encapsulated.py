"""A PDF as a DICOM object beside its images (PS3.3 A.45.1, Encapsulated PDF), delivered by STOW-RS and read back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from app.dicom import uids
from app.dicom.orthanc import Orthanc
from app.errors import ArchiveUnavailable, Conflict

STUDY_KEYWORDS = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName", "StudyDescription", "TimezoneOffsetFromUTC",
)  # fmt: skip
"""Taken from the images, not from the order: the archive files by what the images say."""
TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
          "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
SERIES_NUMBER = 9000
MANUFACTURER = "Isocenter"


@dataclass(frozen=True, slots=True)
class Description:
    """What identifies the document: `number` is its Instance Number, `signed` a time with a zone."""

    title: str
    sop_uid: str
    series_uid: str
    number: int
    signed: datetime


def document(header: Dataset, description: Description, pdf: bytes) -> Dataset:
    """The Encapsulated PDF of a study; `header` is one of its images."""
    made = Dataset()
    made.file_meta = _meta(description.sop_uid)
    # The STOW client writes what it is given; without a preamble the archive would keep something that is no file.
    made.preamble = bytes(128)
    made.SpecificCharacterSet = "ISO_IR 192"
    for keyword in STUDY_KEYWORDS:
        if keyword in header:
            # The element as it was read: what the images say wrongly is not ours to refuse.
            made.add(header[keyword])
    for keyword in TYPE_2:
        if keyword not in made:
            setattr(made, keyword, "")
    _series(made, description)
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "18748-4", "LN", "Diagnostic imaging study"
    made.ConceptNameCodeSequence = Sequence([code])
    made.DocumentTitle = description.title[:1024]
    made.BurnedInAnnotation = "YES"
    made.VerificationFlag = "VERIFIED"
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    made.EncapsulatedDocumentLength = len(pdf)
    made.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    return made


def content(made: Dataset) -> bytes:
    """The PDF inside, without the padding that makes its length even."""
    length = made.get("EncapsulatedDocumentLength")
    return bytes(made.EncapsulatedDocument)[: int(length) if length is not None else None]


def deliver(orthanc: Orthanc, made: Dataset, pdf: bytes) -> None:
    """Store the document and prove that the archive gives back the same PDF. Safe to repeat."""
    held = orthanc.instances_with_uid(made.SOPInstanceUID)
    if not held:
        orthanc.stow(made)
        held = orthanc.instances_with_uid(made.SOPInstanceUID)
    if not held:
        raise ArchiveUnavailable("the archive took the report but does not hold it")
    if content(orthanc.dataset(held[0], stop_before_pixels=False)) != pdf:
        raise Conflict("the archive holds another document under the report's UID")


def encoded(made: Dataset) -> bytes:
    """The document as a DICOM file."""
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _series(made: Dataset, description: Description) -> None:
    moment = description.signed
    made.SOPClassUID = uids.ENCAPSULATED_PDF
    made.SOPInstanceUID = description.sop_uid
    made.SeriesInstanceUID = description.series_uid
    made.Modality = "DOC"
    made.ConversionType = "WSD"
    made.Manufacturer = MANUFACTURER
    made.SeriesNumber = SERIES_NUMBER
    made.SeriesDescription = "Signed report"
    made.InstanceNumber = description.number
    made.AcquisitionDateTime = ""
    made.ContentDate = made.SeriesDate = moment.strftime("%Y%m%d")
    made.ContentTime = made.SeriesTime = moment.strftime("%H%M%S")
    made.InstanceCreationDate, made.InstanceCreationTime = made.ContentDate, made.ContentTime


def _meta(sop_uid: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uids.ENCAPSULATED_PDF
    meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    meta.TransferSyntaxUID = uids.EXPLICIT_VR_LITTLE_ENDIAN
    meta.ImplementationClassUID = uids.IMPLEMENTATION_CLASS
    meta.ImplementationVersionName = uids.IMPLEMENTATION_VERSION
    return meta
