"""The closed route table of the DICOMweb gateway: raw path bytes to a typed target (PS3.18 sections 8.2, 10.1.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from app.errors import BadRequest, MethodNotAllowed, NotSupported

Resource = Literal[
    "search", "retrieve", "metadata", "rendered", "thumbnail", "pixeldata", "bulkdata", "frames", "store"
]
Level = Literal["study", "series", "instance"]
Uids = tuple[str | None, str | None, str | None]

MAX_PATH = 2048
MAX_FRAMES = 1000
UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
FRAMES = re.compile(r"[1-9][0-9]{0,5}(?:,[1-9][0-9]{0,5})*")
# No percent sign, so nothing is ever decoded: what was compared is what is meant.
PATH = re.compile(rb"(?:/[A-Za-z0-9.,_-]+)+")
TAG = re.compile(r"[0-9A-Fa-f]{8}")
ITEM = re.compile(r"[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about. `level` is what is found or retrieved; absent UIDs are not part of the address."""

    resource: Resource
    level: Level
    study: str | None = None
    series: str | None = None
    instance: str | None = None
    frames: tuple[int, ...] = ()
    element: tuple[str, ...] = ()
    """Of bulk data: tag, item number, tag … from the dataset down to the value; without one, all there is."""

    def path(self) -> str:
        """The address of the study, series or instance below the service root."""
        named = (("studies", self.study), ("series", self.series), ("instances", self.instance))
        return "".join(f"/{name}/{uid}" for name, uid in named if uid)


SEARCHES: dict[tuple[str, ...], Level] = {
    ("studies",): "study",
    ("series",): "series",
    ("instances",): "instance",
    ("studies", "*", "series"): "series",
    ("studies", "*", "instances"): "instance",
    ("studies", "*", "series", "*", "instances"): "instance",
}
OBJECTS: dict[tuple[str, ...], Level] = {
    ("studies", "*"): "study",
    ("studies", "*", "series", "*"): "series",
    ("studies", "*", "series", "*", "instances", "*"): "instance",
}
SUFFIXES: dict[str, Resource] = {
    "metadata": "metadata",
    "rendered": "rendered",
    "thumbnail": "thumbnail",
    "pixeldata": "pixeldata",
    "bulkdata": "bulkdata",
}
READ = ("GET", "HEAD", "OPTIONS")
STORED_INTO = frozenset({("studies",), ("studies", "*")})
"""Addresses that take a POST."""


def is_root(raw: bytes) -> bool:
    """Whether this is the service itself, which tells what it offers."""
    return raw in {b"", b"/"}


def allowed(raw: bytes) -> tuple[str, ...]:
    """The methods of an address in the table; everything outside the table is refused."""
    if is_root(raw):
        return READ
    segments = _segments(raw)
    if _match(segments) is None:
        raise NotSupported("there is no such DICOMweb address")
    return (*READ, "POST") if _shape(segments) in STORED_INTO else READ


def parse(method: str, raw: bytes) -> Target:
    """The target of a method and the raw path below the service root; everything outside the table is refused."""
    segments = _segments(raw)
    target = _match(segments)
    if target is None:
        raise NotSupported("there is no such DICOMweb address")
    if method == "POST" and _shape(segments) in STORED_INTO:
        return Target("store", "study", target.study)
    if method not in {"GET", "HEAD"}:
        raise MethodNotAllowed(f"{method} is not offered here", allow=allowed(raw))
    return target


def _segments(raw: bytes) -> list[str]:
    if len(raw) > MAX_PATH or not PATH.fullmatch(raw):
        raise BadRequest("the path has characters, segments or a length that no DICOMweb address has")
    segments = raw.decode("ascii").split("/")[1:]
    if any(segment.startswith(".") or segment.endswith(".") or ".." in segment for segment in segments):
        raise BadRequest("the path has a segment that begins or ends with a dot, or has two in a row")
    return segments


def _shape(segments: list[str]) -> tuple[str, ...]:
    return tuple("*" if at % 2 else segment for at, segment in enumerate(segments))


def _match(segments: list[str]) -> Target | None:
    shape = _shape(segments)
    if len(segments) in {1, 3, 5} and shape in SEARCHES:
        return Target("search", SEARCHES[shape], *_uids(segments))
    for length in (6, 4, 2):
        level = OBJECTS.get(shape[:length]) if len(segments) >= length else None
        if level is not None:
            return _object(level, _uids(segments[:length]), segments[length:])
    return None


def _uids(segments: list[str]) -> Uids:
    uids = segments[1::2]
    if any(len(uid) > 64 or not UID.fullmatch(uid) for uid in uids):
        raise BadRequest("a segment that must be a UID is none")
    study, series, instance = ([*uids, None, None, None])[:3]
    return study, series, instance


def _object(level: Level, uids: Uids, rest: list[str]) -> Target | None:
    match rest:
        case []:
            return Target("retrieve", level, *uids)
        case [suffix] if suffix in SUFFIXES:
            return Target(SUFFIXES[suffix], level, *uids)
        case ["frames", numbers, *suffix] if level == "instance":
            return _frames(uids, numbers, suffix)
        case ["bulkdata", *element] if level == "instance" and element:
            return Target("bulkdata", level, *uids, element=_element(element))
        case _:
            return None


def _frames(uids: Uids, numbers: str, suffix: list[str]) -> Target | None:
    if not FRAMES.fullmatch(numbers) or numbers.count(",") >= MAX_FRAMES:
        raise BadRequest(f"a frame list is up to {MAX_FRAMES} numbers from 1 with commas between")
    frames = tuple(int(number) for number in numbers.split(","))
    match suffix:
        case []:
            return Target("frames", "instance", *uids, frames=frames)
        case ["rendered" | "thumbnail" as name] if len(frames) == 1:
            return Target(SUFFIXES[name], "instance", *uids, frames=frames)
        case _:
            return None


def _element(parts: list[str]) -> tuple[str, ...]:
    tags, items = parts[::2], parts[1::2]
    well_formed = all(TAG.fullmatch(tag) for tag in tags) and all(ITEM.fullmatch(item) for item in items)
    if len(parts) % 2 == 0 or len(parts) > 21 or not well_formed:
        raise BadRequest("bulk data is addressed by tag, or by tag/item/tag")
    return tuple(part.upper() for part in parts)
