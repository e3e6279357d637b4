"""Rendered images and thumbnails by the archive's own renderer (PS3.18 section 8.3.5, 10.4.1.1.3)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from app.dicom.holdings import Holding, Instance
from app.dicom.paths import Target
from app.errors import BadRequest, NotAcceptable, NotFound

THUMBNAIL = (128, 128)
MAX_SIDE = 8192
NO_IMAGE = frozenset({"SR", "KO", "PR", "SEG", "DOC", "REG", "RTSTRUCT", "RTPLAN", "AU", "ECG", "HD", "PLAN", "FID"})
"""Modalities whose objects are not what a person wants to see of a study."""
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
STORAGE = "1.2.840.10008.5.1.4.1.1."
WITHOUT_FRAMES = tuple(STORAGE + family for family in ("88.", "104.", "11.", "9.", "66.1", "66.2", "66.3", "66.5"))
"""SOP classes, by the start of their UID, that have no pixel data: documents, waveforms, presentation states …"""
IMAGES = ("image/jpeg", "image/png")
VIEWPORT = re.compile(r"([1-9][0-9]{0,3}),([1-9][0-9]{0,3})")
NUMBER = r"-?[0-9]{1,9}(?:\.[0-9]{1,6})?"
WINDOW = re.compile(rf"({NUMBER}),({NUMBER})(?:,linear)?", re.IGNORECASE)
QUALITY = re.compile(r"[1-9][0-9]?|100")


@dataclass(frozen=True, slots=True)
class Asked:
    """How the picture is wanted."""

    viewport: tuple[int, int] | None = None
    window: tuple[str, str] | None = None
    quality: str | None = None


def parse(query_string: str, *, thumbnail: bool = False) -> Asked:
    """The rendering parameters; those that cannot be honoured are refused, never ignored."""
    try:
        pairs = parse_qsl(query_string, keep_blank_values=True, max_num_fields=20, errors="strict")
    except ValueError as error:
        raise BadRequest("the query cannot be read") from error
    query = dict(pairs)
    if len(query) != len(pairs) or not query.keys() <= {"viewport", "window", "quality"}:
        raise BadRequest("renderings know viewport=width,height, window=center,width and quality, each once")
    size = _read(VIEWPORT, query, "viewport")
    window = _read(WINDOW, query, "window")
    viewport = (int(size[1]), int(size[2])) if size else THUMBNAIL if thumbnail else None
    if viewport and max(viewport) > MAX_SIDE:
        raise BadRequest(f"a side has at most {MAX_SIDE} pixels")
    quality = _read(QUALITY, query, "quality")
    return Asked(viewport, (window[1], window[2]) if window else None, quality[0] if quality else None)


def _read(pattern: re.Pattern[str], query: Mapping[str, str], name: str) -> re.Match[str] | None:
    if name not in query:
        return None
    found = pattern.fullmatch(query[name])
    if found is None:
        raise BadRequest(f"{name} cannot be read")
    return found


def representative(holding: Holding, target: Target) -> Instance:
    """The instance to show: the one named, else the middle one of the series, or of the first series with images."""
    if target.instance:
        instance = holding.instance(target.series, target.instance)
        if instance is None:
            raise NotFound("there is no such instance")
        return instance
    wanted = [holding.series[target.series]] if target.series else list(holding.series.values())
    for series in wanted:
        instances = list(series.instances.values())
        if instances and series.tags.get("Modality") not in NO_IMAGE:
            return instances[len(instances) // 2]
    raise NotFound("there is nothing to show")


def must_have(instance: Instance, frame: int) -> None:
    """Raise unless the instance has this frame."""
    if instance.sop_class.startswith(WITHOUT_FRAMES) or not 1 <= frame <= instance.frames:
        raise NotFound("there is no such frame")


def media_type(instance: Instance, ranges: Sequence[str]) -> str:
    """The form to render in, by what the caller takes."""
    offered = ("application/pdf",) if instance.sop_class == ENCAPSULATED_PDF else IMAGES
    for wanted in ranges:
        for one in offered:
            if wanted in {one, "*/*", one.partition("/")[0] + "/*"}:
                return one
    raise NotAcceptable(f"this object is rendered as {' or '.join(offered)}")


def path(instance: Instance, frame: int, media: str, asked: Asked) -> str:
    """Where the archive makes the picture."""
    if media == "application/pdf":
        return f"/instances/{instance.orthanc_id}/pdf"
    query: dict[str, str | int] = {}
    if asked.viewport:
        query |= {"width": asked.viewport[0], "height": asked.viewport[1]}
    if asked.window:
        query |= {"window-center": asked.window[0], "window-width": asked.window[1]}
    if asked.quality:
        query["quality"] = asked.quality
    suffix = f"?{urlencode(query)}" if query else ""
    return f"/instances/{instance.orthanc_id}/frames/{frame - 1}/rendered{suffix}"
