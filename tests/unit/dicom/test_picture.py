"""A frame's values become the shades the standard says (PS3.3 C.7.6.3, C.11, PS3.18 8.3.5)."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from pydicom.dataset import Dataset

from app.dicom import picture, rendering
from app.dicom.pixels import Frame
from app.dicom.rendering import Asked, Window
from app.errors import BadRequest, NotAcceptable


def grey(values: list[list[int]], dtype: str = "uint16", number: int = 0, **about: Any) -> Frame:
    samples = np.array(values, dtype)
    header = Dataset()
    header.Rows, header.Columns = samples.shape
    header.BitsAllocated = header.BitsStored = samples.itemsize * 8
    header.HighBit, header.PixelRepresentation = samples.itemsize * 8 - 1, int(samples.dtype.kind == "i")
    header.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in about.items():
        setattr(header, keyword, value)
    return Frame(header, number, samples)


def drawn(frame: Frame, query: str = "", media_type: str = "image/png") -> Image.Image:
    return Image.open(BytesIO(picture.draw(frame, rendering.parse(query), media_type)))


def shades(frame: Frame, query: str = "") -> list[list[int]]:
    return np.asarray(drawn(frame, query)).tolist()


def item(**about: Any) -> Dataset:
    made = Dataset()
    for keyword, value in about.items():
        setattr(made, keyword, value)
    return made


# PS3.3 C.11.2.1.2: windows


@pytest.mark.ps318("8.3.5.1.4")
def test_a_window_is_linear_between_its_ends() -> None:
    frame = grey([[0, 50, 51, 100, 149, 150, 65535]])
    assert shades(frame, "window=100,100") == [[0, 0, 3, 129, 255, 255, 255]]
    assert shades(frame, "window=100,100,linear") == shades(frame, "window=100,100,LINEAR")


@pytest.mark.ps318("8.3.5.1.4")
def test_an_exact_window_and_a_sigmoid_have_their_own_curves() -> None:
    frame = grey([[0, 50, 75, 100, 125, 150, 200]])
    assert shades(frame, "window=100,100,linear-exact") == [[0, 0, 64, 128, 191, 255, 255]]
    by_hand = [round(255 / (1 + np.exp(-4 * (value - 100) / 100))) for value in (0, 50, 75, 100, 125, 150, 200)]
    assert shades(frame, "window=100,100,sigmoid") == [by_hand]


def test_a_window_of_one_divides_black_from_white() -> None:
    assert shades(grey([[99, 100, 101]]), "window=100,1") == [[0, 255, 255]]


def test_the_objects_own_window_holds_unless_another_is_asked_for() -> None:
    frame = grey([[0, 100, 200]], WindowCenter=["100", "5"], WindowWidth=["200", "1"], VOILUTFunction="LINEAR_EXACT")
    assert shades(frame) == [[0, 128, 255]]
    assert shades(frame, "window=200,100,linear-exact") == [[0, 0, 128]]


@pytest.mark.parametrize("width", ["0", "-5", "", "x"])
def test_a_window_that_is_none_gives_way_to_the_whole_range(width: str) -> None:
    header = {"WindowCenter": "10", "WindowWidth": width} if width != "x" else {"WindowCenter": "", "WindowWidth": ""}
    assert shades(grey([[0, 100, 200]], **header)) == [[0, 128, 255]]


# PS3.3 C.11.1, C.7.6.3: what a stored value means


def test_signed_values_are_rescaled_before_the_window() -> None:
    frame = grey([[-1024, 0, 1024]], "int16", RescaleSlope="2", RescaleIntercept="-100")
    assert shades(frame, "window=-100,4096,linear-exact") == [[0, 128, 255]]


def test_monochrome1_shows_the_least_value_white() -> None:
    assert shades(grey([[0, 100, 200]], PhotometricInterpretation="MONOCHROME1")) == [[255, 128, 0]]


def test_bits_above_the_stored_ones_are_not_the_images() -> None:
    overlaid = grey([[0x1000, 0x0FFF, 0x1800]], BitsStored=12, HighBit=11)
    assert shades(overlaid) == [[0, 255, 128]]
    signed = grey([[0x0800, 0x0000, 0x07FF]], BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert shades(signed) == [[0, 128, 255]]
    shifted = grey([[0x0010, 0xFFF0, 0x0000]], BitsStored=12, HighBit=15)
    assert shades(shifted, "window=2048,4096,linear-exact") == [[0, 255, 0]]


def test_padding_does_not_stretch_the_range() -> None:
    assert shades(grey([[0, 1000, 1100]], PixelPaddingValue=0)) == [[0, 0, 255]]


def test_tables_stand_for_rescale_and_window() -> None:
    modality = item(LUTDescriptor=[3, 10, 16], LUTData=[0, 500, 1000])
    assert shades(grey([[0, 11, 99]], ModalityLUTSequence=[modality]), "window=500,1000,linear-exact") == [
        [0, 128, 255]
    ]
    voi = item(LUTDescriptor=[4, 0, 8], LUTData=[255, 128, 64, 0])
    assert shades(grey([[0, 1, 2, 3, 9]], VOILUTSequence=[voi])) == [[255, 128, 64, 0, 0]]
    words = item(LUTDescriptor=[2, 0, 16], LUTData=np.array([0, 65535], "<u2").tobytes())
    assert shades(grey([[0, 1]], VOILUTSequence=[words])) == [[0, 255]]


def test_each_frame_of_an_enhanced_object_has_its_own_window() -> None:
    def group(center: str) -> Dataset:
        return item(FrameVOILUTSequence=[item(WindowCenter=center, WindowWidth="1")])

    groups = [group("10"), group("200")]
    shared = [item(PixelValueTransformationSequence=[item(RescaleSlope="1", RescaleIntercept="5")])]
    about = {"PerFrameFunctionalGroupsSequence": groups, "SharedFunctionalGroupsSequence": shared}
    assert shades(grey([[0, 100, 200]], number=0, **about)) == [[0, 255, 255]]
    assert shades(grey([[0, 100, 200]], number=1, **about)) == [[0, 0, 255]]


def test_doses_and_maps_have_more_than_sixteen_bits() -> None:
    assert shades(grey([[0, 1 << 20, 1 << 21]], "uint32")) == [[0, 128, 255]]
    whole = Frame(grey([[0]]).header, 0, np.array([[-1.5, 0.0, np.nan, 1.5]], "float32"))
    assert shades(whole) == [[0, 128, 0, 255]]


# Colour


def test_a_palette_is_looked_up() -> None:
    table = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour, data in (
            ("Red", b"\x00\x00\xff\xff"),
            ("Green", b"\x00\x00\x00\x80"),
            ("Blue", b"\xff\xff\x00\x00"),
        )
        for part, value in (("Descriptor", [2, 0, 16]), ("Data", data))
    }
    frame = grey([[0, 1]], "uint8", PhotometricInterpretation="PALETTE COLOR", **table)
    assert shades(frame) == [[[0, 0, 255], [255, 128, 0]]]


def test_deep_colour_is_brought_to_eight_bits() -> None:
    header = grey([[0]], PhotometricInterpretation="RGB", BitsStored=12).header
    frame = Frame(header, 0, np.array([[[0, 2048, 4095]]], "uint16"))
    assert shades(frame) == [[[0, 128, 255]]]


@pytest.mark.ps318("8.3.5.1.5")
def test_colour_profiles_are_kept_or_brought_to_srgb() -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    header = grey([[0]], PhotometricInterpretation="RGB", BitsStored=8).header
    frame = Frame(header, 0, np.array([[[10, 20, 30]]], "uint8"))
    assert "icc_profile" not in drawn(frame).info
    described = ImageCms.ImageCmsProfile(BytesIO(drawn(frame, "iccprofile=srgb").info["icc_profile"]))
    assert "sRGB" in ImageCms.getProfileDescription(described)
    assert picture.draw(frame, Asked(profile="srgb"), "image/png") == picture.draw(
        frame, Asked(profile="yes"), "image/png"
    )
    header.ICCProfile = own
    assert drawn(frame, "iccprofile=yes", "image/jpeg").info["icc_profile"] == own
    assert np.asarray(drawn(frame, "iccprofile=yes")).tolist() == [[[10, 20, 30]]]
    header.ICCProfile = b"no profile"
    with pytest.raises(NotAcceptable):
        drawn(frame, "iccprofile=srgb")
    assert drawn(grey([[0, 9]]), "iccprofile=srgb").mode == "RGB"


# PS3.18 8.3.5.1.3: viewport and region


@pytest.mark.ps318("8.3.5.1.3")
def test_the_picture_is_the_largest_of_its_shape_that_the_viewport_holds() -> None:
    frame = grey([[0, 1, 2, 3], [4, 5, 6, 7]], "uint8")
    for viewport, size in (("8,8", (8, 4)), ("2,2", (2, 1)), ("100,10", (20, 10)), ("4,2", (4, 2)), ("1,4000", (1, 1))):
        assert drawn(frame, f"viewport={viewport}").size == size


@pytest.mark.ps318("8.3.5.1.3")
def test_a_region_is_cut_out_before_it_is_scaled() -> None:
    frame = grey([[0, 10, 20, 30], [40, 50, 60, 70]], "uint8", WindowCenter="127.5", WindowWidth="255")
    frame.header.VOILUTFunction = "LINEAR_EXACT"
    assert shades(frame, "viewport=2,1,1,0,2,1") == [[10, 20]]
    assert shades(frame, "viewport=2,2,2,,,") == [[20, 30], [60, 70]]
    assert shades(frame, "viewport=2,2,2,0,99,99") == [[20, 30], [60, 70]]


@pytest.mark.ps318("8.3.5.1.3")
def test_a_negative_size_mirrors() -> None:
    frame = grey([[0, 255]], "uint8", WindowCenter="127.5", WindowWidth="255", VOILUTFunction="LINEAR_EXACT")
    assert shades(frame, "viewport=2,1,0,0,-2,1") == [[255, 0]]
    tall = grey([[0], [255]], "uint8", WindowCenter="127.5", WindowWidth="255", VOILUTFunction="LINEAR_EXACT")
    assert shades(tall, "viewport=1,2,0,0,1,-2") == [[255], [0]]


def test_a_region_outside_of_the_image_is_a_bad_request() -> None:
    with pytest.raises(BadRequest):
        shades(grey([[0, 1]]), "viewport=2,2,2,0,1,1")


@pytest.mark.ps318("8.3.5.1.2", "8.7.4")
def test_each_form_is_what_it_says_and_quality_is_heard() -> None:
    noise = grey(np.random.default_rng(1).integers(0, 255, (64, 64)).tolist(), "uint8")
    for media_type, form in picture.FORMATS.items():
        assert drawn(noise, "", media_type).format == form
    sizes = [len(picture.draw(noise, rendering.parse(f"quality={q}"), "image/jpeg")) for q in (10, 50, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


# Objects that are not what they say


@pytest.mark.parametrize(
    "about",
    [
        {"ModalityLUTSequence": [item(LUTDescriptor=[3, 0], LUTData=[1])]},
        {"VOILUTSequence": [item(LUTDescriptor=[0, 0, 16], LUTData=[])]},
        {"BitsStored": 99},
        {"PhotometricInterpretation": "PALETTE COLOR"},
    ],
)
def test_an_object_that_cannot_be_drawn_is_refused_in_a_sentence(about: dict[str, Any]) -> None:
    frame = grey([[0, 1]], **about)
    if about.get("BitsStored"):
        assert shades(frame) == [[0, 255]]
        return
    with pytest.raises(NotAcceptable, match="cannot be decoded"):
        shades(frame)


# PS3.18 8.3.5: parameters


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("", Asked()),
        ("viewport=10,20", Asked((10, 20))),
        ("viewport=10,20,1.5,2,-3,4", Asked((10, 20), (1.5, 2.0, -3.0, 4.0))),
        ("viewport=10,20,,,,", Asked((10, 20))),
        ("window=-600,1500", Asked(window=Window(-600, 1500))),
        ("window=40.5,0.25,Sigmoid", Asked(window=Window(40.5, 0.25, "sigmoid"))),
        ("quality=100&iccprofile=yes", Asked(quality=100, profile="yes")),
        ("accept=image%2Fpng&charset=utf-8", Asked()),
    ],
)
@pytest.mark.ps318("8.3.5.1.3", "8.3.5.1.4")
def test_parameters_are_read(query: str, asked: Asked) -> None:
    assert rendering.parse(query) == asked


@pytest.mark.parametrize(
    "query",
    ["viewport=0,1", "viewport=1", "viewport=1,2,3", "viewport=5000,1", "viewport=1,1,-1,0,1,1", "viewport=1,1,0,0,0,1",
     "viewport=1,1,0,0,1,1,1", "viewport=a,b", "viewport=1e3,1", "viewport=", "window=1", "window=1,0", "window=1,-2",
     "window=1,0.5,linear", "window=1,0,sigmoid", "window=nan,1", "window=1,2,cubic", "window=1,2,linear,3",
     "quality=0", "quality=101", "quality=5.0", "annotation=patient", "annotation=",
     "iccprofile=adobergb", "iccprofile=", "x=1",
     "quality=5&quality=5", "window=1,2&viewport=1,1&window=1,2", "quality=%FF"],
)  # fmt: skip
def test_a_parameter_that_cannot_be_honoured_is_a_bad_request(query: str) -> None:
    with pytest.raises(BadRequest):
        rendering.parse(query)
