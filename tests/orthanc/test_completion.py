"""A study is complete when it was quiet and holds what the modality made (app.workflow.arrivals.settle)."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from app.dicom.mpps import PerformedSeries, PerformedStep, ScheduledStep
from app.store.tables import event
from app.workflow import steps
from tests.orthanc.hospital import Hospital, both, lite, uid

__all__ = ["both", "lite"]

pytestmark = pytest.mark.orthanc


def performed(at: Hospital, order: dict[str, Any], status: str, *sop_uids: str) -> None:
    """What a modality says of the order's only step."""
    [step] = at.item(order).ScheduledProcedureStepSequence if status == "IN PROGRESS" else [None]
    step_id = str(step.ScheduledProcedureStepID) if step else None
    scheduled = ScheduledStep(uid(order), None, None, step_id)
    series = (PerformedSeries(f"{uid(order)[:50]}.1", sop_uids),)
    said = PerformedStep("2.25.7", status, (scheduled,), series, "CT", "CT1", None, None, None, None, None)
    at.store.transact(lambda connection: steps.perform(connection, said))


def happened(at: Hospital, order: dict[str, Any]) -> list[str]:
    with at.store.read() as connection:
        own = sa.select(event.c.kind).where(event.c.order_id == order["id"]).order_by(event.c.id)
        return [kind for kind in connection.execute(own).scalars() if kind.startswith("images-")]


@pytest.mark.case(30)
def test_a_study_that_lacks_images_of_its_step_is_not_complete_and_somebody_is_told(both: Hospital) -> None:
    order = both.order()
    first, second = both.image(order), both.image(order, number=2)
    both.send(first)
    performed(both, order, "COMPLETED", first.SOPInstanceUID, second.SOPInstanceUID)
    both.settle()
    assert happened(both, order) == ["images-available", "images-missing"]
    assert both.reviews() == ["images-missing"]
    assert both.find("Task", ("focus", f"ServiceRequest/{order['id']}"))[0]["status"] == "in-progress"
    both.settle()
    assert happened(both, order) == ["images-available", "images-missing"]
    both.send(second)
    both.settle()
    assert happened(both, order) == ["images-available", "images-missing", "images-complete"]
    assert both.reviews() == []


@pytest.mark.case(30)
def test_a_step_that_ends_after_its_study_was_quiet_is_compared_too(lite: Hospital) -> None:
    order = lite.order()
    image = lite.image(order)
    lite.send(image)
    lite.settle()
    performed(lite, order, "COMPLETED", image.SOPInstanceUID)
    lite.settle()
    assert happened(lite, order) == ["images-available", "images-complete"]
    performed(lite, order, "COMPLETED", image.SOPInstanceUID, "1.2.3.99")
    lite.settle()
    assert happened(lite, order)[-1] == "images-missing"
    assert lite.reviews() == ["images-missing"]
