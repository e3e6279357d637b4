"""The gateway as an HTTP server: methods, what it says of itself, whole collections (RFC 9110, PS3.18 8.9, 10.4)."""

from __future__ import annotations

from collections.abc import Iterator
from email.parser import BytesParser
from email.policy import HTTP
from xml.etree import ElementTree

import httpx
import pytest

from app.dicom import capabilities, paths
from app.dicom.holdings import Holding
from app.store.studies import HeldStudy
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.gateway import Running, U, filled
from tests.orthanc.phantoms import image, part10

pytestmark = pytest.mark.orthanc

STUDY, SERIES, INSTANCE = f"/dicom-web/studies/{U}", f"/series/{U}.1", f"/instances/{U}.1.1"
ONE = STUDY + SERIES + INSTANCE
GETS = (
    "/dicom-web/studies", f"{STUDY}/series", STUDY, STUDY + SERIES, ONE, f"{ONE}/metadata", f"{STUDY}/rendered",
    f"{ONE}/thumbnail", f"{ONE}/frames/1", f"{ONE}/frames/1,2", f"{ONE}/frames/1/rendered", f"{ONE}/bulkdata/7FE00010",
    f"{ONE}/bulkdata", f"{STUDY}/pixeldata",
)  # fmt: skip


@pytest.fixture(scope="module")
def running(orthanc: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with filled(orthanc, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as client:
        yield client


def parts(response: httpx.Response) -> list[tuple[str, str, bytes]]:
    """Content type, location and bytes of each part."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + response.content)
    return [
        (part["content-type"].replace('"', ""), part["content-location"], part.get_payload(decode=True))
        for part in message.iter_parts()  # type: ignore[attr-defined]
    ]


# RFC 9110 section 9: methods


@pytest.mark.parametrize("path", GETS)
@pytest.mark.ps318("10.4.3")
def test_a_head_has_the_headers_of_its_get_and_no_body(running: Running, client: httpx.Client, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    ignored = {"date", "transfer-encoding", "connection"}
    told = [
        {name: value.partition("; boundary=")[0] for name, value in each.headers.items() if name not in ignored}
        for each in (whole, head)
    ]
    # A server may leave out the length of what it has not made (RFC 9110 section 9.3.2).
    assert told[0] | told[1] == told[0]
    status, body = running.raw(path, method="HEAD")
    assert (status, body) == (200, b"")


def test_a_head_of_what_is_refused_is_refused_alike(running: Running, client: httpx.Client) -> None:
    for path, status in (
        (f"{ONE}/frames/9", 404),
        ("/dicom-web/studies/1.2.34", 403),
        (f"{STUDY}/x", 404),
        ("/dicom-web/studies/..", 400),
    ):
        assert running.raw(path, method="HEAD") == (status, b""), path
    assert client.head(f"{ONE}/frames/1", headers={"Accept": "image/png"}).status_code == 406


def test_a_head_of_a_large_answer_leaves_no_connection_behind(running: Running, client: httpx.Client) -> None:
    for _ in range(12):
        assert client.head(STUDY).status_code == 200
    assert client.get(f"{ONE}/frames/1").status_code == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "POST"])
@pytest.mark.ps318("8.5")
def test_a_method_that_is_not_offered_is_answered_with_those_that_are(running: Running, method: str) -> None:
    with running.client("nobody") as client:
        for path in (f"{STUDY}/metadata", f"{ONE}/frames/1", "/dicom-web/series", "/dicom-web/"):
            response = client.request(method, path)
            assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS"), path
        assert client.request(method, "/dicom-web/patients").status_code == 404


@pytest.mark.ps318("8.9")
def test_what_an_address_takes_is_told_without_a_credential(running: Running) -> None:
    with running.client("nobody") as client:
        for path, allow in (("/studies", "GET, HEAD, OPTIONS, POST"), (f"/studies/{U}/metadata", "GET, HEAD, OPTIONS")):
            response = client.options(f"/dicom-web{path}")
            assert (response.status_code, response.content) == (204, b"")
            assert response.headers["allow"] == allow
        assert client.options("/dicom-web/studies/1.2.34/metadata").status_code == 204
        assert client.options("/dicom-web/patients").status_code == 404
        assert client.options("/dicom-web/studies/../x").status_code in {400, 404}


# PS3.18 section 8.9: capabilities


@pytest.mark.ps318("8.9")
def test_the_service_describes_every_address_of_its_table(running: Running) -> None:
    with running.client("nobody") as client:
        for response in (client.options("/dicom-web/"), client.get("/dicom-web/")):
            assert response.headers["content-type"] == capabilities.WADL
            root = ElementTree.fromstring(response.content)
            space = {"w": capabilities.NAMESPACE}
            (resources,) = root.findall("w:resources", space)
            assert resources.get("base") == f"{running.url}/dicom-web"
            found = {
                (method.get("name"), resource.get("path"))
                for resource in resources.findall("w:resource", space)
                for method in resource.findall("w:method", space)
            }
            assert found == {(method.name, method.path) for method in capabilities.methods()}


@pytest.mark.ps318("8.9")
def test_every_described_address_is_in_the_table_and_every_row_of_the_table_is_described() -> None:
    described = list(capabilities.methods())
    filled = {"{StudyInstanceUID}": "1", "{SeriesInstanceUID}": "2", "{SOPInstanceUID}": "3", "{frames}": "1"}
    for method in described:
        path = method.path
        for name, value in filled.items():
            path = path.replace(name, value)
        assert paths.parse(method.name, f"/{path}".encode()).resource == method.resource, path
    assert len({method.id for method in described}) == len(described)
    assert len(described) == len(paths.SEARCHES) + len(paths.OBJECTS) * (1 + len(paths.SUFFIXES)) + 3 + 2


@pytest.mark.ps318("8.9")
def test_the_description_also_comes_as_json_and_in_no_other_form(client: httpx.Client) -> None:
    described = client.options("/dicom-web/", headers={"Accept": "application/json"}).json()
    studies = next(each for each in described["resources"] if each["path"] == "studies")
    assert {method["name"] for method in studies["methods"]} == {"GET", "POST"}
    assert client.options("/dicom-web/", headers={"Accept": "text/html"}).status_code == 406


# PS3.18 section 10.4.1.1: bulk data and pixel data as a whole


@pytest.mark.ps318("10.4.1.1.6")
def test_the_pixel_data_of_a_study_is_one_part_for_each_frame(running: Running, client: httpx.Client) -> None:
    for path, count in ((STUDY, 12), (STUDY + SERIES, 6), (ONE, 3)):
        found = parts(client.get(f"{path}/pixeldata"))
        assert len(found) == count
        for kind, location, content in found:
            assert kind == "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
            assert content == location.split("/instances/")[1].split("/")[0].encode().ljust(32, b".")
            assert client.get(location.removeprefix(running.url)).status_code == 200


@pytest.mark.parametrize("accept", ["*/*", 'multipart/related; type="application/octet-stream"'])
@pytest.mark.ps318("10.4.1.1.5")
def test_all_bulk_data_comes_under_the_addresses_of_the_metadata(client: httpx.Client, accept: str) -> None:
    metadata = client.get(f"{STUDY}/metadata").json()
    found = parts(client.get(f"{STUDY}/bulkdata", headers={"Accept": accept}))
    assert [location for _, location, _ in found] == [one["7FE00010"]["BulkDataURI"] for one in metadata]
    assert {len(content) for _, _, content in found} == {96}
    if accept != "*/*":
        assert [each[1:] for each in parts(client.get(STUDY, headers={"Accept": accept}))] == [
            each[1:] for each in found
        ]
    assert client.get(f"{STUDY}/bulkdata", headers={"Accept": "image/png"}).status_code == 406


@pytest.mark.ps318("8.4.2", "8.6.1")
def test_each_part_of_a_retrieve_says_whose_it_is(running: Running, client: httpx.Client) -> None:
    found = parts(client.get(STUDY))
    assert [location for _, location, _ in found] == [
        f"{running.url}{STUDY}/series/{U}.{series}/instances/{U}.{series}.{number}"
        for series in (1, 2)
        for number in (1, 2)
    ]


# RFC 9110 sections 13 and 14: conditions and ranges

SINGLES = (
    (ONE, "application/dicom"),
    (f"{ONE}/frames/2", "application/octet-stream"),
    (f"{ONE}/bulkdata/7FE00010", "application/octet-stream"),
    (f"{ONE}/rendered", "image/png"),
    (f"{STUDY}/thumbnail", "image/jpeg"),
)


@pytest.mark.parametrize(("path", "accept"), SINGLES)
def test_a_single_part_is_had_piece_by_piece_while_it_stays_the_same(
    client: httpx.Client, path: str, accept: str
) -> None:
    whole = client.get(path, headers={"Accept": accept})
    etag, length = whole.headers["etag"], len(whole.content)
    assert not etag.startswith("W/")
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, start, stop in (("0-9", 0, 10), ("5-", 5, length), ("-7", length - 7, length), ("0-99999", 0, length)):
        piece = client.get(path, headers={"Accept": accept, "Range": f"bytes={asked}", "If-Range": etag})
        assert piece.status_code == 206
        assert piece.headers["content-range"] == f"bytes {start}-{stop - 1}/{length}"
        assert piece.headers["etag"] == etag
        assert piece.content == whole.content[start:stop]
    beyond = client.get(path, headers={"Accept": accept, "Range": f"bytes={length}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{length}")
    changed = client.get(path, headers={"Accept": accept, "Range": "bytes=0-9", "If-Range": '"other"'})
    assert (changed.status_code, changed.content) == (200, whole.content)
    for method in ("GET", "HEAD"):
        again = client.request(method, path, headers={"Accept": accept, "If-None-Match": f'"x", W/{etag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get(path, headers={"Accept": accept, "If-Match": '"x"'}).status_code == 412


def test_a_tag_names_one_form_of_one_content(client: httpx.Client) -> None:
    asked = [
        (f"{ONE}/rendered", "image/png"),
        (f"{ONE}/rendered", "image/jpeg"),
        (f"{ONE}/rendered?quality=5", "image/jpeg"),
        (f"{ONE}/rendered?window=1,2", "image/png"),
        (f"{ONE}/rendered?viewport=2,2", "image/png"),
        (f"{ONE}/frames/2/rendered", "image/png"),
        (f"{ONE}/frames/2", "application/octet-stream"),
        (f"{ONE}/frames/2", "multipart/related; type=application/octet-stream"),
        (f"{STUDY}{SERIES}/instances/{U}.1.2/rendered", "image/png"),
    ]
    tags = [client.get(path, headers={"Accept": accept}).headers["etag"] for path, accept in asked]
    assert len(set(tags)) == len(asked)
    assert [client.get(path, headers={"Accept": accept}).headers["etag"] for path, accept in asked] == tags


def test_a_condition_is_weighed_after_the_grant(running: Running, client: httpx.Client) -> None:
    etag = client.get(f"{ONE}/rendered", headers={"Accept": "image/png"}).headers["etag"]
    for grant, status in (("nobody", 401), ("twin", 403), ("observations", 403)):
        with running.client(grant) as other:
            for tag in (etag, "*"):
                refused = other.get(f"{ONE}/rendered", headers={"Accept": "image/png", "If-None-Match": tag})
                assert refused.status_code == status
                assert "etag" not in refused.headers
                assert other.get(ONE, headers={"Range": "bytes=0-1"}).status_code == status


def test_a_multipart_answer_has_no_ranges(client: httpx.Client) -> None:
    response = client.get(f"{ONE}/frames/1,2", headers={"Range": "bytes=0-9"})
    assert (response.status_code, "accept-ranges" in response.headers) == (200, False)
    assert len(parts(response)) == 2


# PS3.18 section 10.4.3: all or nothing


@pytest.mark.parametrize(("series", "told"), [("0", httpx.HTTPStatusError), ("9", httpx.RemoteProtocolError)])
def test_a_study_that_loses_an_object_meanwhile_is_no_whole_answer(
    running: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, series: str, told: type[Exception]
) -> None:
    """The first object of all as a status, a later one by a body without an end."""
    uid = f"{U}.{series}"
    lost = running.archive.store(part10(image(mrn="A", study=U, series=uid, instance=f"{uid}.1"))).orthanc_id
    read = running.gateway.holdings.read

    def just_before(study: HeldStudy) -> Holding:
        holding = read(study)
        assert any(instance.orthanc_id == lost for instance in holding.instances())
        running.archive.delete_instance(lost)
        return holding

    monkeypatch.setattr(running.gateway.holdings, "read", just_before)
    with pytest.raises(told):
        client.get(STUDY).raise_for_status()
    monkeypatch.undo()
    assert len(parts(client.get(STUDY))) == 4
