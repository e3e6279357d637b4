"""SMART Imaging Access, the WADO side: W01 to W08, against the whole server (W06: tests/faults/test_gateway.py)."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1

from app.store.database import now
from app.store.tables import access_token
from tests.hostile.conftest import Served
from tests.hostile.credentials import Mint
from tests.hostile.server import serving
from tests.hostile.wire import Answer, Ask, Wire
from tests.hostile.world import ADA, SIDE, Seeded, U, V, World, Y, Z, empty, know, objects
from tests.orthanc.conftest import Orthanc
from tests.orthanc.phantoms import part10
from tests.processes import free_port

pytestmark = pytest.mark.orthanc

ACCEPTS = (
    "multipart/related; type=application/dicom; transfer-syntax=*",
    'multipart/related; type="application/dicom"; transfer-syntax=*',
    'multipart/related; transfer-syntax=*; type="application/dicom"',
    'multipart/related;type="application/dicom";transfer-syntax="*"',
)


def asked(served: Served, name: str, path: str, *headers: tuple[str, str]) -> Answer:
    """One request by a credential, on a connection of its own."""
    credential = served.named(name)
    pairs = tuple((key.encode(), value.encode()) for key, value in headers)
    wire = Wire(served.address)
    try:
        return wire.ask(Ask(b"GET", credential.mount + path.encode(), (*credential.headers, *pairs)))
    finally:
        wire.close()


def stored(world: World, study: str) -> set[bytes]:
    """Every file of a study as the archive keeps it."""
    found: set[bytes] = set()
    for series in world.archive.series_of(study):
        found |= {world.archive.file(one) for one in series["Instances"]}
    return found


@pytest.mark.ps318("10.4.1.1.1", "8.7.3.5.1")
@pytest.mark.parametrize("accept", ACCEPTS)
def test_w01_a_study_comes_as_stored_with_a_quoted_and_an_unquoted_type(served: Served, accept: str) -> None:
    answer = asked(served, "one study", f"/studies/{U.uid}", ("Accept", accept))
    assert answer.status == 200
    kind = answer.header(b"content-type")
    assert kind.startswith(b"multipart/related;")
    assert b'type="application/dicom"' in kind
    parts = answer.parts()
    assert len(parts) == 4
    assert set(parts) == stored(served.world, served.world.of(U).orthanc_id)


KINDS = (
    "",
    "/metadata",
    "/rendered",
    "/series/{series}",
    "/series/{series}/instances/{instance}",
    "/series/{series}/instances/{instance}/frames/1",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("searched", [False, True])
def test_w02_every_request_is_checked_whether_or_not_a_search_came_first(
    served: Served, kind: str, searched: bool
) -> None:
    if searched:
        assert asked(served, "system", f"/studies?StudyInstanceUID={U.uid}").status == 200
        assert asked(served, "one study", "/studies").status == 200
    path = f"/studies/{U.uid}{kind}".format(series=U.series(), instance=U.instance())
    assert asked(served, "one study", path).status == 200
    for nobody in ("none", "garbage", "expired", "revoked"):
        assert asked(served, nobody, path).status == 401
    assert asked(served, "the other patient", path).status == 403


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [V, Z, Y], ids=lambda place: place.word)
def test_w03_a_study_outside_the_grant_gives_no_dicom(served: Served, kind: str, place: Seeded) -> None:
    path = f"/studies/{place.uid}{kind}".format(series=place.series(), instance=place.instance())
    answer = asked(served, "one study", path, ("Accept", "*/*"))
    assert answer.status == 403
    assert answer.header(b"content-type") == b"application/problem+json"
    assert b"DICM" not in answer.body
    assert place.word.encode() not in answer.body


@pytest.mark.ps318("8.7.3.5.2", "10.4.1.1.6", "8.7.3.2")
@pytest.mark.parametrize(
    ("path", "accept", "kind"),
    [
        ("", 'multipart/related; type="application/dicom"', b"multipart/related"),
        ("/series/{series}", 'multipart/related; type="application/dicom"', b"multipart/related"),
        ("/series/{series}/instances/{instance}", "application/dicom", b"application/dicom"),
        ("/series/{series}/instances/{instance}/frames/1", "application/octet-stream", b"application/octet-stream"),
        (
            "/series/{series}/instances/{instance}/frames/1,2",
            'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1',
            b"multipart/related",
        ),
        ("/series/{series}/instances/{instance}/rendered", "image/png", b"image/png"),
        ("/series/{series}/instances/{instance}/rendered", "image/jpeg", b"image/jpeg"),
        ("/series/{series}/metadata", "application/dicom+json", b"application/dicom+json"),
    ],
)
def test_w05_parts_of_a_study_come_in_the_form_asked_for(served: Served, path: str, accept: str, kind: bytes) -> None:
    answer = asked(
        served,
        "one study",
        f"/studies/{U.uid}{path}".format(series=U.series(), instance=U.instance()),
        ("Accept", accept),
    )
    assert answer.status == 200
    assert answer.header(b"content-type").startswith(kind)


def test_w05_a_transfer_syntax_that_cannot_be_made_is_refused(served: Served) -> None:
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.3.4'
    assert asked(served, "one study", f"/studies/{U.uid}", ("Accept", accept)).status == 406


def test_w08_the_endpoint_says_that_it_needs_a_token_and_it_does(served: Served) -> None:
    token = dict(served.named("system").headers)[b"Authorization"].decode()
    fhir = f"http://127.0.0.1:{served.address[1]}/fhir"
    reading = served.mint.token(served.mint.grant("system/Endpoint.rs system/ImagingStudy.rs"))
    served.mint.secrets.append(reading)
    with httpx.Client(headers={"Authorization": f"Bearer {reading}"}, trust_env=False) as client:
        (entry,) = client.get(f"{fhir}/Endpoint", params={"connection-type": "dicom-wado-rs"}).json()["entry"]
    endpoint = entry["resource"]
    needs = [one["valueBoolean"] for one in endpoint["extension"] if one["url"].endswith("requires-access-token")]
    assert needs == [True]
    address = endpoint["address"].replace("localhost", "127.0.0.1")
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"{address}/studies/{U.uid}/metadata").status_code == 401
        granted = client.get(f"{address}/studies/{U.uid}/metadata", headers={"Authorization": token})
        assert granted.status_code == 200


# --- studies that are large, or that cannot be given whole ---------------------------------------------------------

LONG = Seeded("2.25.771101", "WALRUS", ADA, 7)
BROKEN = Seeded("2.25.771102", "DUGONG", ADA, 9)
FRAMES = 8000


def long() -> Dataset:
    """One image that takes a while to send."""
    dataset = next(objects(LONG))
    dataset.NumberOfFrames = FRAMES
    dataset.PixelData = dataset.PixelData[: SIDE * SIDE * 2] * FRAMES
    return dataset


def broken() -> list[Dataset]:
    """Four images, of which the last one says that it is compressed and is not."""
    images = list(objects(BROKEN))
    images[-1].PixelData = encapsulate([b"no picture at all"] * 2)
    images[-1]["PixelData"].VR = "OB"
    return images


@pytest.fixture(scope="module")
def spare(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("spare")
    with empty(orthanc, folder, free_port()) as world:
        *good, bad = broken()
        files = [*(part10(one) for one in (long(), *good)), part10(bad, JPEGLosslessSV1)]
        know(world, {world.archive.store(one).study_orthanc_id for one in files})
        with serving(world, folder / "serve.log"):
            yield world


def bearing(world: World) -> dict[str, str]:
    mint = Mint(world)
    mint.register()
    token = mint.token(mint.grant("system/ImagingStudy.rs"))
    return {"Authorization": f"Bearer {token}"}


def address(world: World, study: Seeded) -> str:
    return f"http://127.0.0.1:{world.settings.port}/dicom-web/studies/{study.uid}"


@pytest.mark.ps318("8.5")
def test_w07_a_download_outlives_its_token_and_the_next_request_does_not(spare: World) -> None:
    url, headers = address(spare, LONG), bearing(spare)
    with (
        httpx.Client(headers=headers, trust_env=False, timeout=30) as client,
        httpx.Client(headers=headers, trust_env=False, timeout=30) as other,
    ):
        with client.stream("GET", url, headers={"Accept": ACCEPTS[1]}) as answer:
            assert answer.status_code == 200
            chunks = answer.iter_bytes(65536)
            content = next(chunks)
            assert other.get(f"{url}/metadata").status_code == 200
            spare.store.transact(lambda tx: tx.execute(access_token.update().values(expires=now())))
            assert other.get(f"{url}/metadata").status_code == 401
            content += b"".join(chunks)
        assert client.get(url).status_code == 401
    assert content.count(f"{LONG.word} 1 1 series".encode()) == 1
    assert content.count(f"{LONG.word} 1 1.....".encode()) == FRAMES
    assert content.rstrip().endswith(b"--")


@pytest.mark.ps318("10.4.2")
def test_w04_a_study_of_which_an_image_cannot_be_given_as_asked_is_never_whole(spare: World) -> None:
    """Of four images the last cannot be decoded: as stored all four come, decoded not one set that looks complete."""
    url, headers = address(spare, BROKEN), bearing(spare)
    with httpx.Client(headers=headers, trust_env=False, timeout=30) as client:
        stored = client.get(url, headers={"Accept": ACCEPTS[1]})
        assert (stored.status_code, stored.content.count(b"DICM")) == (200, 4)
        try:
            status = client.get(url, headers={"Accept": 'multipart/related; type="application/dicom"'}).status_code
        except httpx.RemoteProtocolError:
            status = 0
    assert status in {0, 406, 500, 503}
