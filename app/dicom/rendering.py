"""How a picture is asked for, and of what it is taken (PS3.18 sections 8.3.5 and 10.4.1.1.3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from app.dicom.holdings import Holding, Instance
from app.dicom.paths import Target
from app.errors import BadRequest, NotFound

THUMBNAIL: Final = (128, 128)
MAX_SIDE: Final = 4096
NO_IMAGE: Final = frozenset({
    "SR", "KO", "PR", "SEG", "DOC", "REG", "RTSTRUCT", "RTPLAN", "AU", "ECG", "HD", "PLAN", "FID", "EPS", "RESP",
})  # fmt: skip
"""Modalities whose objects are not what a person wants to see of a study."""
STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
WITHOUT_FRAMES: Final = tuple(
    STORAGE + family
    for family in ("88.", "104.", "11.", "9.", "66.1", "66.2", "66.3", "66.5", "66.6", "481.3", "481.5")
)
"""SOP classes, by the start of their UID, that have no pixel data: documents, waveforms, presentation states …"""

NUMBER: Final = r"[0-9]{1,9}(?:\.[0-9]{1,6})?"
VIEWPORT: Final = re.compile(
    rf"([1-9][0-9]{{0,3}}),([1-9][0-9]{{0,3}})(?:,({NUMBER})?,({NUMBER})?,(-?{NUMBER})?,(-?{NUMBER})?)?"
)
WINDOW: Final = re.compile(rf"(-?{NUMBER}),({NUMBER})(?:,(linear|linear-exact|sigmoid))?", re.IGNORECASE)
QUALITY: Final = re.compile(r"[1-9][0-9]?|100")
PROFILE: Final = re.compile(r"no|yes|srgb")
PARAMETERS: Final = ("viewport", "window", "quality", "iccprofile")
NEGOTIATED: Final = frozenset({"accept", "charset"})
"""Read with the Accept header."""

Region = tuple[float, float, float | None, float | None]


@dataclass(frozen=True, slots=True)
class Window:
    """Which values are shown from black to white, and along which curve."""

    centre: float
    width: float
    function: str = "linear"


@dataclass(frozen=True, slots=True)
class Asked:
    """How the picture is wanted."""

    viewport: tuple[int, int] | None = None
    region: Region | None = None
    """Left, top, width and height in pixels of the image; a negative size mirrors."""
    window: Window | None = None
    quality: int | None = None
    profile: str = "no"

    @property
    def name(self) -> str:
        """The same for the same picture, however it was written."""
        return f"{self.viewport}{self.region}{self.window}{self.quality}{self.profile}"


def parse(query_string: str, *, thumbnail: bool = False) -> Asked:
    """The rendering parameters; those that cannot be honoured are refused, never ignored."""
    try:
        pairs = parse_qsl(query_string, keep_blank_values=True, max_num_fields=20, errors="strict")
    except ValueError as error:
        raise BadRequest("the query cannot be read") from error
    query = {name: value for name, value in pairs if name not in NEGOTIATED}
    if len(query) != sum(name not in NEGOTIATED for name, _ in pairs) or not query.keys() <= set(PARAMETERS):
        raise BadRequest(f"renderings know {', '.join(PARAMETERS)}, each once; annotation is not offered")
    viewport, region = _viewport(query)
    quality = _read(QUALITY, query, "quality")
    profile = _read(PROFILE, query, "iccprofile")
    return Asked(
        viewport or (THUMBNAIL if thumbnail else None),
        region,
        _window(query),
        int(quality[0]) if quality else None,
        profile[0] if profile else "no",
    )


def _viewport(query: Mapping[str, str]) -> tuple[tuple[int, int] | None, Region | None]:
    found = _read(VIEWPORT, query, "viewport")
    if found is None:
        return None, None
    viewport = (int(found[1]), int(found[2]))
    if max(viewport) > MAX_SIDE:
        raise BadRequest(f"a side of the viewport has at most {MAX_SIDE} pixels")
    left, top, wide, high = (float(each) if each else None for each in found.groups()[2:])
    if wide == 0 or high == 0:
        raise BadRequest("the region of the viewport is empty")
    whole = left is None and top is None and wide is None and high is None
    return viewport, None if whole else (left or 0.0, top or 0.0, wide, high)


def _window(query: Mapping[str, str]) -> Window | None:
    found = _read(WINDOW, query, "window")
    if found is None:
        return None
    window = Window(float(found[1]), float(found[2]), (found[3] or "linear").lower())
    if window.width < 1 and (window.function == "linear" or window.width == 0):
        raise BadRequest("the window's width is at least 1, for linear-exact and sigmoid more than 0")
    return window


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
        instances = [each for each in series.instances.values() if has_frames(each)]
        if instances and series.tags.get("Modality") not in NO_IMAGE:
            return instances[len(instances) // 2]
    for series in wanted:
        for instance in series.instances.values():
            return instance
    raise NotFound("there is nothing to show")


def has_frames(instance: Instance) -> bool:
    """Whether the object has pixel data, by what it is."""
    return not instance.sop_class.startswith(WITHOUT_FRAMES)


def must_have(instance: Instance, frame: int) -> None:
    """Raise unless the instance has this frame."""
    if not has_frames(instance) or not 1 <= frame <= instance.frames:
        raise NotFound("there is no such frame")
