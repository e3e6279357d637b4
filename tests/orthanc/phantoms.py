"""Small DICOM objects the archive tests store: a 4×4 CT image and a one-line structured report."""

from __future__ import annotations

from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

CT_IMAGE = UID("1.2.840.10008.5.1.4.1.1.2")
COMPREHENSIVE_SR = UID("1.2.840.10008.5.1.4.1.1.88.33")


def _object(sop_class: UID, *, mrn: str, study: str, series: str, instance: str) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, instance
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.PatientID, dataset.PatientName = mrn, f"Patient^{mrn}"
    dataset.PatientBirthDate, dataset.PatientSex = "19700101", "O"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20260301", "101500", "S1"
    dataset.AccessionNumber, dataset.ReferringPhysicianName = f"ACC{study[-1]}", "Refer^Rita"
    dataset.StudyDescription = "CT of a phantom"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, int(instance.rsplit(".", 1)[-1])
    return dataset


def image(*, mrn: str, study: str, series: str, instance: str, frames: int = 1) -> Dataset:
    """A 4×4 CT image whose pixels spell its SOP Instance UID."""
    dataset = _object(CT_IMAGE, mrn=mrn, study=study, series=series, instance=instance)
    dataset.Modality, dataset.SeriesDescription = "CT", "axial"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 4, 4, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.PixelData = (instance.encode().ljust(32, b".")[:32]) * frames
    dataset["PixelData"].VR = "OW"
    return dataset


def report(*, mrn: str, study: str, series: str, instance: str, text: str = "seen") -> Dataset:
    """A structured report of one text."""
    dataset = _object(COMPREHENSIVE_SR, mrn=mrn, study=study, series=series, instance=instance)
    dataset.Modality, dataset.ContentDate, dataset.ContentTime = "SR", "20260301", "110000"
    dataset.CompletionFlag, dataset.VerificationFlag = "PARTIAL", "UNVERIFIED"
    dataset.ValueType, dataset.ContinuityOfContent = "CONTAINER", "SEPARATE"
    dataset.TextValue = text
    return dataset


def part10(dataset: Dataset, transfer_syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """The dataset as a DICOM file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = transfer_syntax
    dataset.file_meta = meta
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
