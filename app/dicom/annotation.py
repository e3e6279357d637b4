"""A length drawn on an image and saved as a measurement report, as a viewer does (PS3.16 TID 1500, TID 1410)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import highdicom
import numpy as np
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from app.dicom import uids

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """Two points in the image's own coordinates (column, row; pixel centres at .5) and who drew them."""

    start: Point
    end: Point
    observer: str
    label: str = ""


def length(image: Dataset, line: Line) -> float:
    """The line's length in millimetres by Pixel Spacing."""
    row, column = (float(spacing) for spacing in image.PixelSpacing)
    return math.hypot((line.end[0] - line.start[0]) * column, (line.end[1] - line.start[1]) * row)


def report(image: Dataset, line: Line, others: Sequence[Dataset] = ()) -> bytes:
    """The report as a DICOM file; `others` are further images of the evidence."""
    region = sr.ImageRegion(
        graphic_type=sr.GraphicTypeValues.POLYLINE,
        graphic_data=np.array([line.start, line.end]),
        source_image=sr.SourceImageForRegion.from_source_image(image),
    )
    measured = sr.Measurement(codes.SCT.Length, length(image, line), codes.UCUM.Millimeter)
    group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=uids.new(), identifier=line.label or "Length"),
        referenced_region=region,
        measurements=[measured],
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_person_context=sr.ObserverContext(
                observer_type=codes.DCM.Person,
                observer_identifying_attributes=sr.PersonObserverIdentifyingAttributes(name=line.observer),
            )
        ),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[group],
    )
    document = sr.Comprehensive3DSR(
        evidence=[image, *others],
        content=content[0],
        series_instance_uid=uids.new(),
        series_number=3001,
        sop_instance_uid=uids.new(),
        instance_number=1,
        manufacturer="Isocenter",
        manufacturer_model_name="modality simulator",
        software_versions=highdicom.__version__,
        device_serial_number="1",
        series_description="Measurements",
        is_complete=True,
    )
    buffer = BytesIO()
    document.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
