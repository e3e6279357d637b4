"""What the archive holds of a study, with the headers that tell what it is: few, and the same for the same images.

The first instance of each series speaks for it. Documents, reports and segmentations are read for their titles, up to a
limit; of a study with few series the last instance of each is read too, so that contradictions show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import tzinfo
from itertools import chain, islice

from pydicom.dataset import Dataset

from app.dicom import uids
from app.dicom.archive import HeldInstance, HeldSeries, HeldStudy
from app.fhir.mapping import imaging_study, values
from app.fhir.mapping.codes import Json
from app.fhir.mapping.imaging_study import Links, SeriesFacts
from app.workflow import matching, orders, owned
from app.workflow.site import Site

Read = Callable[[HeldInstance], Dataset]
"""Reads the header of one instance."""
ZoneOf = Callable[[str], tzinfo]
"""The zone of a machine's clock, by its Station Name."""

HEADERS = 4
"""With so many series or more no second header of any is read: a look stays within six requests."""
TITLED = tuple(f"1.2.840.10008.5.1.4.1.1.{branch}" for branch in ("11.", "66.", "88.", "104.", "481.3", "481.5"))
"""Presentation states, segmentations and registrations, reports and key objects, documents, structure sets, plans."""
TITLES = 32
"""So many instances of a study are read for their titles; the others have none."""


def facts(held: HeldStudy, read: Read, zone_of: ZoneOf | None = None) -> list[SeriesFacts]:
    """The series, in the order in which they speak for the study."""
    titled = {one.sop_uid for one in islice(_titled(held), TITLES)}
    second, once = _second(held), _once(read)
    made = [_facts(one, once, titled, twice=one.orthanc_id in second) for one in held.series]
    if zone_of is not None:
        made = [replace(one, zone=zone_of(values.text(one.header.get("StationName")) or "")) for one in made]
    return imaging_study.speaking(made)


def reads_all(held: HeldStudy) -> bool:
    """Whether the header of every one of its several instances is read."""
    if not 1 < held.count <= len(held.series) + max(HEADERS, TITLES):
        return False
    titled, second = {one.sop_uid for one in islice(_titled(held), TITLES)}, _second(held)
    return all(
        one in {series.first, series.last if series.orthanc_id in second else series.first} or one.sop_uid in titled
        for series in held.series
        for one in series.instances
    )


def together(series: Iterable[SeriesFacts]) -> list[SeriesFacts]:
    """Series of several studies that are one to FHIR: those of one UID are one series, each instance once."""
    found: dict[str, SeriesFacts] = {}
    for one in sorted(series, key=_stable):
        known = found.get(one.uid)
        found[one.uid] = one if known is None else _merged(known, one)
    return imaging_study.speaking(found.values())


def _stable(one: SeriesFacts) -> tuple[str, str, str]:
    first = min((instance.sop_uid for instance in one.instances), default="")
    return one.uid, first, str(one.header.get("PatientID"))


def _merged(first: SeriesFacts, second: SeriesFacts) -> SeriesFacts:
    instances = {one.sop_uid: one for one in (*second.instances, *first.instances)}
    return replace(
        first,
        instances=[instances[sop_uid] for sop_uid in sorted(instances)],
        last=first.last or second.header,
        titled={**second.titled, **first.titled},
        image=first.image or second.image,
    )


def links(site: Site, order: Json | None, ids: tuple[str, str], series: list[SeriesFacts]) -> Links:
    """What the study is called, whose it is and which order it fulfils; `ids` are those of ImagingStudy and Patient."""
    resource_id, patient_id = ids
    accession = next(matching.accessions(site, [one.header for one in series]), None)
    made = Links(
        resource_id=resource_id,
        subject={"reference": f"Patient/{patient_id}"},
        endpoint={"reference": f"Endpoint/{owned.ENDPOINT_ID}"},
        accession=imaging_study.accession_identifier(*accession) if accession else None,
    )
    return orders.linked(made, order) if order else made


def _once(read: Read) -> Read:
    known: dict[str, Dataset] = {}

    def header(instance: HeldInstance) -> Dataset:
        if instance.orthanc_id not in known:
            known[instance.orthanc_id] = read(instance)
        return known[instance.orthanc_id]

    return header


def _facts(held: HeldSeries, read: Read, titled: set[str], *, twice: bool) -> SeriesFacts:
    header = read(held.first)
    return SeriesFacts(
        uid=held.uid,
        header=header,
        instances=held.instances,
        last=read(held.last) if twice else None,
        titled={one.sop_uid: read(one) for one in held.instances if one.sop_uid in titled},
        image=values.text(header.get("Modality")) not in uids.NOT_IMAGES,
    )


def _second(held: HeldStudy) -> set[str]:
    """The series whose last instance is read too, as long as few headers are read in all."""
    several = sorted(one.uid for one in held.series if len(one.instances) > 1)
    chosen = set(several[: max(0, HEADERS - len(held.series))])
    return {one.orthanc_id for one in held.series if one.uid in chosen}


def _titled(held: HeldStudy) -> Iterator[HeldInstance]:
    """The instances that say what they are, the same ones first whatever order they arrived in."""
    every = chain.from_iterable(one.instances for one in held.series)
    return iter(sorted((one for one in every if one.sop_class.startswith(TITLED)), key=lambda one: one.sop_uid))
