"""A stored frame as a picture: values, window, colour, region, size, file (PS3.4 Annex N.2, PS3.3 C.7.6.3, C.11)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageCms
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from app.dicom import pixels
from app.dicom.pixels import MAX_SAMPLES, Frame
from app.dicom.rendering import Asked, Window
from app.errors import BadRequest, NotAcceptable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples = NDArray[Any]
    Reals = NDArray[np.float64]

MAX_REALS: Final = 8 << 20
"""Values of more than 16 bits are reckoned with one by one, eight bytes each."""
MAX_PROFILE: Final = 1 << 20
FORMATS: Final = {"image/jpeg": "JPEG", "image/png": "PNG", "image/gif": "GIF"}
QUALITY: Final = 90
Image.MAX_IMAGE_PIXELS = MAX_SAMPLES


def draw(frame: Frame, asked: Asked, media_type: str) -> bytes:
    """The picture in one of FORMATS."""
    with pixels.honestly():
        return _drawn(frame, asked, media_type)


def _drawn(frame: Frame, asked: Asked, media_type: str) -> bytes:
    is_grey = frame.samples.ndim == 2 and frame.header.get("PhotometricInterpretation") != "PALETTE COLOR"
    shades = _grey(frame, asked.window) if is_grey else _colour(frame)
    picture = _placed(Image.fromarray(shades), asked)
    profile: bytes | None = None
    if asked.profile != "no":
        picture, profile = _profiled(picture, frame.header, asked.profile)
    buffer = BytesIO()
    options: dict[str, Any] = {"icc_profile": profile} if profile and media_type != "image/gif" else {}
    if media_type == "image/jpeg":
        options["quality"] = asked.quality or QUALITY
    elif media_type == "image/png":
        # The smaller file costs more time than its transfer.
        options["compress_level"] = 2
    picture.save(buffer, FORMATS[media_type], **options)
    return buffer.getvalue()


def _grey(frame: Frame, wanted: Window | None) -> Samples:
    """By a table of all stored values where there are few of them."""
    header, samples = frame.header, frame.samples
    inverse = header.get("PhotometricInterpretation") == "MONOCHROME1"
    if samples.dtype.kind == "f" or header.BitsAllocated > 16:
        if samples.size > MAX_REALS:
            raise NotAcceptable("this image is too large to be rendered")
        reals = _modality(frame, samples.astype(np.float64))
        return _bytes(_voi(frame, reals, wanted, reals), inverse=inverse)
    bits = min(int(header.get("BitsStored") or header.BitsAllocated), int(header.BitsAllocated))
    shift = max(int(header.get("HighBit", bits - 1)) + 1 - bits, 0)
    # Bits beside the stored ones may be an overlay's.
    codes = (samples.view(np.uint16 if samples.itemsize == 2 else np.uint8) >> shift) & ((1 << bits) - 1)
    domain = np.arange(1 << bits, dtype=np.float64)
    if header.get("PixelRepresentation"):
        domain[len(domain) // 2 :] -= len(domain)
    reals = _modality(frame, domain)
    present = np.bincount(codes.ravel(), minlength=len(domain)) > 0
    padding = header.get("PixelPaddingValue")
    if isinstance(padding, int) and present.sum() > 1:
        present &= domain != padding
    return _bytes(_voi(frame, reals, wanted, reals[present]), inverse=inverse)[codes]


def _bytes(shades: Reals, *, inverse: bool) -> Samples:
    return np.rint(np.clip(1 - shades if inverse else shades, 0, 1) * 255).astype(np.uint8)


def _modality(frame: Frame, stored: Reals) -> Reals:
    """What the stored values mean (PS3.3 C.11.1)."""
    table = next(iter(frame.header.get("ModalityLUTSequence") or []), None)
    if table is not None:
        return _looked_up(table, stored)[0]
    told = _functional(frame, "PixelValueTransformationSequence")
    slope, intercept = _number(told.get("RescaleSlope")), _number(told.get("RescaleIntercept"))
    return stored * (1.0 if slope is None else slope) + (0.0 if intercept is None else intercept)


def _voi(frame: Frame, reals: Reals, wanted: Window | None, shown: Reals) -> Reals:
    """Shades from 0 to 1: by the window asked for, else the object's own, else from the least value to the greatest."""
    told = _functional(frame, "FrameVOILUTSequence")
    window = wanted or _own_window(told)
    if window is not None:
        return _windowed(reals, window)
    table = next(iter(told.get("VOILUTSequence") or []), None)
    if table is not None:
        shades, top = _looked_up(table, reals)
        return shades / top
    finite = shown[np.isfinite(shown)]
    least, greatest = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    return np.nan_to_num((reals - least) / ((greatest - least) or 1.0), posinf=1.0, neginf=0.0)


def _own_window(told: Dataset) -> Window | None:
    centre, width = _number(told.get("WindowCenter")), _number(told.get("WindowWidth"))
    function = str(told.get("VOILUTFunction") or "LINEAR").strip().lower().replace("_", "-")
    if centre is None or width is None or width <= 0 or function not in {"linear", "linear-exact", "sigmoid"}:
        return None
    return Window(centre, width, function) if width >= 1 or function != "linear" else None


def _windowed(reals: Reals, window: Window) -> Reals:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    match window.function:
        case "sigmoid":
            return 1 / (1 + np.exp(np.clip(-4 * (reals - window.centre) / window.width, -700, 700)))
        case "linear-exact":
            return (reals - window.centre) / window.width + 0.5
        case _ if window.width == 1:
            return (reals > window.centre - 0.5).astype(np.float64)
        case _:
            return (reals - (window.centre - 0.5)) / (window.width - 1) + 0.5


def _looked_up(table: Dataset, values: Reals) -> tuple[Reals, float]:
    """What a table says of each value, and the greatest it can say."""
    length, first, bits = (int(number) for number in table.LUTDescriptor)
    data = table.LUTData
    entries = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.atleast_1d(np.asarray(data))
    entries = entries[: length or 1 << 16].astype(np.float64)
    places = np.clip(np.nan_to_num(values) - first, 0, len(entries) - 1).astype(np.int64)
    return entries[places], float((1 << min(max(bits, 1), 16)) - 1)


def _functional(frame: Frame, sequence: str) -> Dataset:
    """The attributes of one frame, of all frames, or of the object itself (PS3.3 C.7.6.16)."""
    groups = frame.header.get("PerFrameFunctionalGroupsSequence") or []
    per_frame = list(groups[frame.number : frame.number + 1])
    for group in [*per_frame, *(frame.header.get("SharedFunctionalGroupsSequence") or [])]:
        for item in group.get(sequence) or []:
            return item
    return frame.header


def _number(value: Any) -> float | None:
    several = value if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]
    try:
        number = float(next(iter(several)))
    except (TypeError, ValueError, StopIteration):
        return None
    return number if np.isfinite(number) else None


def _colour(frame: Frame) -> Samples:
    header, samples = frame.header, frame.samples
    if header.PhotometricInterpretation == "PALETTE COLOR":
        if samples.ndim == 2:
            samples = apply_color_lut(samples, header)[..., :3]
        return samples if samples.dtype == np.uint8 else (samples >> 8).astype(np.uint8)
    if samples.dtype == np.uint8:
        return samples
    over = max(int(header.get("BitsStored") or header.BitsAllocated) - 8, 0)
    return np.clip(samples >> over, 0, 255).astype(np.uint8)


def _placed(picture: Image.Image, asked: Asked) -> Image.Image:
    """The region asked for, mirrored where its width or height is negative, in the largest size the viewport holds."""
    if asked.viewport is None:
        return picture
    left, top, wide, high = asked.region or (0.0, 0.0, None, None)
    if left >= picture.width or top >= picture.height:
        raise BadRequest("the region of the viewport lies outside of the image")
    right = min(left + abs(wide), picture.width) if wide else picture.width
    bottom = min(top + abs(high), picture.height) if high else picture.height
    scale = min(asked.viewport[0] / (right - left), asked.viewport[1] / (bottom - top))
    size = (max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1))
    box = (left, top, right, bottom)
    placed = picture.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if wide is not None and wide < 0:
        placed = placed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if high is not None and high < 0:
        placed = placed.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return placed


@cache
def _srgb() -> bytes:
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # It bears the time of its making, and the same picture must be the same bytes (ICC.1 section 7.2.8).
    made[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    return bytes(made)


def _profiled(picture: Image.Image, header: Dataset, profile: str) -> tuple[Image.Image, bytes]:
    """With the object's own colour profile, or turned into sRGB, which is also what an object without one is in."""
    standard = ImageCms.ImageCmsProfile(BytesIO(_srgb()))
    optical = next(iter(header.get("OpticalPathSequence") or []), header)
    own = header.get("ICCProfile") or optical.get("ICCProfile")
    picture = picture.convert("RGB")
    if not own:
        return picture, _srgb()
    if len(own) > MAX_PROFILE:
        raise NotAcceptable("the colour profile of this object is too large")
    if profile == "yes":
        return picture, bytes(own)
    try:
        turned = ImageCms.profileToProfile(picture, ImageCms.ImageCmsProfile(BytesIO(own)), standard)
    except ImageCms.PyCMSError as error:
        raise NotAcceptable("the colour profile of this object cannot be read") from error
    return turned or picture, _srgb()
