"""A generated test object of known sizes and HU, as images of each modality (PS3.3 A.3, A.4, A.2, A.26, A.6, A.8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from app.dicom import uids

AIR: Final = -1000.0
WATER: Final = 0.0
BONE: Final = 700.0
RULER: Final = 1200.0
INTERCEPT: Final = -1024

Volume: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sphere:
    """A ball in the water: centre in mm from the middle (left, back, head), diameter in mm, HU."""

    centre: tuple[float, float, float]
    diameter: float
    hounsfield: float


SPHERES: Final = (
    Sphere((50.0, 30.0, 0.0), 24.0, AIR),
    Sphere((-50.0, 30.0, 0.0), 24.0, BONE),
    Sphere((-24.0, 56.0, 0.0), 20.0, 300.0),
    Sphere((0.0, 62.0, 0.0), 14.0, 150.0),
    Sphere((24.0, 56.0, 0.0), 10.0, 60.0),
)


@dataclass(frozen=True, slots=True)
class Phantom:
    """Size and grid of the object; lengths of the rulers are whole numbers of voxels, so they are exact."""

    slices: int = 32
    matrix: int = 256
    spacing: float = 0.8
    thickness: float = 2.5
    noise: float = 8.0
    seed: int = 0

    @property
    def rulers(self) -> dict[str, float]:
        """Length in mm of the rods along row (x), column (y) and table (z)."""
        return {axis: (stop - start) * step for axis, (start, stop, step) in self._spans().items()}

    def _spans(self) -> dict[str, tuple[int, int, float]]:
        wide, high = self.matrix * 100 // 256, self.matrix * 75 // 256
        deep = max(1, self.slices * 5 // 8)
        return {
            "x": ((self.matrix - wide) // 2, (self.matrix - wide) // 2 + wide, self.spacing),
            "y": ((self.matrix - high) // 2, (self.matrix - high) // 2 + high, self.spacing),
            "z": ((self.slices - deep) // 2, (self.slices - deep) // 2 + deep, self.thickness),
        }

    def position(self, index: int) -> tuple[float, float, float]:
        """The centre of the first voxel of a slice in mm (left, back, head), heads up as the index grows."""
        corner = -(self.matrix - 1) / 2 * self.spacing
        return corner, corner, (index - (self.slices - 1) / 2) * self.thickness

    def volume(self) -> Volume:
        """Hounsfield units, indexed slice, row, column."""
        across = (np.arange(self.matrix) - (self.matrix - 1) / 2) * self.spacing
        along = (np.arange(self.slices) - (self.slices - 1) / 2) * self.thickness
        z, y, x = along[:, None, None], across[None, :, None], across[None, None, :]
        body = np.full((self.slices, self.matrix, self.matrix), AIR, dtype=np.float32)
        # The cylinder is 160 mm wide, or what a smaller matrix has room for.
        radius = min(80.0, self.matrix * self.spacing * 0.45)
        body[np.broadcast_to(x**2 + y**2 <= radius**2, body.shape)] = WATER
        for sphere in SPHERES:
            left, back, head = sphere.centre
            inside = (x - left) ** 2 + (y - back) ** 2 + (z - head) ** 2 <= (sphere.diameter / 2) ** 2
            body[inside] = sphere.hounsfield
        self._add_rulers(body)
        noise = np.random.default_rng(self.seed).normal(0.0, self.noise, body.shape)
        return (body + noise).astype(np.float32)

    def _add_rulers(self, body: Volume) -> None:
        spans, middle, centre = self._spans(), self.slices // 2, self.matrix // 2
        off = round(40.0 / self.spacing)
        x, y, z = (slice(spans[axis][0], spans[axis][1]) for axis in "xyz")
        # Each rod is three pixels thick and lies clear of the others and of the spheres.
        body[middle, centre - off - 1 : centre - off + 2, x] = RULER
        body[middle, y, centre - 1 : centre + 2] = RULER
        body[z, centre - off - 26 : centre - off - 23, centre - 1 : centre + 2] = RULER


@dataclass(frozen=True, slots=True)
class Series:
    """What all images of one acquisition share."""

    common: Dataset
    series_uid: UID
    at: datetime
    seed: object | None = None

    def uid(self, *parts: object) -> UID:
        """The same UID again for the same seed; without seed always a new one."""
        return uids.new() if self.seed is None else uids.derived(self.series_uid, *parts)


def images(modality: str, phantom: Phantom, series: Series) -> Iterator[Dataset]:
    """The object as that modality shows it; unknown ones get a Secondary Capture."""
    kind = KINDS.get(modality, SECONDARY_CAPTURE)
    planes = kind.planes(phantom.volume(), phantom)
    frame_of_reference = series.uid("frame of reference")
    for index, plane in enumerate(planes):
        image = _image(kind, series, index)
        if kind.spatial:
            image.FrameOfReferenceUID = frame_of_reference
            image.PositionReferenceIndicator = None
            _plane_of(image, phantom, index)
        _set(image, kind.attributes)
        if kind.calibrated:
            image.ImagerPixelSpacing = [phantom.spacing, phantom.spacing]
        _pixels(image, plane, kind.bits)
        yield image


def _image(kind: Kind, series: Series, index: int) -> Dataset:
    image = Dataset()
    image.update(series.common)
    image.SOPClassUID = kind.sop_class
    image.SOPInstanceUID = series.uid("instance", index)
    image.SeriesInstanceUID = series.series_uid
    image.InstanceNumber = index + 1
    image.AcquisitionNumber = 1
    image.PatientOrientation = None if kind.spatial else ["L", "F"]
    for event in ("Series", "Acquisition", "Content"):
        setattr(image, f"{event}Date", f"{series.at:%Y%m%d}")
        setattr(image, f"{event}Time", f"{series.at:%H%M%S}")
    image.BurnedInAnnotation = "NO"
    image.LossyImageCompression = "00"
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = uids.EXPLICIT_VR_LITTLE_ENDIAN
    image.file_meta.ImplementationClassUID = uids.IMPLEMENTATION_CLASS
    image.file_meta.ImplementationVersionName = uids.IMPLEMENTATION_VERSION
    return image


def _plane_of(image: Dataset, phantom: Phantom, index: int) -> None:
    position = phantom.position(index)
    image.PatientPosition = "HFS"
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.ImagePositionPatient = [round(value, 4) for value in position]
    image.SliceLocation = round(position[2], 4)
    image.SliceThickness = phantom.thickness
    image.SpacingBetweenSlices = phantom.thickness
    image.PixelSpacing = [phantom.spacing, phantom.spacing]


def _pixels(image: Dataset, plane: NDArray[np.float32], bits: int) -> None:
    allocated = 16 if bits > 8 else 8
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = plane.shape
    image.BitsAllocated, image.BitsStored, image.HighBit = allocated, bits, bits - 1
    image.PixelRepresentation = 0
    values = np.clip(np.rint(plane), 0, 2**bits - 1)
    image.PixelData = values.astype("<u2" if allocated == 16 else "u1").tobytes()


def _set(image: Dataset, attributes: dict[str, Any]) -> None:
    for keyword, value in attributes.items():
        setattr(image, keyword, value)


# --- how each modality shows the object -----------------------------------------------------------------------------


def _hounsfield(volume: Volume, _: Phantom) -> Volume:
    return volume - INTERCEPT


def _signal(volume: Volume, _: Phantom) -> Volume:
    """Water shines, air and bone are dark: only a picture, no physics."""
    return (1000.0 * np.exp(-((volume / 500.0) ** 2)) + 20.0).astype(np.float32)


def _projection(volume: Volume, phantom: Phantom) -> Volume:
    """One view from the front, 12 bits: what the rays have passed, from head to feet in square pixels."""
    path = np.clip(volume + 1000.0, 0.0, None).sum(axis=1)[::-1]
    height = round(phantom.slices * phantom.thickness / phantom.spacing)
    row = ((np.arange(height) + 0.5) * phantom.spacing / phantom.thickness).astype(int)
    picture = path[np.clip(row, 0, phantom.slices - 1)]
    return (picture / max(float(picture.max()), 1.0) * 4000.0)[None].astype(np.float32)


def _echo(volume: Volume, _: Phantom) -> Volume:
    middle = volume[volume.shape[0] // 2]
    return (np.clip(middle + 1000.0, 0.0, 2000.0) / 2000.0 * 255.0)[None].astype(np.float32)


@dataclass(frozen=True, slots=True)
class Kind:
    """One modality: SOP class, the planes it makes of the object, and the attributes of its module table."""

    sop_class: UID
    planes: Callable[[Volume, Phantom], Volume]
    attributes: dict[str, Any]
    bits: int = 12
    spatial: bool = False
    calibrated: bool = False


SECONDARY_CAPTURE: Final = Kind(
    uids.SECONDARY_CAPTURE_IMAGE,
    _echo,
    {"ImageType": ["DERIVED", "SECONDARY"], "ConversionType": "SYN", "Laterality": None},
    bits=8,
)
CT: Final = Kind(
    uids.CT_IMAGE,
    _hounsfield,
    {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "RescaleIntercept": INTERCEPT,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "WindowCenter": 40,
        "WindowWidth": 400,
        "KVP": 120,
        "XRayTubeCurrent": 200,
        "ExposureTime": 500,
        "ConvolutionKernel": "STANDARD",
        "ReconstructionDiameter": 204.8,
        "GantryDetectorTilt": 0,
    },
    spatial=True,
)
MR: Final = Kind(
    uids.MR_IMAGE,
    _signal,
    {
        "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
        "ScanningSequence": "SE",
        "SequenceVariant": "NONE",
        "ScanOptions": None,
        "MRAcquisitionType": "2D",
        "RepetitionTime": 500,
        "EchoTime": 15,
        "EchoTrainLength": 1,
        "MagneticFieldStrength": 1.5,
        "ImagingFrequency": 63.87,
        "WindowCenter": 500,
        "WindowWidth": 1000,
    },
    spatial=True,
)
CR: Final = Kind(
    uids.CR_IMAGE,
    _projection,
    {
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "BodyPartExamined": "CHEST",
        "ViewPosition": "AP",
        "Laterality": None,
        "KVP": 110,
        "WindowCenter": 2048,
        "WindowWidth": 4096,
    },
    calibrated=True,
)


def _dx_attributes() -> dict[str, Any]:
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "43799004", "SCT", "Thoracic cavity"
    return {
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "PresentationIntentType": "FOR PRESENTATION",
        "BodyPartExamined": "CHEST",
        "AnatomicRegionSequence": [region],
        "ImageLaterality": "U",
        "ViewPosition": "AP",
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": -1,
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        "RescaleType": "US",
        "PresentationLUTShape": "IDENTITY",
        "DetectorType": "DIRECT",
        "PositionerType": None,
        "AcquisitionContextSequence": [],
        "KVP": 110,
        "WindowCenter": 2048,
        "WindowWidth": 4096,
    }


DX: Final = Kind(uids.DX_IMAGE_FOR_PRESENTATION, _projection, _dx_attributes(), calibrated=True)
US: Final = Kind(
    uids.US_IMAGE,
    _echo,
    {"ImageType": ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"], "Laterality": None},
    bits=8,
)

KINDS: Final = {"CT": CT, "MR": MR, "CR": CR, "DX": DX, "US": US}
