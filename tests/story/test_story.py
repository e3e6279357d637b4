"""One order's whole life over a running installation, by clients from outside, on both databases."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import fhirclient.client
import fhirpy
import httpx
import pypdf
import pytest
from fhirclient.models import imagingstudy

from app.demo import story
from app.fhir import validation
from tests.story.installation import Installation, installed

RESOURCE_TYPES = (
    "Patient", "Practitioner", "ServiceRequest", "Task", "ImagingStudy", "Endpoint", "DiagnosticReport",
    "Observation", "Device", "Provenance",
)  # fmt: skip
SEEDED = ("Testperson", "Rana", "Demo-Radiologist", "Phantom")
"""Names that the story carries: none may stand in a log."""


def everything(installation: Installation) -> list[dict[str, object]]:
    """Every resource the installation serves, page by page."""
    found: list[dict[str, object]] = []
    headers = {"Authorization": f"Bearer {installation.places.token}"}
    with httpx.Client(headers=headers, timeout=30, trust_env=False) as client:
        for kind in RESOURCE_TYPES:
            address = f"{installation.base}/fhir/{kind}?_count=100"
            while address:
                bundle = client.get(address).raise_for_status().json()
                found += [entry["resource"] for entry in bundle.get("entry", [])]
                address = next((one["url"] for one in bundle["link"] if one["relation"] == "next"), "")
    return found


def token_of_launch(installation: Installation, order_id: str) -> str:
    """The code flow by hand, as the viewer's own client: a bearer token bound to the order's study."""
    verifier = secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    headers = {"Authorization": f"Bearer {installation.places.token}"}
    with httpx.Client(base_url=installation.base, timeout=30, trust_env=False) as client:
        asked = {"service_request": f"ServiceRequest/{order_id}", "user": {"id": "u1", "name": "Demo-Radiologist"}}
        opened = client.post("/launches", json=asked, headers=headers).raise_for_status().json()
        redirect_uri = f"{installation.base}/launch/callback"
        query = {
            "response_type": "code", "client_id": "isocenter-viewer", "redirect_uri": redirect_uri, "state": "s",
            "scope": "launch openid fhirUser patient/ImagingStudy.rs patient/*.rs user/*.rs patient/Patient.r",
            "aud": opened["iss"], "launch": opened["launch"], "code_challenge": challenge,
            "code_challenge_method": "S256",
        }  # fmt: skip
        answer = client.get("/auth/authorize", params=query)
        assert answer.is_redirect, answer.text
        code = parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri,
                "client_id": "isocenter-viewer", "code_verifier": verifier}  # fmt: skip
        return client.post("/auth/token", data=form).raise_for_status().json()["access_token"]


def one_grant_opens_one_study(installation: Installation, own: story.Played, other: story.Played) -> None:
    """The same token at both doors: its study, and nothing of another study of the same patient."""
    headers = {"Authorization": f"Bearer {token_of_launch(installation, own.order_id)}"}
    with httpx.Client(base_url=installation.base, headers=headers, timeout=30, trust_env=False) as client:
        assert client.get(f"/fhir/ImagingStudy/{own.study_id}").status_code == 200
        assert client.get(f"/fhir/ImagingStudy/{other.study_id}").status_code == 403
        found = client.get("/fhir/ImagingStudy").raise_for_status().json()
        assert [entry["resource"]["id"] for entry in found["entry"]] == [own.study_id]
        studies = client.get("/dicom-web/studies").raise_for_status().json()
        assert [one["0020000D"]["Value"][0] for one in studies] == [own.study_uid]
        assert client.get("/dicom-web/studies", params={"PatientID": "DEMO-0002"}).json() == []
        assert client.get("/dicom-web/studies", params={"StudyInstanceUID": other.study_uid}).json() == []
        root = "/dicom-web/studies"
        assert client.get(f"{root}/{own.study_uid}/metadata").status_code == 200
        for place in (
            other.study_uid,
            f"{own.study_uid}/..%2f{other.study_uid}",
            f"{own.study_uid}%2f..%2f{other.study_uid}",
        ):
            answer = client.get(f"{root}/{place}/metadata")
            assert answer.status_code in {400, 403}
            assert other.study_uid not in answer.text


def foreign_clients_read_the_story(installation: Installation, played: story.Played) -> None:
    """fhirclient and fhirpy, each with its own models, and a PDF reader: all are told the same."""
    smart = fhirclient.client.FHIRClient(settings={"app_id": "test", "api_base": f"{installation.base}/fhir"})
    smart.server.session.headers["Authorization"] = f"Bearer {installation.places.token}"
    study = imagingstudy.ImagingStudy.read(played.study_id, smart.server)
    assert study.status == "available"
    found = imagingstudy.ImagingStudy.where({"identifier": f"urn:oid:{played.study_uid}"}).perform_resources_iter(
        smart.server
    )
    assert [one.id for one in found] == [played.study_id]
    other = fhirpy.SyncFHIRClient(f"{installation.base}/fhir", authorization=f"Bearer {installation.places.token}")
    lengths = other.resources("Observation").search(derived_from=f"ImagingStudy/{played.study_id}").fetch_all()
    assert [one["valueQuantity"]["code"] for one in lengths if "valueQuantity" in one] == ["mm"]
    report = other.reference("DiagnosticReport", played.report_id).to_resource()
    [form] = report["presentedForm"]
    printed = "".join(page.extract_text() for page in pypdf.PdfReader(BytesIO(base64.b64decode(form["data"]))).pages)
    for shown in ("FINAL", "Testperson", played.accession, "Length", "A phantom, as expected."):
        assert shown in printed


@pytest.mark.orthanc
def test_one_order_lives_its_whole_life(database_url: str, tmp_path: Path) -> None:
    with installed(tmp_path, database_url) as installation:
        installation.start()
        places = installation.places
        played = story.play(places, lambda step: print(step))
        assert played.ok, played.summary()
        resources = everything(installation)
        faults = {f"{one['resourceType']}/{one['id']}": validation.validate(one) for one in resources}
        assert {name: found for name, found in faults.items() if found} == {}
        made = {str(one["resourceType"]) for one in resources}
        assert made == set(RESOURCE_TYPES)
        again = story.play(places, lambda step: print(step))
        assert again.ok, again.summary()
        assert again.accession != played.accession
        one_grant_opens_one_study(installation, played, again)
        foreign_clients_read_the_story(installation, played)
        logs = installation.logs()
    assert places.token not in logs
    assert [name for name in SEEDED if name in logs] == []
    assert json.loads(again.summary())["ok"] is True
