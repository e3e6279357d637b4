"""WADO-RS: stored bytes, frames, renderings and bulk data in the media types asked for (PS3.18 sections 8.7, 10.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Final

import pydicom
from pydicom.encaps import generate_frames
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from app.dicom import multipart, relay, rendering
from app.dicom.holdings import Holding, Instance
from app.dicom.multipart import MediaType
from app.dicom.orthanc import Orthanc
from app.dicom.paths import Target
from app.dicom.relay import Piece, Transcoding, Way
from app.errors import BadRequest, NotAcceptable, NotFound

EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
NATIVE = frozenset({"1.2.840.10008.1.2", EXPLICIT_LITTLE, "1.2.840.10008.1.2.1.99"})
"""Frames of these are plain little endian samples."""
IMAGE_TYPES: Mapping[str, str] = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
"""The media type of a frame in each transfer syntax (PS3.18 Table 8.7.3-3)."""
OCTETS: Final = "application/octet-stream"
DICOM: Final = "application/dicom"
PIXEL_DATA: Final = "7FE00010"


def accepted(request: Request) -> list[MediaType]:
    """What the caller takes, most wanted first; anything when it does not say."""
    header = ",".join(request.headers.getlist("accept"))
    return multipart.media_types(header) if header.strip() else [MediaType("*/*")]


def names(pattern: str, media_type: str) -> bool:
    """Whether a media range includes a type."""
    return pattern in {"*/*", media_type} or (pattern.endswith("/*") and media_type.startswith(pattern[:-1]))


async def retrieve(way: Way, request: Request, holding: Holding, target: Target) -> Response:
    """Whole instances: stored bytes where the caller takes them, else in the transfer syntax it asks for."""
    wanted = _dicom_range(accepted(request), single=target.level == "instance")
    one = holding.instance(target.series, target.instance)
    instances = [one] if one else holding.instances(target.series)
    if not instances:
        raise NotFound("the study has no such instances")
    pieces = [_dicom_piece(instance, wanted.transfer_syntax) for instance in instances]
    if wanted.type == DICOM:
        return await relay.single(way, pieces[0])
    return await relay.multipart(way, DICOM, pieces)


def _dicom_range(ranges: Sequence[MediaType], *, single: bool) -> MediaType:
    for wanted in ranges:
        if wanted.type == "multipart/related" and names(wanted.part, DICOM):
            return wanted
        if wanted.type == DICOM and single:
            return wanted
        if names(wanted.type, "multipart/related"):
            return MediaType("multipart/related", wanted.parameters)
    raise NotAcceptable('instances are sent as multipart/related; type="application/dicom"')


def _dicom_piece(instance: Instance, wanted: str | None) -> Piece:
    stored = instance.transfer_syntax or EXPLICIT_LITTLE
    # Without a word the standard means Explicit VR Little Endian (PS3.18 section 8.7.3.5.2).
    syntax = stored if wanted == "*" else wanted or EXPLICIT_LITTLE
    if syntax == stored:
        return Piece(f"{DICOM}; transfer-syntax={stored}", f"/instances/{instance.orthanc_id}/file")
    return Piece(f"{DICOM}; transfer-syntax={syntax}", Transcoding(instance.orthanc_id, syntax))


async def frames(way: Way, request: Request, instance: Instance, numbers: Sequence[int]) -> Response:
    """Frames as stored, or as plain samples when the caller does not take what is stored."""
    for number in numbers:
        rendering.must_have(instance, number)
    stored = instance.transfer_syntax or EXPLICIT_LITTLE
    wanted, as_stored = _frame_range(accepted(request), stored, single=len(numbers) == 1)
    part = _frame_type(wanted, stored if as_stored else EXPLICIT_LITTLE)
    if as_stored:
        root = f"/instances/{instance.orthanc_id}/frames"
        pieces = [Piece(part, f"{root}/{number - 1}/raw") for number in numbers]
    else:
        samples = await run_in_threadpool(_samples, way.orthanc, instance, numbers)
        pieces = [Piece(part, sample) for sample in samples]
    if wanted.type not in {"multipart/related", "*/*", "multipart/*"}:
        return await relay.single(way, pieces[0])
    return await relay.multipart(way, part.partition(";")[0], pieces)


def _frame_type(wanted: MediaType, syntax: str) -> str:
    named = wanted.part if "*" not in wanted.part else OCTETS
    shown = EXPLICIT_LITTLE if syntax in NATIVE else syntax
    return f"{named}; transfer-syntax={shown}"


def _frame_range(ranges: Sequence[MediaType], stored: str, *, single: bool) -> tuple[MediaType, bool]:
    """The first range that can be met, and whether the stored form meets it."""
    image_type = IMAGE_TYPES.get(stored)
    for wanted in ranges:
        if wanted.type != "multipart/related" and not (single or "*" in wanted.type):
            continue
        if stored in NATIVE:
            takes = wanted.transfer_syntax in {None, "*", EXPLICIT_LITTLE, stored}
            if names(wanted.part, OCTETS) and takes:
                return wanted, True
        elif _takes_stored(wanted, stored, image_type):
            return wanted, True
        elif names(wanted.part, OCTETS) and wanted.transfer_syntax in {None, EXPLICIT_LITTLE}:
            return wanted, False
    raise NotAcceptable(
        f'frames are sent as multipart/related; type="{image_type or OCTETS}"; transfer-syntax={stored}'
    )


def _takes_stored(wanted: MediaType, stored: str, image_type: str | None) -> bool:
    if wanted.part == image_type:
        return wanted.transfer_syntax in {None, "*", stored}
    return names(wanted.part, OCTETS) and wanted.transfer_syntax in {"*", stored}


def _samples(orthanc: Orthanc, instance: Instance, numbers: Iterable[int]) -> list[bytes]:
    content = relay.transcoded(orthanc, instance.orthanc_id, EXPLICIT_LITTLE)
    dataset = pydicom.dcmread(BytesIO(content))
    bits = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated
    size = bits // 8
    return [dataset.PixelData[(number - 1) * size : number * size] for number in numbers]


async def bulk_data(way: Way, request: Request, instance: Instance, element: tuple[str, ...]) -> Response:
    """One value out of the dataset, unchanged."""
    ranges = accepted(request)
    wanted = next((one for one in ranges if names(one.part, OCTETS)), None)
    if wanted is None:
        raise NotAcceptable(f'bulk data is sent as multipart/related; type="{OCTETS}"')
    if element == (PIXEL_DATA,):
        contents = await run_in_threadpool(_pixel_data, way.orthanc, instance)
        pieces = [Piece(OCTETS, content) for content in contents]
    else:
        pieces = [Piece(OCTETS, _content_path(instance, element))]
    if wanted.type == OCTETS and len(pieces) == 1:
        return await relay.single(way, pieces[0])
    return await relay.multipart(way, OCTETS, pieces)


def _content_path(instance: Instance, element: tuple[str, ...]) -> str:
    # Tags and item numbers alternate; Orthanc counts items from 0.
    steps = [
        str(int(step) - 1) if at % 2 else f"{step[:4].lower()}-{step[4:].lower()}" for at, step in enumerate(element)
    ]
    return "/".join(("", "instances", instance.orthanc_id, "content", *steps))


def _pixel_data(orthanc: Orthanc, instance: Instance) -> list[bytes]:
    dataset = orthanc.dataset(instance.orthanc_id, stop_before_pixels=False)
    content = dataset.get("PixelData")
    if content is None:
        raise NotFound("the object has no pixel data")
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return list(generate_frames(content, number_of_frames=instance.frames))
    return [content]


async def rendered(way: Way, request: Request, holding: Holding, target: Target) -> Response:
    """An image a browser shows: of a frame, an instance, or the middle of a series."""
    instance = rendering.representative(holding, target)
    frame = target.frames[0] if target.frames else 1
    asked = rendering.parse(request.url.query, thumbnail=target.resource == "thumbnail")
    media_type = rendering.media_type(instance, [one.type for one in accepted(request)])
    if media_type in rendering.IMAGES:
        rendering.must_have(instance, frame)
    path = rendering.path(instance, frame, media_type, asked)
    try:
        return await relay.single(way, Piece(media_type, path))
    except BadRequest as error:
        raise NotAcceptable("the archive cannot render this object") from error
