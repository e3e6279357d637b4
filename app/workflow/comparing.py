"""The archive compared with what we believe it holds: totals, then ids, then counts, then every instance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.dicom.orthanc import Orthanc
from app.store import truth
from app.store.database import Store
from app.store.truth import Believed

Json = dict[str, Any]
Level = Literal["totals", "ids", "counts", "instances"]

STUDIES_AT_ONCE = 200
INSTANCES_AT_ONCE = 5000
EXPLAINABLE = 1000
"""With more studies on their way than this, their counts are not asked for to explain the totals."""


@dataclass(frozen=True, slots=True)
class Found:
    """What differs, and how deep it was looked. `held` is what the archive holds."""

    held: frozenset[str]
    new: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    level: Level = "totals"


@dataclass(frozen=True, slots=True)
class Sides:
    """Both sides of a comparison; `alive` is called between two questions and raises when it must not go on."""

    orthanc: Orthanc
    store: Store
    ours: Believed
    alive: Callable[[], None]


def differences(sides: Sides, *, thorough: bool) -> Found:
    """What differs: only as deep as the totals leave unexplained, or down to every instance."""
    ours = sides.ours
    totals = sides.orthanc.statistics()
    studies, instances = int(totals["CountStudies"]), int(totals["CountInstances"])
    if not thorough and (studies, instances) == (len(ours.present), ours.instances):
        return Found(frozenset(ours.present))
    held = frozenset(sides.orthanc.study_ids())
    new, missing = held - ours.present.keys(), frozenset(ours.present) - held
    # What is marked is looked at anyway.
    quiet = (held & ours.present.keys()) - ours.waiting
    if thorough:
        return Found(held, new, missing, _by_instance(sides, quiet), "instances")
    if _explained(sides, held, quiet, instances):
        return Found(held, new, missing, level="ids")
    return Found(held, new, missing, _by_count(sides, quiet), "counts")


def _explained(sides: Sides, held: frozenset[str], quiet: frozenset[str], total: int) -> bool:
    """Whether the studies that are on their way make up for the difference of the totals."""
    others = held - quiet
    if len(others) > EXPLAINABLE:
        return not quiet
    believed = sum(sides.ours.present[one].instances for one in quiet)
    return believed + sum(count.instances for count in _counts(sides, others).values()) == total


def _by_count(sides: Sides, orthanc_ids: Collection[str]) -> frozenset[str]:
    """The studies whose number of series or instances, or moment of the last change, is another one."""
    changed: set[str] = set()
    for orthanc_id, count in _counts(sides, orthanc_ids).items():
        ours = sides.ours.present[orthanc_id]
        # What was not counted yet is not compared.
        unlike = (ours.series and count.series != ours.series) or (
            ours.last_update and count.last_update != ours.last_update
        )
        if unlike or count.instances != ours.instances:
            changed.add(orthanc_id)
    return frozenset(changed)


def _counts(sides: Sides, orthanc_ids: Collection[str]) -> dict[str, truth.Counted]:
    """Counts of these studies as the archive has them; one that is gone meanwhile is left out."""
    found: dict[str, truth.Counted] = {}
    ordered = sorted(orthanc_ids)
    for start in range(0, len(ordered), STUDIES_AT_ONCE):
        sides.alive()
        some = ordered[start : start + STUDIES_AT_ONCE]
        studies = sides.orthanc.bulk_content("Study", some, metadata=False)
        sizes: dict[str, int] = {}
        for row in sides.orthanc.bulk_content("Series", some, metadata=False):
            sizes[row["ParentStudy"]] = sizes.get(row["ParentStudy"], 0) + len(row["Instances"])
        for row in studies:
            counted = truth.Counted(sizes.get(row["ID"], 0), len(row["Series"]), str(row.get("LastUpdate", "")))
            found[row["ID"]] = counted
    return found


def _by_instance(sides: Sides, orthanc_ids: Collection[str]) -> frozenset[str]:
    """The studies that do not have the very instances, in the very files, that we published."""
    changed: set[str] = set()
    for some in _portions(sides.ours.present, orthanc_ids):
        sides.alive()
        theirs = {row["ID"]: str(row.get("FileUuid", "")) for row in sides.orthanc.bulk_content("Instance", some, metadata=False)}  # fmt: skip  # noqa: E501
        with sides.store.read() as connection:
            ours = truth.files(connection, some)
        changed |= {study for one, (study, file) in ours.items() if not _same(file, theirs.get(one))}
        unknown = sorted(theirs.keys() - ours.keys())
        if unknown:
            changed |= {row["ID"] for row in sides.orthanc.bulk_content("Study", unknown, metadata=False)}
    return frozenset(changed)


def _same(file: str, held: str | None) -> bool:
    # A file that was never noted, or an archive that does not name its files, says nothing.
    return held is not None and (not file or not held or file == held)


def _portions(present: Mapping[str, Any], orthanc_ids: Collection[str]) -> Iterator[list[str]]:
    """The studies in portions of about so many instances."""
    some: list[str] = []
    size = 0
    for orthanc_id in sorted(orthanc_ids):
        some.append(orthanc_id)
        size += present[orthanc_id].instances
        if size >= INSTANCES_AT_ONCE or len(some) >= STUDIES_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some
