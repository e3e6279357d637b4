"""WADO-RS: which pieces, in which form, answer a retrieve (PS3.18 sections 8.7 and 10.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import Final

import pydicom
from pydicom.encaps import generate_frames
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from app.dicom import accept, metadata, pixels, relay, rendering
from app.dicom.accept import Form, Wanted
from app.dicom.holdings import Holding, Instance
from app.dicom.orthanc import Orthanc
from app.dicom.paths import Target
from app.dicom.relay import Made, Piece, Transcoding, Way
from app.errors import ArchiveFailed, BadRequest, NotAcceptable, NotFound

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, "1.2.840.10008.1.2.1.99"})
"""Frames of these are plain little endian samples."""
JPEG: Final = "1.2.840.10008.1.2.4."
IMAGE_TYPES: Final[Mapping[str, str]] = {
    f"{JPEG}50": "image/jpeg",
    f"{JPEG}51": "image/jpeg",
    f"{JPEG}57": "image/jpeg",
    f"{JPEG}70": "image/jpeg",
    f"{JPEG}80": "image/jls",
    f"{JPEG}81": "image/jls",
    f"{JPEG}90": "image/jp2",
    f"{JPEG}91": "image/jp2",
    f"{JPEG}92": "image/jpx",
    f"{JPEG}93": "image/jpx",
    f"{JPEG}110": "image/jxl",
    f"{JPEG}111": "image/jxl",
    f"{JPEG}112": "image/jxl",
    f"{JPEG}201": "image/jphc",
    f"{JPEG}202": "image/jphc",
    f"{JPEG}203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
"""The media type of a frame in each transfer syntax (PS3.18 Table 8.7.3-5)."""
VIDEO_TYPES: Final[Mapping[str, str]] = {
    **{f"{JPEG}{number}{stream}": "video/mpeg" for number in (100, 101) for stream in ("", ".1")},
    **{f"{JPEG}{number}{stream}": "video/mp4" for number in range(102, 107) for stream in ("", ".1")},
    **{f"{JPEG}{number}": "video/H265" for number in (107, 108)},
}
LOSSY: Final = frozenset({*(f"{JPEG}{number}" for number in (50, 51, 81, 91, 93, 111, 112, 203)), *VIDEO_TYPES})
"""Kept as they are unless another is named: what was lost does not come back (PS3.18 section 8.7.3.3)."""
WRITTEN: Final = frozenset({EXPLICIT_LITTLE, *(f"{JPEG}{number}" for number in (50, 51, 57, 70, 80, 81))})
"""What the archive can put an object into, of those that web services use."""
READ: Final = NATIVE | WRITTEN | {EXPLICIT_BIG, "1.2.840.10008.1.2.5"}
"""What it can read for that; of others we decode ourselves what a decoder is at hand for."""
READ_HERE: Final = frozenset({f"{JPEG}90", f"{JPEG}91"})
DEFAULTS: Final = {"image/jpeg": f"{JPEG}70", "image/jls": f"{JPEG}80"}
"""The transfer syntax a media type means without one."""
OCTETS: Final = "application/octet-stream"
DICOM: Final = "application/dicom"
PIXEL_DATA: Final = "7FE00010"
PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
CDA: Final = "1.2.840.10008.5.1.4.1.1.104.2"
BEYOND_RAW: Final = ("1.2.840.10008.5.1.4.1.1.481.2", "1.2.840.10008.5.1.4.1.1.30")
"""Doses and parametric maps: the archive has no frames of more than 16 bits."""
REPORTS: Final = "1.2.840.10008.5.1.4.1.1.88."
IMAGES: Final = ("image/jpeg", "image/png", "image/gif")


async def retrieve(way: Way, request: Request, holding: Holding, target: Target) -> Response:
    """Whole instances: stored bytes where the caller takes them, else in the transfer syntax it asks for."""
    instances = instances_of(holding, target)
    if not instances:
        raise NotFound("the study has no such instances")
    forms = [Form(DICOM, is_multipart=True), *([Form(DICOM)] if target.instance else [])]
    for wanted in accept.wanted(request):
        if wanted.range.type == accept.RELATED and wanted.range.part == OCTETS:
            # What it meant before the bulk data had an address of its own (PS3.18 section 10.4.4).
            return await all_bulk_data(way, request, holding, target)
        form = next((form for form in forms if wanted.takes(form)), None)
        syntaxes = [_syntax(instance, wanted.transfer_syntax) for instance in instances] if form else [None]
        if form and all(syntaxes):
            pieces = [
                _dicom_piece(way, instance, syntax or "", f"{way.base}{address_of(holding, instance)}")
                for instance, syntax in zip(instances, syntaxes, strict=True)
            ]
            return await (relay.multipart(way, DICOM, pieces) if form.is_multipart else relay.single(way, pieces[0]))
    raise NotAcceptable(f"instances are sent as {' or '.join(map(str, forms))}; transfer-syntax=*, {_list(WRITTEN)}")


def address_of(holding: Holding, instance: Instance) -> str:
    """Where it is below the service."""
    return f"/studies/{holding.study_uid}/series/{instance.series_uid}/instances/{instance.sop_uid}"


def _list(syntaxes: Iterable[str]) -> str:
    return ", ".join(sorted(syntaxes))


def syntax_of(instance: Instance) -> str:
    """The transfer syntax it is stored in."""
    return instance.transfer_syntax or EXPLICIT_LITTLE


def _syntax(instance: Instance, wanted: str | None) -> str | None:
    """The transfer syntax to send the instance in, if the one wanted can be had."""
    stored = syntax_of(instance)
    if wanted in {"*", stored} or (wanted is None and stored in LOSSY):
        return stored
    named = wanted or EXPLICIT_LITTLE
    if named in WRITTEN and stored in READ:
        return named
    return named if named == EXPLICIT_LITTLE and stored in READ_HERE else None


def _dicom_piece(way: Way, instance: Instance, syntax: str, location: str) -> Piece:
    media_type, stored = f"{DICOM}; transfer-syntax={syntax}", syntax_of(instance)
    if syntax == stored:
        return Piece(media_type, f"/instances/{instance.orthanc_id}/file", location)
    if stored in READ:
        return Piece(media_type, Transcoding(instance.orthanc_id, syntax), location)
    make = partial(pixels.decompressed, way, instance)
    return Piece(media_type, Made(instance.orthanc_id, f"file {syntax}", make), location)


async def frames(way: Way, request: Request, instance: Instance, target: Target) -> Response:
    """Frames as stored, or as plain samples or in another compression when the caller does not take what is stored."""
    for number in target.frames:
        rendering.must_have(instance, number)
    form, syntax = _frame_form(accept.wanted(request), syntax_of(instance), is_single=len(target.frames) == 1)
    shown = EXPLICIT_LITTLE if syntax in NATIVE else syntax
    sources = await _frame_sources(way, instance, target.frames, syntax)
    locations = [f"{way.base}{target.path()}/frames/{number}" for number in target.frames]
    pieces = [
        Piece(f"{form.media_type}; transfer-syntax={shown}", source, location)
        for source, location in zip(sources, locations, strict=True)
    ]
    try:
        return await _relayed(way, form, pieces)
    except (BadRequest, ArchiveFailed):
        # The archive has no frames of more than 16 bits nor of floating point, and fails where it finds no pixels.
        made = [
            Piece(piece.media_type, _made_samples(way, instance, number), piece.location)
            for piece, number in zip(pieces, target.frames, strict=True)
        ]
        return await sent(way, form, made)


async def sent(way: Way, form: Form, pieces: Sequence[Piece]) -> Response:
    """The pieces in this form."""
    try:
        return await _relayed(way, form, pieces)
    except BadRequest as error:
        # The archive refused what we asked, which the caller never wrote.
        raise NotAcceptable("the archive cannot take this object apart: ask for the whole of it") from error


async def _relayed(way: Way, form: Form, pieces: Sequence[Piece]) -> Response:
    if form.is_multipart:
        return await relay.multipart(way, form.media_type, pieces)
    return await relay.single(way, pieces[0])


def _frame_form(ranges: Sequence[Wanted], stored: str, *, is_single: bool) -> tuple[Form, str]:
    """The first range that can be met, and the transfer syntax that meets it."""
    if stored in VIDEO_TYPES:
        raise NotAcceptable("a video has no frames to send: ask for its bulk data or its rendering")
    for wanted in ranges:
        for media_type, syntax in _frame_offers(stored, wanted.transfer_syntax):
            for form in (Form(media_type, is_multipart=True), Form(media_type)):
                if wanted.takes(form) and (form.is_multipart or is_single):
                    return form, syntax
    own = Form(IMAGE_TYPES.get(stored, OCTETS), is_multipart=True)
    raise NotAcceptable(f"these frames are sent as {own}; transfer-syntax={stored}, or as {Form(OCTETS, True)}")


def _frame_offers(stored: str, wanted: str | None) -> Iterator[tuple[str, str]]:
    """Media types with their transfer syntax, in the order in which a wildcard takes them."""
    if stored not in NATIVE:
        yield from _packed_offers(stored, wanted)
    elif wanted in {None, "*", EXPLICIT_LITTLE, stored}:
        yield OCTETS, stored
    if stored in READ and wanted is None:
        yield from DEFAULTS.items()
    elif stored in READ and wanted in WRITTEN & IMAGE_TYPES.keys():
        yield from ((media_type, wanted) for media_type in (IMAGE_TYPES[wanted], OCTETS))


def _packed_offers(stored: str, wanted: str | None) -> Iterator[tuple[str, str]]:
    own = IMAGE_TYPES.get(stored)
    if own and (wanted in {"*", stored} or (wanted is None and stored in LOSSY)):
        yield own, stored
    if wanted in {"*", stored}:
        yield OCTETS, stored
    if wanted in {None, EXPLICIT_LITTLE}:
        yield OCTETS, EXPLICIT_LITTLE
    if own and wanted is None:
        yield own, stored


async def _frame_sources(
    way: Way, instance: Instance, numbers: Sequence[int], syntax: str
) -> Sequence[str | bytes | Made]:
    stored = syntax_of(instance)
    if syntax == stored:
        return [f"/instances/{instance.orthanc_id}/frames/{number - 1}/raw" for number in numbers]
    if stored not in READ:
        return [_made_samples(way, instance, number) for number in numbers]
    if syntax == EXPLICIT_LITTLE:
        return await run_in_threadpool(_samples, way.orthanc, instance, numbers)
    return await run_in_threadpool(_compressed, way.orthanc, instance, numbers, syntax)


def _made_samples(way: Way, instance: Instance, number: int) -> Made:
    return Made(instance.orthanc_id, f"samples {number}", partial(pixels.samples, way, instance, number))


def _samples(orthanc: Orthanc, instance: Instance, numbers: Iterable[int]) -> list[bytes]:
    content = relay.transcoded(orthanc, instance.orthanc_id, EXPLICIT_LITTLE)
    with pixels.honestly():
        dataset = pydicom.dcmread(BytesIO(content))
        bits = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated
        size = bits // 8
        return [dataset.PixelData[(number - 1) * size : number * size] for number in numbers]


def _compressed(orthanc: Orthanc, instance: Instance, numbers: Iterable[int], syntax: str) -> list[bytes]:
    content = relay.transcoded(orthanc, instance.orthanc_id, syntax)
    with pixels.honestly():
        found = list(generate_frames(pydicom.dcmread(BytesIO(content)).PixelData, number_of_frames=instance.frames))
        return [found[number - 1] for number in numbers]


async def bulk_data(way: Way, request: Request, instance: Instance, target: Target) -> Response:
    """One value out of the dataset, unchanged; pixel data that is compressed as one part for each frame."""
    if target.element == (PIXEL_DATA,):
        return await _pixel_data(way, request, instance, target)
    types = [OCTETS, *(["application/pdf"] if instance.sop_class == PDF else [])]
    forms = [Form(media_type, is_multipart) for is_multipart in (True, False) for media_type in types]
    _, form = accept.select(request, forms)
    location = f"{way.base}{target.path()}/bulkdata/{'/'.join(target.element)}"
    return await sent(way, form, [Piece(form.media_type, _content_path(instance, target.element), location)])


def _content_path(instance: Instance, element: tuple[str, ...]) -> str:
    # Tags and item numbers alternate; Orthanc counts items from 0.
    steps = [
        str(int(step) - 1) if at % 2 else f"{step[:4].lower()}-{step[4:].lower()}" for at, step in enumerate(element)
    ]
    return "/".join(("", "instances", instance.orthanc_id, "content", *steps))


async def _pixel_data(way: Way, request: Request, instance: Instance, target: Target) -> Response:
    stored = syntax_of(instance)
    packed = IMAGE_TYPES.get(stored) or VIDEO_TYPES.get(stored)
    is_one = stored in VIDEO_TYPES or not packed or instance.frames == 1
    types = [packed, OCTETS] if packed else [OCTETS]
    forms = [
        Form(media_type, is_multipart) for is_multipart in ([True, False] if is_one else [True]) for media_type in types
    ]
    _, form = accept.select(request, forms)
    location = f"{way.base}{target.path()}/bulkdata/{PIXEL_DATA}"
    sources = _pixel_sources(way, instance)
    syntax = f"; transfer-syntax={stored}" if packed else ""
    return await sent(way, form, [Piece(f"{form.media_type}{syntax}", source, location) for source in sources])


def _pixel_sources(way: Way, instance: Instance) -> Sequence[str | Made]:
    stored = syntax_of(instance)
    if stored in IMAGE_TYPES or stored in VIDEO_TYPES:
        # A video is one stream, and the archive calls it one frame.
        count = 1 if stored in VIDEO_TYPES else instance.frames
        return [f"/instances/{instance.orthanc_id}/frames/{number}/raw" for number in range(count)]
    if stored == EXPLICIT_BIG:
        # Bulk data is little endian (PS3.18 section 8.7.3.3.1).
        return [_made_samples(way, instance, number + 1) for number in range(instance.frames)]
    # Pixel data is a list of fragments to the archive, of one fragment when it is not compressed.
    return [f"{_content_path(instance, (PIXEL_DATA,))}/0"]


async def all_pixel_data(way: Way, request: Request, holding: Holding, target: Target) -> Response:
    """Every frame of every image, each in the form in which one alone would be sent."""
    ranges = [each for each in accept.wanted(request) if each.takes(Form(each.range.part, is_multipart=True))]
    pieces: list[Piece] = []
    for instance in images_of(holding, target, with_videos=True):
        address = f"{way.base}{address_of(holding, instance)}"
        if syntax_of(instance) in VIDEO_TYPES:
            pieces.extend(_video(instance, ranges, f"{address}/bulkdata/{PIXEL_DATA}"))
            continue
        form, syntax = _frame_form(ranges, syntax_of(instance), is_single=False)
        if syntax not in {syntax_of(instance), EXPLICIT_LITTLE}:
            raise NotAcceptable(f"pixel data is sent as {Form(OCTETS, True)}, or as stored with transfer-syntax=*")
        media_type = f"{form.media_type}; transfer-syntax={EXPLICIT_LITTLE if syntax in NATIVE else syntax}"
        for number in range(1, instance.frames + 1):
            raw = f"/instances/{instance.orthanc_id}/frames/{number - 1}/raw"
            is_raw = syntax == syntax_of(instance) and not instance.sop_class.startswith(BEYOND_RAW)
            source = raw if is_raw else _made_samples(way, instance, number)
            pieces.append(Piece(media_type, source, f"{address}/frames/{number}"))
    if not pieces:
        raise NotFound("there are no images")
    try:
        return await relay.multipart(way, pieces[0].media_type.partition(";")[0], pieces)
    except (BadRequest, ArchiveFailed) as error:
        raise NotAcceptable("the pixel data cannot be read: ask for the bulk data") from error


def _video(instance: Instance, ranges: Sequence[Wanted], location: str) -> list[Piece]:
    stored = syntax_of(instance)
    for wanted in ranges:
        for media_type in (VIDEO_TYPES[stored], OCTETS):
            if wanted.takes(Form(media_type, is_multipart=True)) and wanted.transfer_syntax in {None, "*", stored}:
                source = f"/instances/{instance.orthanc_id}/frames/0/raw"
                return [Piece(f"{media_type}; transfer-syntax={stored}", source, location)]
    raise NotAcceptable(f"this video is sent as {Form(VIDEO_TYPES[stored], True)}")


async def all_bulk_data(way: Way, request: Request, holding: Holding, target: Target) -> Response:
    """Every value that the metadata only refers to, under the address it is referred to by."""
    accept.select(request, [Form(OCTETS, is_multipart=True)])
    contents = await run_in_threadpool(metadata.read, way.orthanc, holding, target, way.base)
    pieces = [
        piece
        for content, instance in zip(contents, instances_of(holding, target), strict=True)
        for location in metadata.referred(content)
        for piece in _bulk_pieces(way, instance, location)
    ]
    if not pieces:
        raise NotFound("there is no bulk data")
    return await relay.multipart(way, OCTETS, pieces)


def _bulk_pieces(way: Way, instance: Instance, location: str) -> Iterator[Piece]:
    element = tuple(location.rpartition("/bulkdata/")[2].split("/"))
    sources: Iterable[str | Made] = [_content_path(instance, element)]
    if element == (PIXEL_DATA,):
        sources = _pixel_sources(way, instance)
    yield from (Piece(OCTETS, source, location) for source in sources)


def instances_of(holding: Holding, target: Target) -> list[Instance]:
    """The instance that is named, or all of the series or the study."""
    one = holding.instance(target.series, target.instance)
    return [one] if one else holding.instances(target.series)


def images_of(holding: Holding, target: Target, *, with_videos: bool = False) -> list[Instance]:
    """Those of them that have frames."""
    return [
        each
        for each in instances_of(holding, target)
        if rendering.has_frames(each) and (with_videos or syntax_of(each) not in VIDEO_TYPES)
    ]
