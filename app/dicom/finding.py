"""The answers to searches: our own store finds, the archive only adds what a page shows (PS3.18 section 10.6).

Which ImagingStudies a grant and a query leave, the store tells; each study is decided once more, and each row is
matched exactly. No query is ever forwarded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import orjson

from app.dicom import results
from app.dicom.criteria import Row
from app.dicom.dicomjson import Json
from app.dicom.holdings import Holding
from app.dicom.paths import Target
from app.dicom.qido import Query
from app.dicom.shelf import Hit, Narrowed, Shelf, add_study_tags, joined
from app.errors import NotFound, TooLarge
from app.store import candidates
from app.store import query as store_query
from app.store.studies import HeldStudy

BATCH = 200
"""So many studies are looked at together."""
MOST = 20_000
"""A search that has to look at more studies than these is too broad."""
INSTANCES = 1000
"""So many instances are read together."""
NOT_FUZZY = "The fuzzymatching parameter is not supported. Only literal matching has been performed."
MORE = "There are additional results that can be requested"


@dataclass(frozen=True, slots=True)
class Tree:
    """The one study that a search is about, and what the archive holds of it now."""

    study: HeldStudy
    holding: Holding


@dataclass(frozen=True, slots=True)
class Page:
    """The results of a search, and what the caller should know of them."""

    results: list[Json]
    warnings: list[str] = field(default_factory=list[str])

    def body(self) -> bytes:
        """As DICOM JSON."""
        return orjson.dumps(self.results)

    def headers(self) -> dict[str, str]:
        """What has to be said, as RFC 7234 says it (PS3.18 sections 8.3.4.2 and 8.3.4.4.1)."""
        return {"Warning": ", ".join(self.warnings)} if self.warnings else {}


def find(shelf: Shelf, query: Query, target: Target, tree: Tree | None) -> Page:
    """The page of what matches: below one study, whose tree is read as it is now, or at the root."""
    hits = _hits(shelf, query, target, tree)
    found = list(islice(hits, query.limit + 1))
    shown = found[: query.limit]
    warnings = [NOT_FUZZY] if query.fuzzy else []
    warnings += [MORE] if len(found) > len(shown) else []
    warnings += results.complete(shelf, query, shown)
    told = [results.result(shelf, query, target, hit) for hit in shown]
    return Page(told, [f"299 {shelf.base}: {one}" for one in warnings])


def _hits(shelf: Shelf, query: Query, target: Target, tree: Tree | None) -> Iterator[Hit]:
    if query.level == "study":
        return _studies(shelf, query, query.offset)
    if tree is None:
        batches = _batched(_studies(shelf, query, None), min(query.offset + query.limit + 1, BATCH))
        series = (hit for batch in batches for hit in _series_of(shelf, batch))
    else:
        series = _series_in(shelf, query, tree, target.series)
    series = (hit for hit in series if query.meets(hit.row, "series"))
    hits = series if query.level == "series" else _instances(shelf, query, series)
    return islice(hits, query.offset, None)


# --- studies --------------------------------------------------------------------------------------------------------


def _studies(shelf: Shelf, query: Query, offset: int | None) -> Iterator[Hit]:
    """The studies that match; those before the offset are passed over as cheaply as can be."""
    with shelf.store.read() as connection:
        narrowed = shelf.catalogue.narrow(connection, shelf.access, query)
    skip = offset or 0
    if not narrowed.exact:
        yield from islice(_matching(shelf, query, _candidates(shelf, narrowed, BATCH, 0)), skip, None)
        return
    size = BATCH if offset is None else min(query.limit + 1, BATCH)
    yield from _matching(shelf, query, _candidates(shelf, narrowed, size, skip))


def _candidates(shelf: Shelf, narrowed: Narrowed, size: int, skip: int) -> Iterator[list[HeldStudy]]:
    after: store_query.Place | None = None
    more = True
    while more:
        # What is only passed over is read in longer runs.
        limit = min(skip + size, INSTANCES)
        with shelf.store.read() as connection:
            held, after = candidates.page(connection, narrowed.query, limit=limit, after=after)
        more = after is not None
        covered = [study for study in held if shelf.covers(study)]
        passed = min(skip, len(covered))
        skip -= passed
        if covered[passed:]:
            yield covered[passed:]


def _matching(shelf: Shelf, query: Query, batches: Iterable[list[HeldStudy]]) -> Iterator[Hit]:
    looked = 0
    for batch in batches:
        looked += len(batch)
        if looked > MOST:
            raise TooLarge("too many studies would have to be looked at: add a key such as StudyDate or PatientID")
        hits = _told(shelf, query, batch)
        if query.needs("study", "archive"):
            add_study_tags(shelf, hits)
        yield from (hit for hit in hits if query.meets(hit.row, "study"))


def _told(shelf: Shelf, query: Query, held: Sequence[HeldStudy]) -> list[Hit]:
    with shelf.store.read() as connection:
        told = shelf.catalogue.tell(connection, held, query.level)
    return [Hit(one, {**told.get(one.imaging_study_id, {})}, f"/studies/{one.study_uid}") for one in held]


# --- series ---------------------------------------------------------------------------------------------------------


def _series_of(shelf: Shelf, hits: Sequence[Hit]) -> Iterator[Hit]:
    """The series of several studies, in two requests."""
    contents = add_study_tags(shelf, hits)
    by_study: dict[str, list[Json]] = {}
    for content in shelf.orthanc.bulk_content("Series", list(contents), metadata=False):
        by_study.setdefault(content["ParentStudy"], []).append(content)
    for hit in hits:
        for content in sorted(by_study.get(hit.study.orthanc_id, []), key=_number_and_uid):
            yield _series(hit, content["ID"], content["MainDicomTags"], content["Instances"])


def _number_and_uid(content: Json) -> tuple[int, str]:
    tags = content["MainDicomTags"]
    return _number(tags.get("SeriesNumber", "")), tags["SeriesInstanceUID"]


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.lstrip("-").isdecimal() else 1 << 31


def _series_in(shelf: Shelf, query: Query, tree: Tree, series_uid: str | None) -> Iterator[Hit]:
    """The series of one study, or one of them."""
    holding = tree.holding
    if series_uid is not None and series_uid not in holding.series:
        raise NotFound("the study has no such series")
    [hit] = _told(shelf, query, [tree.study])
    hit.row = joined(hit.row, holding.tags) | {"InstanceAvailability": "ONLINE"} | _counts(holding)
    if not query.meets(hit.row, "study"):
        return
    for one in holding.series.values():
        if series_uid in {None, one.uid}:
            held = list(one.instances.values())
            found = _series(hit, one.orthanc_id, one.tags, [each.orthanc_id for each in held])
            yield replace(found, held=held)


def _counts(holding: Holding) -> Row:
    return {
        "ModalitiesInStudy": sorted({one.tags.get("Modality", "") for one in holding.series.values()} - {""}),
        "NumberOfStudyRelatedSeries": len(holding.series),
        "NumberOfStudyRelatedInstances": len(holding.instances()),
    }


def _series(above: Hit, orthanc_id: str, tags: Mapping[str, str], instances: Sequence[str]) -> Hit:
    asked = above.row.get("RequestAttributesSequence", [])
    requests = [_without_modality(one) for one in asked if one.get("Modality") == tags.get("Modality")]
    row = {
        **above.row,
        **tags,
        "NumberOfSeriesRelatedInstances": len(instances),
    }
    row.pop("RequestAttributesSequence", None)
    if requests:
        row["RequestAttributesSequence"] = requests
    return Hit(above.study, row, f"{above.path}/series/{tags['SeriesInstanceUID']}", orthanc_id, instances)


def _without_modality(request: Row) -> Row:
    return {keyword: value for keyword, value in request.items() if keyword != "Modality"}


# --- instances ------------------------------------------------------------------------------------------------------


def _instances(shelf: Shelf, query: Query, series: Iterable[Hit]) -> Iterator[Hit]:
    waiting: list[Hit] = []
    for hit in series:
        waiting.append(hit)
        if sum(len(one.instances) for one in waiting) >= INSTANCES:
            yield from _matching_instances(shelf, query, waiting)
            waiting = []
    yield from _matching_instances(shelf, query, waiting)


def _matching_instances(shelf: Shelf, query: Query, series: Sequence[Hit]) -> Iterator[Hit]:
    unread = [hit.series_id for hit in series if hit.held is None]
    read: dict[str, list[Json]] = {}
    for content in shelf.orthanc.bulk_content("Instance", unread):
        read.setdefault(content["ParentSeries"], []).append(content)
    for hit in series:
        if hit.held is None:
            rows = [(one["ID"], _of_content(one)) for one in read.get(hit.series_id, [])]
        else:
            rows = [(one.orthanc_id, {**one.tags, "SOPClassUID": one.sop_class}) for one in hit.held]
        for orthanc_id, row in sorted(rows, key=lambda one: _place(one[1])):
            found = _instance(hit, orthanc_id, row)
            if query.meets(found.row, "instance"):
                yield found


def _of_content(content: Json) -> Row:
    return {**content["MainDicomTags"], "SOPClassUID": content["Metadata"].get("SopClassUid", "")}


def _place(row: Row) -> tuple[int, str]:
    return _number(row.get("InstanceNumber", "")), row["SOPInstanceUID"]


def _instance(above: Hit, orthanc_id: str, own: Row) -> Hit:
    row = {**above.row, **own, "InstanceAvailability": "ONLINE"}
    return Hit(above.study, row, f"{above.path}/instances/{own['SOPInstanceUID']}", above.series_id, [orthanc_id])


def _batched(hits: Iterator[Hit], size: int) -> Iterator[list[Hit]]:
    while batch := list(islice(hits, size)):
        yield batch
