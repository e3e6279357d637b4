"""The generated images: sizes, values, and the attributes their SOP classes demand."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from app.dicom import modality, phantom, uids
from tests.processes import program
from tests.unit.dicom.items import item

AT = datetime.fromisoformat("2025-07-06T08:31:00")
SMALL = phantom.Phantom(slices=8, matrix=128, spacing=1.6)

PATIENT_AND_STUDY = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime "
    "ReferringPhysicianName StudyID AccessionNumber"
)
TYPE_1 = (
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality ImageType InstanceNumber "
    "SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit "
    "PixelRepresentation PixelData"
)
PLANE = "FrameOfReferenceUID PixelSpacing ImageOrientationPatient ImagePositionPatient"
# PS3.3 module tables: SOP class, attributes that must have a value, attributes that must be there.
DEMANDED = {
    "CT": (
        uids.CT_IMAGE,
        f"{PLANE} RescaleIntercept RescaleSlope",
        "KVP AcquisitionNumber SliceThickness PositionReferenceIndicator",
    ),
    "MR": (
        uids.MR_IMAGE,
        f"{PLANE} ScanningSequence SequenceVariant MRAcquisitionType RepetitionTime EchoTime",
        "ScanOptions EchoTrainLength SliceThickness PositionReferenceIndicator",
    ),
    "CR": (uids.CR_IMAGE, "ImagerPixelSpacing", "BodyPartExamined ViewPosition Laterality PatientOrientation"),
    "DX": (
        uids.DX_IMAGE_FOR_PRESENTATION,
        "PresentationIntentType ImagerPixelSpacing ImageLaterality PixelIntensityRelationship "
        "PixelIntensityRelationshipSign RescaleIntercept RescaleSlope RescaleType PresentationLUTShape "
        "LossyImageCompression BurnedInAnnotation PatientOrientation RequestAttributesSequence AnatomicRegionSequence",
        "DetectorType PositionerType AcquisitionContextSequence",
    ),
    "US": (uids.US_IMAGE, "", "Laterality PatientOrientation"),
    "MG": (uids.SECONDARY_CAPTURE_IMAGE, "ConversionType", "Laterality"),
}  # fmt: skip


def made(kind: str = "CT", size: phantom.Phantom = SMALL, seed: int | None = 7) -> list[Dataset]:
    stored = item(Modality=kind)
    return list(phantom.images(kind, size, modality._series(stored, modality.Scan(seed=seed, at=AT))))


@pytest.mark.parametrize("kind", DEMANDED)
def test_each_image_has_the_attributes_of_its_sop_class(kind: str):
    sop_class, with_value, present = DEMANDED[kind]
    for image in made(kind):
        assert image.SOPClassUID == sop_class
        assert image.Modality == kind
        assert [key for key in f"{TYPE_1} {with_value}".split() if key not in image or image[key].is_empty] == []
        assert [key for key in f"{PATIENT_AND_STUDY} {present}".split() if key not in image] == []
        assert len(image.PixelData) == image.Rows * image.Columns * image.BitsAllocated // 8


def test_a_magnetic_resonance_image_is_not_rescaled():
    assert "RescaleSlope" not in made("MR")[0]


@pytest.mark.parametrize("kind", DEMANDED)
def test_dcmtk_reads_the_file(kind: str, tmp_path: Path):
    image, file = made(kind)[0], tmp_path / "image.dcm"
    image.save_as(file, enforce_file_format=True)
    shown = subprocess.run([program("/usr/bin/dcmdump"), file], capture_output=True, text=True, check=True)
    assert "Little Endian Explicit" in shown.stdout
    assert (shown.stderr, "error" in shown.stdout.lower()) == ("", False)


def longest_run(along: NDArray[np.bool_]) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], along.astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


@pytest.mark.parametrize("size", [phantom.Phantom(), SMALL])
def test_the_rulers_measure_what_they_say(size: phantom.Phantom):
    series = made(size=size)
    volume = np.stack(
        [image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept) for image in series]
    )
    rod = volume > 1000
    step = {"z": series[1].ImagePositionPatient[2] - series[0].ImagePositionPatient[2]}
    step["y"], step["x"] = series[0].PixelSpacing
    for axis, name in enumerate("zyx"):
        runs = np.apply_along_axis(longest_run, axis, rod)
        assert runs.max() * step[name] == pytest.approx(size.rulers[name])


def test_a_radiograph_has_square_pixels():
    [image] = made("DX", phantom.Phantom())
    rod = image.pixel_array[:, 128] > 3000
    assert image.ImagerPixelSpacing == [0.8, 0.8]
    assert (image.Rows * 0.8, image.Columns * 0.8) == pytest.approx((80.0, 204.8))
    # Seen from the front, the ruler along the column is a point as high as one slice.
    assert rod.sum() * 0.8 == pytest.approx(2.5, abs=0.8)


def test_the_default_rulers_have_round_lengths():
    assert phantom.Phantom().rulers == pytest.approx({"x": 80.0, "y": 60.0, "z": 50.0})


def test_inserts_have_their_hounsfield_units():
    size = phantom.Phantom()
    volume = size.volume()
    corner = np.array(size.position(0))
    for sphere in phantom.SPHERES:
        x, y, z = np.rint((np.array(sphere.centre) - corner) / [size.spacing, size.spacing, size.thickness]).astype(int)
        assert volume[z, y - 2 : y + 3, x - 2 : x + 3].mean() == pytest.approx(sphere.hounsfield, abs=6)
    assert volume[4, 160:180, 180:200].mean() == pytest.approx(phantom.WATER, abs=2)


def test_the_same_seed_gives_the_same_study_and_another_gives_another():
    first, again, other, new = made(seed=7), made(seed=7), made(seed=8), made(seed=None)
    assert first == again
    assert len({image.SOPInstanceUID for image in [*first, *other, *new]}) == 24
    assert {image.StudyInstanceUID for image in [*first, *other, *new]} == {"2.25.1001"}


def test_slices_ascend_and_carry_their_order():
    series = made()
    assert [image.InstanceNumber for image in series] == list(range(1, 9))
    heights = [image.ImagePositionPatient[2] for image in series]
    assert heights == sorted(heights)
    assert [image.SliceLocation for image in series] == heights
    assert len({image.FrameOfReferenceUID for image in series}) == 1
    [request] = series[0].RequestAttributesSequence
    assert (request.AccessionNumber, request.RequestedProcedureID, request.ScheduledProcedureStepID) == (
        "A1",
        "RP1",
        "SPS1",
    )
    assert series[0].IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "HOSP"
    assert series[0].ProcedureCodeSequence[0].CodeValue == "24627-2"


def test_made_uids_are_valid_and_parts_do_not_run_together():
    assert uids.new().is_valid
    assert uids.new() != uids.new()
    assert uids.derived("a", "bc") != uids.derived("ab", "c")
    assert len(uids.derived("x")) <= 64
    assert uids.IMPLEMENTATION_CLASS.is_valid
