"""One frame of an object and the attributes that explain it, decoded within limits (PS3.5 section 8, Annex A)."""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pydicom.config
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_partial
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from starlette.concurrency import run_in_threadpool

from app.dicom.holdings import Instance
from app.dicom.relay import Way
from app.errors import ArchiveFailed, BadRequest, NotAcceptable, NotFound

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples = NDArray[Any]

WHOLE: Final = 16 << 20
"""A file up to this size is read at once; of a larger one its head, and then one frame."""
MAX_SAMPLES: Final = 64 << 20
"""A mammogram of 30 megapixels in two bytes, or any tile of a slide; more is not decoded."""
JPEG_LS: Final = frozenset({"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"})
PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
FAULTS: Final = (
    ArithmeticError,
    AttributeError,
    InvalidDicomError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zlib.error,
)
"""What decoders raise at an object that is not what it says."""

# A library's warning repeats the value it stumbles over, which may be a patient's.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
_quiet = Lock()


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame decoded: its object's attributes, its place from 0, and its samples: grey, palette codes or RGB."""

    header: Dataset
    number: int
    samples: Samples


@contextmanager
def honestly() -> Generator[None]:
    """Within, an object that cannot be read is refused in one sentence, whichever library finds the fault."""
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except FAULTS as error:
            raise NotAcceptable("this object cannot be decoded") from error


async def frame(way: Way, instance: Instance, number: int) -> Frame:
    """The frame with this number from 1, decoded here or, where no decoder is at hand, by the archive."""
    content, is_whole = await _head(way, f"/instances/{instance.orthanc_id}/file")
    header = await run_in_threadpool(_read, content, is_whole=is_whole)
    try:
        if is_whole:
            return await run_in_threadpool(_decoded, header, number - 1)
        raw = await _all(way, f"/instances/{instance.orthanc_id}/frames/{number - 1}/raw")
        return await run_in_threadpool(_decoded, header, number - 1, raw)
    except (NotAcceptable, BadRequest):
        if not UID(header.file_meta.TransferSyntaxUID).is_encapsulated:
            raise
    decoded = await _all(way, f"/instances/{instance.orthanc_id}/frames/{number - 1}/numpy?rescale=false")
    return await run_in_threadpool(_from_archive, header, number - 1, decoded)


async def samples(way: Way, instance: Instance, number: int) -> bytes:
    """One frame as plain little endian samples."""
    decoded = await frame(way, instance, number)
    if decoded.header.get("BitsAllocated") == 1:
        return np.packbits(decoded.samples, bitorder="little").tobytes()
    return decoded.samples.astype(decoded.samples.dtype.newbyteorder("<")).tobytes()


async def decompressed(way: Way, instance: Instance) -> bytes:
    """The whole object in Explicit VR Little Endian."""
    content = await _all(way, f"/instances/{instance.orthanc_id}/file")
    return await run_in_threadpool(_decompressed, content)


def _decompressed(content: bytes) -> bytes:
    with honestly():
        whole = dcmread(BytesIO(content))
        _must_be_image(whole, frames=int(whole.get("NumberOfFrames") or 1))
        whole.decompress(generate_instance_uid=False)
        buffer = BytesIO()
        whole.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()


async def header(way: Way, instance: Instance) -> Dataset:
    """The object's attributes without its pixels."""
    content, is_whole = await _head(way, f"/instances/{instance.orthanc_id}/file")
    return await run_in_threadpool(_read, content, is_whole=is_whole)


async def _head(way: Way, path: str) -> tuple[bytes, bool]:
    """The file's first bytes, and whether they are all."""
    opened = await way.upstream.open(path)
    content = bytearray()
    try:
        async for chunk in opened.chunks():
            content += chunk
            if len(content) > WHOLE:
                return bytes(content), False
    finally:
        opened.close()
    return bytes(content), True


async def _all(way: Way, path: str) -> bytes:
    try:
        opened = await way.upstream.open(path)
    except (BadRequest, ArchiveFailed) as error:
        raise NotAcceptable("this object cannot be decoded") from error
    content = bytearray()
    try:
        async for chunk in opened.chunks():
            content += chunk
            if len(content) > 4 * MAX_SAMPLES:
                raise NotAcceptable("this image is too large to be decoded")
    finally:
        opened.close()
    return bytes(content)


def _read(content: bytes, *, is_whole: bool) -> Dataset:
    reached = is_whole

    def at_pixels(tag: int, _vr: str | None, _length: int) -> bool:
        nonlocal reached
        reached = reached or tag in PIXELS
        return tag in PIXELS

    with honestly():
        found = read_partial(BytesIO(content), stop_when=lambda tag, *_: tag >= 0x00080000)
        if found.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
            found = _inflated(found, content)
        elif is_whole:
            found = dcmread(BytesIO(content))
        else:
            found = read_partial(BytesIO(content), stop_when=at_pixels)
        if not reached:
            raise NotAcceptable("this object is too large to be decoded")
        return found


def _inflated(meta: Dataset, content: bytes) -> Dataset:
    # Bounded: a few kilobytes of deflated zeros are gigabytes.
    start = content.index(b"DICM") + 4 + 12 + int(meta.file_meta.FileMetaInformationGroupLength)
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflating.decompress(content[start:], 2 * MAX_SAMPLES)
    if inflating.unconsumed_tail:
        raise NotAcceptable("this object is too large to be decoded")
    found = read_dataset(BytesIO(plain), is_implicit_VR=False, is_little_endian=True)
    found.file_meta = meta.file_meta
    found.set_original_encoding(is_implicit_vr=False, is_little_endian=True)
    return found


def _must_be_image(header: Dataset, frames: int = 1) -> None:
    try:
        size = int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel", 1)) * frames
    except (AttributeError, TypeError, ValueError) as error:
        raise NotAcceptable("this object is no image") from error
    if not 0 < size <= MAX_SAMPLES:
        raise NotAcceptable("this image is too large to be decoded")


def _decoded(header: Dataset, number: int, raw: bytes | None = None) -> Frame:
    """From the whole object, or from the bytes of the frame alone."""
    with honestly():
        _must_be_image(header)
        if raw is None:
            if not PIXELS & set(header.keys()):
                raise NotAcceptable("this object is no image")
            if number >= int(header.get("NumberOfFrames") or 1):
                raise NotFound("there is no such frame")
            source, index = header, number
        else:
            source, index = _alone(header, raw), 0
        if header.file_meta.TransferSyntaxUID in JPEG_LS:
            _must_be_of_size(header, raw or _encapsulated(header, number))
        return Frame(header, number, pixel_array(source, index=index))


def _encapsulated(header: Dataset, number: int) -> bytes:
    frames = int(header.get("NumberOfFrames") or 1)
    return get_frame(header.PixelData, number, number_of_frames=frames)


def _alone(header: Dataset, raw: bytes) -> Dataset:
    """An object of this one frame."""
    syntax = UID(header.file_meta.TransferSyntaxUID)
    alone = Dataset()
    alone.update({tag: header[tag] for tag in header.keys() if tag.group == 0x0028})  # noqa: SIM118 - pydicom's own
    alone.file_meta = header.file_meta
    alone.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    alone.NumberOfFrames = 1
    alone.PixelData = encapsulate([raw]) if syntax.is_encapsulated else raw + b"\0" * (len(raw) % 2)
    alone["PixelData"].VR = "OW" if alone.BitsAllocated > 8 else "OB"
    alone["PixelData"].is_undefined_length = syntax.is_encapsulated
    return alone


def _must_be_of_size(header: Dataset, content: bytes) -> None:
    # Its decoder makes room for whatever the stream says before anybody compares that with Rows and Columns.
    at = 2
    while content[at : at + 1] == b"\xff" and at + 9 <= len(content):
        if content[at + 1] == 0xF7:
            rows, columns = (int.from_bytes(content[at + step : at + step + 2], "big") for step in (5, 7))
            if (rows, columns) == (header.Rows, header.Columns):
                return
            break
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    raise NotAcceptable("this image is not of the size it says")


def _from_archive(header: Dataset, number: int, content: bytes) -> Frame:
    with honestly():
        _must_be_image(header)
        samples = np.load(BytesIO(content), allow_pickle=False)
        if samples.ndim != 3 or samples.shape[:2] != (header.Rows, header.Columns):
            raise NotAcceptable("this image is not of the size it says")
        return Frame(header, number, samples[..., 0] if samples.shape[2] == 1 else samples)
