"""Which headers are read of a study: few, the same in whatever order its images arrived (app.workflow.described)."""

from __future__ import annotations

import random

import pytest
from pydicom.dataset import Dataset

from app.dicom.archive import HeldInstance, HeldSeries, HeldStudy
from app.fhir.mapping import imaging_study
from app.settings import Settings
from app.workflow import described

CT = "1.2.840.10008.5.1.4.1.1.2"
SR = "1.2.840.10008.5.1.4.1.1.88.33"


def study(counts: list[int], sop_class: str = CT) -> HeldStudy:
    series = [
        HeldSeries(f"series{number}", f"1.2.{number}", "CT", tuple(
            HeldInstance(f"i{number}.{one}", f"1.2.{number}.{one}", sop_class, str(one)) for one in range(1, count + 1)
        ))
        for number, count in enumerate(counts, 1)
    ]  # fmt: skip
    return HeldStudy("study", "1.2", "P1", False, tuple(series), "digest")


def read_of(held: HeldStudy) -> list[str]:
    """The instances whose headers are read, in order."""
    asked: list[str] = []

    def read(instance: HeldInstance) -> Dataset:
        asked.append(instance.sop_uid)
        return Dataset()

    described.facts(held, read)
    return asked


@pytest.mark.parametrize(
    ("counts", "headers"),
    [
        ([600], ["1.2.1.1", "1.2.1.99"]),
        ([1], ["1.2.1.1"]),
        ([3, 1, 3], ["1.2.1.1", "1.2.1.3", "1.2.2.1", "1.2.3.1"]),
        ([150, 150, 150, 150], ["1.2.1.1", "1.2.2.1", "1.2.3.1", "1.2.4.1"]),
        ([2, 2, 2, 2, 2], ["1.2.1.1", "1.2.2.1", "1.2.3.1", "1.2.4.1", "1.2.5.1"]),
    ],
)
def test_a_header_of_each_series_is_read_and_a_second_one_while_they_are_few(
    counts: list[int], headers: list[str]
) -> None:
    assert read_of(study(counts)) == headers


@pytest.mark.parametrize(
    ("counts", "sop_class", "every"),
    [
        ([1], CT, False),
        ([2], CT, True),
        ([3], CT, False),
        ([1, 1, 1, 1, 1], CT, True),
        ([2, 2], CT, True),
        ([2, 2, 2], CT, False),
        ([5], SR, True),
        ([60], SR, False),
    ],
)
def test_a_study_is_read_as_a_whole_when_no_header_of_it_would_be_spared(
    counts: list[int], sop_class: str, every: bool
) -> None:
    held = study(counts, sop_class)
    assert described.reads_all(held) is every
    assert (sum(counts) > 1 and len(read_of(held)) == sum(counts)) is every


def test_reports_are_read_for_their_titles_up_to_a_limit() -> None:
    assert len(read_of(study([20], SR))) == 20
    assert len(read_of(study([500], SR))) == described.TITLES + 1


def test_the_order_of_arrival_does_not_matter() -> None:
    held = study([5, 40, 3], SR)
    mixed = [
        HeldSeries(
            one.orthanc_id, one.uid, one.modality, tuple(random.Random(7).sample(one.instances, len(one.instances)))
        )
        for one in reversed(held.series)
    ]
    other = HeldStudy(held.orthanc_id, held.uid, held.patient_id, held.copied, tuple(mixed), held.digest)
    assert sorted(read_of(other)) == sorted(read_of(held))


def test_a_machine_may_have_a_clock_in_another_zone_than_the_site() -> None:
    settings = Settings(timezone="Europe/Berlin", station=({"name": "CT7", "timezone": "America/New_York"},))

    def read(instance: HeldInstance) -> Dataset:
        header = Dataset()
        header.StudyDate, header.StudyTime, header.Modality = "20260701", "120000", "CT"
        header.StationName = "CT7" if instance.sop_uid == "1.2.1.1" else "CT8"
        return header

    series = described.facts(study([1, 1]), read, settings.zone_of)
    assert [str(one.zone) for one in series] == ["America/New_York", "Europe/Berlin"]
    links = imaging_study.Links("s", {"reference": "Patient/p"}, {"reference": "Endpoint/dicomweb"})
    assert imaging_study.available("1.2", series, links, settings.zone)["started"] == "2026-07-01T12:00:00-04:00"


def test_a_zone_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="IANA time zone"):
        Settings(station=({"name": "CT7", "timezone": "Mars/Base"},))
