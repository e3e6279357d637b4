"""Metadata made once for each set of files, kept with a mark where the service's address goes (PS3.18 Annex F)."""

from __future__ import annotations

import secrets
from typing import Final

import orjson

from app.dicom import metadata
from app.dicom.cache import PROGRAM, Cache, Entry, Large
from app.dicom.holdings import Holding, Series
from app.dicom.orthanc import Orthanc
from app.dicom.paths import Target

MARK: Final = 32


def read(orthanc: Orthanc, cache: Cache, holding: Holding, target: Target, base: str) -> bytes:
    """The same bytes as without a cache: a JSON array of every instance of the target."""
    instance = holding.instance(target.series, target.instance)
    if instance is not None:
        return _addressed(_kept(orthanc, cache, holding, target, instance.version), base)
    wanted = [target.series] if target.series else list(holding.series)
    arrays = [_addressed(of_series(orthanc, cache, holding, holding.series[uid]), base) for uid in wanted]
    if len(arrays) == 1:
        return arrays[0]
    return b"[" + b",".join(array[1:-1] for array in arrays if array != b"[]") + b"]"


def of_series(orthanc: Orthanc, cache: Cache, holding: Holding, series: Series) -> bytes:
    """The metadata of a series, which begins with the mark that stands for the address."""
    target = Target("metadata", "series", holding.study_uid, series.uid)
    return _kept(orthanc, cache, holding, target, series.version)


def prepare(orthanc: Orthanc, cache: Cache, holding: Holding) -> None:
    """Make the metadata of every series that is not kept already."""
    for series in holding.series.values():
        if not cache.has(name(series.version)):
            of_series(orthanc, cache, holding, series)


def name(version: str) -> str:
    """What the metadata of these files is kept under."""
    return f"{version} metadata {PROGRAM}"


def _kept(orthanc: Orthanc, cache: Cache, holding: Holding, target: Target, version: str) -> bytes:
    named = name(version) if version else ""
    found = _whole(cache.get(named)) if named else None
    if found is not None:
        return found
    # Nobody can know it, so it stands nowhere in the content.
    mark = secrets.token_hex(MARK // 2)
    content = mark.encode() + orjson.dumps(metadata.read(orthanc, holding, target, mark))
    if named:
        cache.put(named, content)
    return content


def _whole(found: Entry | None) -> bytes | None:
    if not isinstance(found, Large):
        return found
    try:
        return found.read(0, found.length)
    finally:
        found.close()


def _addressed(kept: bytes, base: str) -> bytes:
    return kept[MARK:].replace(kept[:MARK], orjson.dumps(base)[1:-1])
