"""Worklist items for the tests, complete as a source would hand them over."""

from __future__ import annotations

from typing import Any

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

STEP_KEYS = {
    "Modality": "CT",
    "ScheduledStationAETitle": "CT1",
    "ScheduledProcedureStepStartDate": "20250706",
    "ScheduledProcedureStepStartTime": "083000",
    "ScheduledPerformingPhysicianName": "Curie^Marie",
    "ScheduledProcedureStepDescription": "CT chest",
    "ScheduledProcedureStepID": "SPS1",
    "ScheduledProcedureStepStatus": "SCHEDULED",
}


def code(value: str, scheme: str, meaning: str) -> Dataset:
    dataset = Dataset()
    dataset.CodeValue, dataset.CodingSchemeDesignator, dataset.CodeMeaning = value, scheme, meaning
    return dataset


def item(**values: Any) -> Dataset:
    """One scheduled step; keywords of the step or of the item itself replace the defaults."""
    dataset, step = Dataset(), Dataset()
    for keyword, value in STEP_KEYS.items():
        setattr(step, keyword, values.pop(keyword, value))
    issuer = Dataset()
    issuer.LocalNamespaceEntityID = "HOSP"
    defaults: dict[str, Any] = {
        "PatientName": "Doe^Jane",
        "PatientID": "MRN1",
        "IssuerOfPatientID": "HOSP",
        "PatientBirthDate": "19700131",
        "PatientSex": "F",
        "AccessionNumber": "A1",
        "IssuerOfAccessionNumberSequence": [issuer],
        "StudyInstanceUID": "2.25.1001",
        "RequestedProcedureID": "RP1",
        "RequestedProcedureDescription": "CT chest with contrast",
        "RequestedProcedureCodeSequence": [code("24627-2", "LN", "CT Chest")],
        "ReferringPhysicianName": "Hopper^Grace",
        "RequestingPhysician": "Hopper^Grace",
    }
    for keyword, value in {**defaults, **values}.items():
        setattr(dataset, keyword, value)
    dataset.ScheduledProcedureStepSequence = [step]
    return dataset


def query(step: dict[str, Any] | None = None, **keys: Any) -> Dataset:
    """A C-FIND identifier; `step` are the keys inside the Scheduled Procedure Step Sequence."""
    dataset = Dataset()
    for keyword, value in keys.items():
        put(dataset, keyword, value)
    if step is not None:
        inner = Dataset()
        for keyword, value in step.items():
            put(inner, keyword, value)
        dataset.ScheduledProcedureStepSequence = [inner]
    return dataset


def put(dataset: Dataset, keyword: str, value: Any) -> None:
    """Also values that no conforming scanner would send."""
    tag = Tag(keyword)
    dataset[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE)
