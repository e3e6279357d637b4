"""Hostile requests to the gateway: whatever the form, no byte of another study comes out (GW01 to GW21)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.store import studies
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.gateway import TWIN, Running, U, V, Z, filled, serving
from tests.processes import free_port, wait_until

pytestmark = pytest.mark.orthanc

ROUTES = (
    "/studies/{u}",
    "/studies/{u}/metadata",
    "/studies/{u}/rendered",
    "/studies/{u}/thumbnail",
    "/studies/{u}/series",
    "/studies/{u}/instances",
    "/studies/{u}/series/{s}",
    "/studies/{u}/series/{s}/metadata",
    "/studies/{u}/series/{s}/rendered",
    "/studies/{u}/series/{s}/thumbnail",
    "/studies/{u}/series/{s}/instances",
    "/studies/{u}/series/{s}/instances/{i}",
    "/studies/{u}/series/{s}/instances/{i}/metadata",
    "/studies/{u}/series/{s}/instances/{i}/rendered",
    "/studies/{u}/series/{s}/instances/{i}/thumbnail",
    "/studies/{u}/series/{s}/instances/{i}/frames/1",
    "/studies/{u}/series/{s}/instances/{i}/frames/1,2",
    "/studies/{u}/series/{s}/instances/{i}/frames/1/rendered",
    "/studies/{u}/series/{s}/instances/{i}/frames/1/thumbnail",
    "/studies/{u}/series/{s}/instances/{i}/bulkdata/7FE00010",
    "/studies/{u}/series/{s}/instances/{i}/bulkdata/00400555/1/00420011",
)
FORMS = (
    "{0}%2f..%2f{1}",
    "{0}/../{1}",
    "%2e%2e/{1}",
    "{0}%2F{1}",
    "{0}%5c{1}",
    "{0}\\{1}",
    "{0}%00",
    "{0};x={1}",
    "/{1}",
    "{0}//{1}",
    "%252e%252e%252f{1}",
    "{1}.",
    ".{1}",
    "{0}..{1}",
    "{0}%0d%0a{1}",
    "{1}%20",
    "%EF%BC%91.2.34",
    "{0},{1}",
    "{0}*",
    "{0}&StudyInstanceUID={1}",
    "{0}%3f{1}",
    "{0}/./{1}",
    "x{1}",
    "{0}" + "1" * 64,
)


@pytest.fixture(scope="module")
def running(orthanc: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with filled(orthanc, tmp_path_factory.mktemp("hostile")) as running:
        yield running


def uids(study: str) -> dict[str, str]:
    return {"u": study, "s": f"{study}.1", "i": f"{study}.1.1"}


def assert_nothing_of(body: bytes, *studies: str) -> None:
    """Neither UID, patient nor pixels (which spell their SOP Instance UID) of another study."""
    for study in studies:
        assert not re.search(rb"(?<![0-9.])" + re.escape(study).encode() + rb"\.1\.1", body)
    assert b"Patient^B" not in body


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("grant", ["one-study", "identifier"])
@pytest.mark.ps318("8.11")
def test_no_route_opens_another_study(running: Running, route: str, grant: str) -> None:
    answers = {}
    for name, study in (("same patient", V), ("other patient", Z), ("nobody's", "1.2.999"), ("twin", TWIN)):
        answers[name] = running.raw("/dicom-web" + route.format(**uids(study)), grant)
        assert_nothing_of(answers[name][1], V, Z, TWIN)
    assert set(answers.values()) == {answers["nobody's"]}
    assert answers["nobody's"][0] == 403


@pytest.mark.parametrize("route", [route for route in ROUTES if "{s}" in route])
@pytest.mark.parametrize("position", ["s", "i"])
@pytest.mark.parametrize("other", [V, Z])
@pytest.mark.ps318("10.1.1")
def test_a_foreign_series_or_instance_below_the_granted_study_is_not_there(
    running: Running, route: str, position: str, other: str
) -> None:
    if f"{{{position}}}" not in route:
        position = "s"
    status, body = running.raw("/dicom-web" + route.format(**(uids(U) | {position: uids(other)[position]})))
    assert status == 404
    assert_nothing_of(body, other)


@pytest.mark.ps318("10.1.1")
def test_an_instance_below_the_wrong_series_of_its_own_study_is_not_there(running: Running) -> None:
    for suffix in ("", "/metadata", "/frames/1", "/rendered"):
        path = f"/dicom-web/studies/{U}/series/{U}.2/instances/{U}.1.1{suffix}"
        assert running.raw(path)[0] == 404


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("position", ["u", "s", "i"])
@pytest.mark.ps318("8.2")
def test_no_spelling_of_a_path_reaches_another_study(running: Running, form: str, position: str) -> None:
    own, other = uids(U), uids(V)
    spelt = own | {position: form.format(own[position], other[position])}
    for route in ("/studies/{u}/series/{s}/instances/{i}", "/studies/{u}/series/{s}/instances/{i}/frames/1"):
        status, body = running.raw("/dicom-web" + route.format(**spelt))
        assert status in {400, 403, 404}, route
        assert_nothing_of(body, V)


@pytest.mark.parametrize("frames", ["0", "-1", "1,", ",1", "1;2", "1-2", "1%2c2", "x", "٣", "1,,2", "9999999"])
@pytest.mark.ps318("8.2")
def test_a_frame_list_is_numbers_and_commas(running: Running, frames: str) -> None:
    path = f"/dicom-web/studies/{U}/series/{U}.1/instances/{U}.1.1/frames/{frames}"
    with running.client() as client:
        assert client.get(path).status_code == 400


@pytest.mark.parametrize(
    "element", ["..", "7FE0", "7FE00010/0/7FE00010", "7FE00010/1", "../../tags", "zzzzzzzz", "7FE00010/x/00100010"]
)
def test_bulk_data_is_addressed_by_tags_only(running: Running, element: str) -> None:
    status, _ = running.raw(f"/dicom-web/studies/{U}/series/{U}.1/instances/{U}.1.1/bulkdata/{element}")
    assert status == 400


@pytest.mark.parametrize(
    "path",
    ["/instances/x", "/tools/find", "/servers", "/changes", "/jobs", "/wado", "/system", "/patients", "/statistics",
     f"/studies/{U}/archive", f"/studies/{U}/media", f"/studies/{U}/series/{U}.1/frames/1",
     f"/studies/{U}/bulkdata/7FE00010"],
)  # fmt: skip
@pytest.mark.parametrize("grant", ["one-study", "system"])
@pytest.mark.ps318("8.2")
def test_what_is_not_in_the_table_does_not_exist(running: Running, path: str, grant: str) -> None:
    assert running.raw("/dicom-web" + path, grant)[0] in {400, 404}


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE"])
def test_other_methods_are_not_offered(running: Running, method: str) -> None:
    for path in (f"/studies/{U}", "/studies", f"/studies/{U}/metadata"):
        assert running.raw("/dicom-web" + path, method=method)[0] == 405
    assert running.raw(f"/dicom-web/studies/{U}/series", method="POST")[0] == 405


def test_ranges_and_conditions_tell_nothing(running: Running) -> None:
    with running.client() as client:
        for headers in ({"Range": "bytes=0-10"}, {"If-None-Match": "*"}, {"If-Modified-Since": "x"}):
            response = client.get(f"/dicom-web/studies/{V}", headers=headers)
            assert response.status_code == 403
            assert not {"etag", "content-range", "last-modified"} & set(response.headers)


def test_a_grant_for_something_else_opens_nothing(running: Running) -> None:
    for path in (f"/dicom-web/studies/{U}/metadata", "/dicom-web/studies"):
        assert running.raw(path, "observations")[0] == 403
        assert running.raw(path, "nobody")[0] == 401


@pytest.mark.ps318("8.5")
def test_inside_the_grant_what_is_not_there_is_not_found(running: Running) -> None:
    assert running.raw("/dicom-web/studies/1.2.99/metadata", "later")[0] == 404
    assert running.raw("/dicom-web/studies/1.2.99/metadata", "system")[0] == 404


def test_the_authorization_header_decides_alone(running: Running) -> None:
    cookies = {"viewer": "system"}
    with httpx.Client(base_url=running.url, cookies=cookies, trust_env=False) as client:
        response = client.get(f"/dicom-web/studies/{V}", headers={"Authorization": "Bearer one-study"})
        assert response.status_code == 403
        assert client.get(f"/dicom-web/studies/{V}").status_code == 401


def test_every_read_and_every_refusal_is_audited(running: Running) -> None:
    running.records.clear()
    with running.client() as client:
        client.get("/dicom-web/studies")
        client.get(f"/dicom-web/studies/{U}/metadata")
        client.get(f"/dicom-web/studies/{V}/metadata")
        client.get(f"/dicom-web/studies/{U}/series/1.9/metadata")
    told = [(record.action, record.outcome, record.study_uid, record.patient_id) for record in running.records]
    assert told == [
        ("search", "allowed", None, "p1"),
        ("metadata", "allowed", U, "p1"),
        ("metadata", "denied", V, "p1"),
        ("metadata", "failed", U, "p1"),
    ]
    assert {record.grant_id for record in running.records} == {"g"}


def test_frames_are_counted_not_listed(running: Running) -> None:
    running.gateway.trail.close()
    running.records.clear()
    with running.client() as client:
        for number in (1, 2, 3):
            client.get(f"/dicom-web/studies/{U}/series/{U}.1/instances/{U}.1.1/frames/{number}")
    wait_until(lambda: running.records, "the first frame's record")
    assert [record.detail["count"] for record in running.records] == [1]
    running.gateway.trail.close()
    assert [record.detail["count"] for record in running.records] == [1, 2]
    assert {record.detail["series"] for record in running.records} == {f"{U}.1"}


@pytest.mark.ps318("8.5")
def test_a_silent_archive_is_unavailable_and_later_asked_again(tmp_path: Path) -> None:
    silent = Archive(f"http://127.0.0.1:{free_port()}", "127.0.0.1", free_port(), "X", "isocenter", "secret")
    with serving(silent, tmp_path) as running:
        held = studies.HeldStudy("0-0", U, "imaging", "p1")
        running.store.transact(lambda connection: studies.put(connection, held, digest="d"))
        for path in ("", "/metadata", "/series", f"/series/{U}.1/instances/{U}.1.1/frames/1", "/rendered"):
            assert running.raw(f"/dicom-web/studies/{U}{path}")[0] == 503
        assert running.raw(f"/dicom-web/studies/{V}/metadata")[0] == 403
        assert {record.outcome for record in running.records} == {"failed", "denied"}
