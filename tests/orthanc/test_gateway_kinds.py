"""Objects of many kinds through the gateway: each retrieved, taken apart, and shown (PS3.18 8.7.2 to 8.7.4, 10.4)."""

from __future__ import annotations

import io
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from io import BytesIO

import httpx
import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_windowing
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from app.dicom import pixels
from tests import pydicom_files
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.gateway import Running, publish, serving
from tests.orthanc.phantoms import image, part10, report

pytestmark = pytest.mark.orthanc

JPEG = "1.2.840.10008.1.2.4."
LITTLE = "1.2.840.10008.1.2.1"
GREY = ("CT_small.dcm", "MR_small_RLE.dcm", "693_J2KI.dcm", "examples_overlay.dcm", "image_dfl.dcm", "liver_1frame.dcm",
        "6154", "rtdose.dcm")  # fmt: skip
COLOUR = ("ExplVR_BigEnd.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_small_odd.dcm",
          "examples_jpeg2k.dcm", "examples_palette.dcm", "examples_ybr_color.dcm")  # fmt: skip
BY_THE_ARCHIVE = ("SC_rgb_jpeg_gdcm.dcm", "JPGExtended.dcm")
OTHERS = ("test-SR.dcm", "rtplan.dcm", "waveform_ecg.dcm", "JPEG2000-embedded-sequence-delimiter.dcm", "IM000000")
VIDEO = b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 12
PDF = b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"
OCTETS = 'multipart/related; type="application/octet-stream"'


@dataclass(frozen=True, slots=True)
class Kept:
    """An object as the archive has it."""

    address: str
    content: bytes
    dataset: Dataset


def read(content: bytes) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(BytesIO(content), force=True)


def made() -> Iterator[tuple[str, bytes]]:
    """Kinds of which pydicom brings no file."""

    def blank(number: int, sop_class: str, frames: int = 1) -> Dataset:
        dataset = image(mrn="K", study="1.2.9", series=f"1.2.9.{number}", instance=f"1.2.9.{number}.1", frames=frames)
        dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1." + sop_class)
        return dataset

    video = blank(1, "77.1.1.1", 25)
    video.PixelData = encapsulate([VIDEO], fragments_per_frame=3, has_bot=False)
    video.BitsAllocated = video.BitsStored = 8
    video.HighBit, video.SamplesPerPixel, video.PlanarConfiguration = 7, 3, 0
    video.PhotometricInterpretation = "YBR_PARTIAL_420"
    yield "video", part10(video, UID(f"{JPEG}102"))
    document = blank(2, "104.1")
    del document.PixelData, document.Rows
    document.Modality, document.EncapsulatedDocument = "DOC", PDF + b"\0" * (len(PDF) % 2)
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    yield "pdf", part10(document)
    parametric = blank(3, "30", 2)
    del parametric.PixelData, parametric.BitsStored, parametric.HighBit, parametric.RescaleIntercept
    parametric.BitsAllocated, parametric.FloatPixelData = 32, np.arange(32, dtype="<f4").tobytes()
    yield "map", part10(parametric)
    mask = blank(4, "66.4", 2)
    mask.BitsAllocated = mask.BitsStored = 1
    mask.HighBit, mask.Rows, mask.Columns = 0, 3, 3
    mask.PixelData = bytes([0b10101010, 0b11111101, 0b11, 0])
    yield "mask", part10(mask)
    bomb = blank(5, "2")
    bomb.Rows = bomb.Columns = 60000
    yield "too large", part10(bomb)
    liar = blank(6, "2")
    liar.PixelData = encapsulate([b"\xff\xd8\xff\xf7\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00\xff\xd9"])
    yield "liar", part10(liar, UID(f"{JPEG}80"))


@pytest.fixture(scope="module")
def world(orthanc: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, dict[str, Kept]]]:
    wanted = {*GREY, *COLOUR, *BY_THE_ARCHIVE, *OTHERS}
    files = {path.name: path for path in pydicom_files.paths() if path.name in wanted}
    with serving(orthanc, tmp_path_factory.mktemp("gateway")) as running:
        for study in list(running.archive.study_ids()):
            running.archive.delete_study(study)
        kept: dict[str, Kept] = {}
        for number, (name, content) in enumerate([*((n, p.read_bytes()) for n, p in sorted(files.items())), *made()]):
            dataset = read(content)
            if name in files:
                # Some files share their UIDs.
                dataset.StudyInstanceUID = dataset.SeriesInstanceUID = f"1.2.8.{number}"
                dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.8.{number}.1"
                dataset.PatientID = "K"
                buffer = BytesIO()
                dataset.save_as(buffer)
                content = buffer.getvalue()
            assert running.archive.store(content).status == "Success", name
            place = f"/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
            kept[name] = Kept(f"/dicom-web/studies/{dataset.StudyInstanceUID}{place}", content, dataset)
        publish(running.archive, running.store)
        yield running, kept
        for study in list(running.archive.study_ids()):
            running.archive.delete_study(study)


@pytest.fixture
def objects(world: tuple[Running, dict[str, Kept]]) -> dict[str, Kept]:
    return world[1]


@pytest.fixture
def client(world: tuple[Running, dict[str, Kept]]) -> Iterator[httpx.Client]:
    with world[0].client("system") as client:
        client.timeout = httpx.Timeout(30)
        yield client


def parts(response: httpx.Response) -> list[tuple[str, bytes]]:
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + response.content)
    return [(part["content-type"], part.get_payload(decode=True)) for part in message.iter_parts()]  # type: ignore[attr-defined]


def picture(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(BytesIO(response.content)))


# PS3.18 10.4.1.1.3: rendered


@pytest.mark.parametrize("name", GREY)
def test_a_grey_image_is_shown_as_another_library_shows_it(
    client: httpx.Client, objects: dict[str, Kept], name: str
) -> None:
    shown = picture(client.get(f"{objects[name].address}/rendered", headers={"Accept": "image/png"}))
    dataset = objects[name].dataset
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = apply_modality_lut(pixel_array(dataset, index=0), dataset).astype(float)
        if dataset.get("WindowWidth"):
            windowed = apply_windowing(values, dataset)
            least, greatest = _range(dataset)
            values = (windowed - least) / (greatest - least)
        else:
            values = (values - values.min()) / (values.max() - values.min())
    expected = 1 - values if dataset.PhotometricInterpretation == "MONOCHROME1" else values
    assert np.abs(shown.astype(float) - np.clip(expected, 0, 1) * 255).max() <= 1


def _range(dataset: Dataset) -> tuple[float, float]:
    """What pydicom maps a window onto: the range of all stored values, rescaled."""
    bits, slope, intercept = dataset.BitsStored, dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)
    least = -(1 << (bits - 1)) if dataset.PixelRepresentation else 0
    return least * slope + intercept, (least + (1 << bits) - 1) * slope + intercept


@pytest.mark.parametrize("name", COLOUR)
def test_a_colour_image_is_shown_in_its_colours(client: httpx.Client, objects: dict[str, Kept], name: str) -> None:
    shown = picture(client.get(f"{objects[name].address}/rendered", headers={"Accept": "image/png"}))
    dataset = objects[name].dataset
    expected = pixel_array(dataset, index=0)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        expected = apply_color_lut(expected, dataset)
    if expected.dtype == np.uint16:
        expected = expected >> 8
    assert np.array_equal(shown, expected)


@pytest.mark.parametrize("name", BY_THE_ARCHIVE)
def test_what_no_decoder_here_reads_is_decoded_by_the_archive(
    client: httpx.Client, objects: dict[str, Kept], name: str
) -> None:
    shown = picture(client.get(f"{objects[name].address}/rendered", headers={"Accept": "image/png"}))
    assert shown.shape[:2] == (objects[name].dataset.Rows, objects[name].dataset.Columns)
    assert shown.min() == 0
    assert shown.max() == 255


def test_every_frame_of_a_multi_frame_image_is_shown(client: httpx.Client, objects: dict[str, Kept]) -> None:
    for name, number in (("examples_ybr_color.dcm", 30), ("map", 2), ("mask", 2), ("rtdose.dcm", 15)):
        kept = objects[name]
        one = picture(client.get(f"{kept.address}/frames/{number}/rendered", headers={"Accept": "image/png"}))
        related = client.get(f"{kept.address}/rendered", headers={"Accept": 'multipart/related; type="image/png"'})
        found = parts(related)
        assert len(found) == number, name
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(found[-1][1]))), one)
        assert client.get(f"{kept.address}/frames/{number + 1}/rendered").status_code == 404


def test_a_video_a_document_and_a_report_are_shown_as_what_they_are(
    client: httpx.Client, objects: dict[str, Kept]
) -> None:
    video = client.get(f"{objects['video'].address}/rendered")
    assert (video.headers["content-type"], video.content) == ("video/mp4", VIDEO)
    assert client.get(f"{objects['video'].address}/rendered", headers={"Accept": "image/jpeg"}).status_code == 406
    document = client.get(f"{objects['pdf'].address}/rendered", headers={"Accept": "application/pdf"})
    assert (document.headers["content-type"], document.content[:8]) == ("application/pdf", PDF[:8])
    text = client.get(f"{objects['test-SR.dcm'].address}/rendered", headers={"Accept": "text/plain"})
    page = client.get(f"{objects['test-SR.dcm'].address}/rendered", headers={"Accept": "text/html, */*;q=0.8"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("sandbox")
    named = objects["test-SR.dcm"].dataset.ConceptNameCodeSequence[0].CodeMeaning
    assert text.text.startswith(f"{named}\n")
    assert f"<h1>{named}</h1>" in page.text
    for response in (video, document, text, page):
        assert "content-disposition" not in response.headers
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"


def test_what_a_report_says_is_no_markup(world: tuple[Running, dict[str, Kept]], client: httpx.Client) -> None:
    running, _ = world
    dataset = report(mrn="K", study="1.2.9", series="1.2.9.20", instance="1.2.9.20.1")
    name, item = Dataset(), Dataset()
    name.CodeMeaning, item.ValueType, item.TextValue = "<b>Findings</b>", "TEXT", "<script>alert(1)</script>"
    item.ConceptNameCodeSequence = dataset.ConceptNameCodeSequence = [name]
    dataset.ContentSequence = [item]
    stored = running.archive.store(part10(dataset))
    try:
        page = client.get("/dicom-web/studies/1.2.9/series/1.2.9.20/instances/1.2.9.20.1/rendered").text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "<script" not in page
        assert "<b>Findings" not in page
    finally:
        running.archive.delete_instance(stored.orthanc_id)


@pytest.mark.parametrize(
    ("name", "status"),
    [("rtplan.dcm", 404), ("waveform_ecg.dcm", 404), ("JPEG2000-embedded-sequence-delimiter.dcm", 406),
     ("IM000000", 406), ("too large", 406), ("liar", 406)],
)  # fmt: skip
def test_what_cannot_be_shown_is_said_so_and_kept_within_bounds(
    client: httpx.Client, objects: dict[str, Kept], name: str, status: int
) -> None:
    for suffix in ("rendered", "thumbnail", "frames/1/rendered"):
        response = client.get(f"{objects[name].address}/{suffix}")
        assert response.status_code == status, (suffix, response.text)
        assert response.headers["content-type"] == "application/problem+json"
    assert (
        client.get(objects[name].address, headers={"Accept": "application/dicom; transfer-syntax=*"}).status_code == 200
    )


def test_a_deflated_object_is_inflated_within_bounds(
    client: httpx.Client, objects: dict[str, Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "MAX_SAMPLES", 100_000)
    response = client.get(f"{objects['image_dfl.dcm'].address}/rendered?quality=33")
    assert (response.status_code, "too large" in response.text) == (406, True)


# PS3.18 8.7.3: frames and bulk data in each form


@pytest.mark.parametrize(
    ("name", "accept", "media_type", "syntax"),
    [
        ("CT_small.dcm", "*/*", "application/octet-stream", "1.2.840.10008.1.2.1"),
        ("CT_small.dcm", f'{OCTETS}; transfer-syntax="*"', "application/octet-stream", "1.2.840.10008.1.2.1"),
        ("CT_small.dcm", 'multipart/related; type="image/jls"', "image/jls", f"{JPEG}80"),
        ("CT_small.dcm", "multipart/related; type=image/jpeg", "image/jpeg", f"{JPEG}70"),
        ("CT_small.dcm", f"{OCTETS}; transfer-syntax={JPEG}80", "application/octet-stream", f"{JPEG}80"),
        ("CT_small.dcm", f'multipart/related; type="image/jp2", {OCTETS};q=0.1', "application/octet-stream", LITTLE),
        ("MR_small_RLE.dcm", 'multipart/related; type="image/dicom-rle"', "image/dicom-rle", "1.2.840.10008.1.2.5"),
        ("MR_small_RLE.dcm", OCTETS, "application/octet-stream", "1.2.840.10008.1.2.1"),
        ("examples_jpeg2k.dcm", 'multipart/related; type="image/jp2"', "image/jp2", f"{JPEG}90"),
        ("examples_jpeg2k.dcm", 'multipart/related; type="image/*"; transfer-syntax=*', "image/jp2", f"{JPEG}90"),
        ("examples_jpeg2k.dcm", f"{OCTETS}; transfer-syntax=*", "application/octet-stream", f"{JPEG}90"),
        ("examples_jpeg2k.dcm", "*/*", "application/octet-stream", "1.2.840.10008.1.2.1"),
        ("examples_ybr_color.dcm", "*/*", "image/jpeg", f"{JPEG}50"),
        ("examples_ybr_color.dcm", f"{OCTETS}; transfer-syntax={LITTLE}", "application/octet-stream", LITTLE),
        ("SC_rgb_jpeg_gdcm.dcm", "multipart/related; type=image/jpeg; transfer-syntax=*", "image/jpeg", f"{JPEG}70"),
    ],
)  # fmt: skip
def test_a_frame_comes_in_the_form_that_is_asked_for(
    client: httpx.Client, objects: dict[str, Kept], name: str, accept: str, media_type: str, syntax: str
) -> None:
    kept = objects[name]
    response = client.get(f"{kept.address}/frames/1", headers={"Accept": accept})
    ((kind, content),) = parts(response)
    assert kind.replace('"', "") == f"{media_type}; transfer-syntax={syntax}"
    assert response.headers["content-type"].startswith(f'multipart/related; type="{media_type}"; boundary=')
    own = kept.dataset.file_meta.TransferSyntaxUID
    if syntax == own and own.is_encapsulated:
        assert content == next(
            generate_frames(kept.dataset.PixelData, number_of_frames=int(kept.dataset.get("NumberOfFrames") or 1))
        )
    elif syntax == "1.2.840.10008.1.2.1":
        assert content == pixel_array(kept.dataset, index=0).tobytes()
    else:
        assert content.startswith(b"\xff\xd8\xff")
    single = client.get(f"{kept.address}/frames/1", headers={"Accept": f"{media_type}; transfer-syntax={syntax}"})
    assert (single.headers["content-type"].replace('"', ""), single.content) == (kind.replace('"', ""), content)


@pytest.mark.parametrize(
    ("name", "accept"),
    [
        ("CT_small.dcm", "image/jp2"),
        ("CT_small.dcm", f"{OCTETS}; transfer-syntax={JPEG}90"),
        ("examples_jpeg2k.dcm", "image/jls"),
        ("video", "*/*"),
    ],
)
def test_a_frame_in_a_form_that_cannot_be_made_is_not_acceptable(
    client: httpx.Client, objects: dict[str, Kept], name: str, accept: str
) -> None:
    response = client.get(f"{objects[name].address}/frames/1", headers={"Accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (406, "application/problem+json")
    assert "sent as" in response.json()["detail"] or "video" in response.json()["detail"]


def test_frames_of_more_than_sixteen_bits_and_of_bits_come_too(client: httpx.Client, objects: dict[str, Kept]) -> None:
    single = {"Accept": "application/octet-stream"}
    dose = objects["rtdose.dcm"]
    assert (
        client.get(f"{dose.address}/frames/2", headers=single).content == pixel_array(dose.dataset, index=1).tobytes()
    )
    floats = client.get(f"{objects['map'].address}/frames/2", headers=single).content
    assert np.frombuffer(floats, "<f4").tolist() == list(range(16, 32))
    bits = client.get(f"{objects['mask'].address}/frames/2", headers=single).content
    assert (
        np.unpackbits(np.frombuffer(bits, "u1"), bitorder="little")[:9].tolist()
        == pixel_array(objects["mask"].dataset, index=1).ravel().tolist()
    )


def test_pixel_data_is_one_value_or_a_part_for_each_frame(client: httpx.Client, objects: dict[str, Kept]) -> None:
    plain = objects["CT_small.dcm"]
    whole = client.get(f"{plain.address}/bulkdata/7FE00010", headers={"Accept": "application/octet-stream"})
    assert whole.content == plain.dataset.PixelData
    cine = objects["examples_ybr_color.dcm"]
    (told,) = client.get(f"{cine.address}/metadata").json()
    location = told["7FE00010"]["BulkDataURI"]
    frames = parts(client.get("/dicom-web" + location.partition("/dicom-web")[2]))
    assert [content for _, content in frames] == list(generate_frames(cine.dataset.PixelData, number_of_frames=30))
    assert {kind.replace('"', "") for kind, _ in frames} == {f"image/jpeg; transfer-syntax={JPEG}50"}
    ((kind, content),) = parts(client.get(f"{objects['video'].address}/bulkdata/7FE00010"))
    assert (kind.partition(";")[0], content) == ("video/mp4", VIDEO)
    big = objects["ExplVR_BigEnd.dcm"]
    ((_, content),) = parts(client.get(f"{big.address}/bulkdata/7FE00010"))
    assert content == pixel_array(big.dataset, index=0).tobytes()


def test_every_value_the_metadata_refers_to_is_there_in_sequences_too(
    client: httpx.Client, objects: dict[str, Kept]
) -> None:
    def referred(content: dict[str, dict], dataset: Dataset) -> Iterator[tuple[str, bytes]]:
        for tag, element in content.items():
            if "BulkDataURI" in element:
                yield element["BulkDataURI"], dataset[int(tag, 16)].value
            for told, item in (
                zip(element.get("Value", []), dataset[int(tag, 16)].value, strict=True) if element["vr"] == "SQ" else ()
            ):
                yield from referred(told, item)

    for name in ("waveform_ecg.dcm", "pdf", "CT_small.dcm"):
        (content,) = client.get(f"{objects[name].address}/metadata").json()
        content.pop("00081190")
        found = list(referred(content, objects[name].dataset))
        assert found, name
        for address, value in found:
            path = "/dicom-web" + address.partition("/dicom-web")[2]
            answer = client.get(path, headers={"Accept": "application/octet-stream"})
            assert answer.content == value, address
            assert parts(client.get(path))[0][1] == value
    nested = client.get(f"{objects['waveform_ecg.dcm'].address}/bulkdata/54000100/1/54001010")
    assert nested.headers["content-type"].startswith(OCTETS)


# PS3.18 8.7.3.5: whole objects


def test_a_lossy_object_is_sent_as_it_is_and_a_lossless_one_decoded_unless_another_syntax_is_named(
    client: httpx.Client, objects: dict[str, Kept]
) -> None:
    lossy, lossless = objects["examples_ybr_color.dcm"], objects["examples_jpeg2k.dcm"]
    plain = {"Accept": "application/dicom"}
    assert client.get(lossy.address, headers=plain).content == lossy.content
    decoded = read(client.get(lossless.address, headers=plain).content)
    assert decoded.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert np.array_equal(pixel_array(decoded), pixel_array(lossless.dataset))
    assert decoded.SOPInstanceUID == lossless.dataset.SOPInstanceUID
    for syntax, status in (
        ("*", 200),
        (f"{JPEG}90", 200),
        ("1.2.840.10008.1.2.1", 200),
        (f"{JPEG}70", 406),
        ("1.2.3", 406),
    ):
        accept = {"Accept": f"application/dicom; transfer-syntax={syntax}"}
        assert client.get(lossless.address, headers=accept).status_code == status, syntax
    several = {"Accept": f"application/dicom; transfer-syntax={JPEG}70, application/dicom; transfer-syntax=*;q=0.1"}
    assert client.get(lossless.address, headers=several).content == lossless.content


# Foreign clients


def test_dicomweb_client_reads_every_kind(world: tuple[Running, dict[str, Kept]]) -> None:
    running, objects = world
    foreign = DICOMwebClient(f"{running.url}/dicom-web", headers={"Authorization": "Bearer system"})
    for name in ("CT_small.dcm", "MR_small_RLE.dcm", "examples_jpeg2k.dcm", "examples_ybr_color.dcm"):
        kept = objects[name]
        uids = (
            str(kept.dataset.StudyInstanceUID),
            str(kept.dataset.SeriesInstanceUID),
            str(kept.dataset.SOPInstanceUID),
        )
        assert foreign.retrieve_instance(*uids).SOPInstanceUID == uids[2]
        assert foreign.retrieve_instance(
            *uids, media_types=(("application/dicom", "*"),)
        ).file_meta.TransferSyntaxUID == (kept.dataset.file_meta.TransferSyntaxUID)
        assert [each.SOPInstanceUID for each in foreign.retrieve_series(*uids[:2])] == [uids[2]]
        assert foreign.retrieve_instance_rendered(*uids, media_types=("image/png",)).startswith(b"\x89PNG")
        assert foreign.retrieve_series_rendered(*uids[:2], media_types=("image/jpeg",)).startswith(b"\xff\xd8")
        small = foreign.retrieve_instance_frames_rendered(
            *uids, frame_numbers=[1], media_types=("image/png",), params={"viewport": "16,16", "window": "40,400"}
        )
        assert max(Image.open(BytesIO(small)).size) == 16
        (frame,) = foreign.retrieve_instance_frames(*uids, frame_numbers=[1])
        assert frame
        (told,) = foreign.retrieve_series_metadata(*uids[:2])
        assert foreign.retrieve_bulkdata(told["7FE00010"]["BulkDataURI"])[0]
    pdf = objects["pdf"].dataset
    uids = (str(pdf.StudyInstanceUID), str(pdf.SeriesInstanceUID), str(pdf.SOPInstanceUID))
    assert foreign.retrieve_instance_rendered(*uids, media_types=("application/pdf",)).startswith(b"%PDF")


def test_curl_saves_a_picture_and_goes_on_where_it_stopped(world: tuple[Running, dict[str, Kept]]) -> None:
    running, objects = world
    url = f"{running.url}{objects['CT_small.dcm'].address}"

    def curl(*arguments: str) -> bytes:
        command = ["curl", "-sS", "--fail", "-H", "Authorization: Bearer system", *arguments]
        return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout

    whole = curl("-H", "Accept: image/png", f"{url}/rendered")
    assert whole.startswith(b"\x89PNG")
    head = curl("-I", "-H", "Accept: image/png", f"{url}/rendered").decode().lower()
    assert f"content-length: {len(whole)}" in head
    etag = next(line.partition(": ")[2].strip() for line in head.splitlines() if line.startswith("etag"))
    rest = curl("-H", "Accept: image/png", "-r", "100-", "-H", f"If-Range: {etag}", f"{url}/rendered")
    assert rest == whole[100:]
    again = (
        "-H",
        f"If-None-Match: {etag}",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        f"{url}/rendered?accept=image/png",
    )
    assert curl(*again) == b"304"
