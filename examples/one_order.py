"""One imaging order through its whole life, against a running Isocenter, by public interfaces only.

It is at once the EHR (FHIR, POST /launches), the scanner (C-FIND, C-STORE), the viewer (cookie session, DICOMweb) and
the radiologist (signature). Nothing here imports Isocenter: copy it and keep the part you need.

1. Make a key, and register its public half with everything this client plays:

    python examples/one_order.py --key ris.key.json --make-key > ris.jwks.json
    isocenter client add --id ris --name "Example RIS" --jwks ris.jwks.json \
        --scope "system/*.cruds isocenter/launch isocenter/sign user/*.rs user/ImagingStudy.cu user/Observation.cud"

2. Play the story against `isocenter serve` or `isocenter demo`:

    python examples/one_order.py --key ris.key.json --base http://localhost:8080

With --token it only prints an access token (it lives five minutes), for curl or the conversations beside this file.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import re
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import highdicom
import httpx
import numpy as np
from dicomweb_client import DICOMwebClient, session_utils
from highdicom import sr
from joserfc import jwt
from joserfc.jwk import ECKey
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.ae import ApplicationEntity
from pynetdicom.sop_class import ModalityWorklistInformationFind  # type: ignore[attr-defined]

T = TypeVar("T")
FHIR = "application/fhir+json"
STUDY_UID = "urn:dicom:uid"
ROWS, SLICES, SPACING = 64, 5, 0.8
LINE = (10.0, 20.0), (50.0, 50.0)
"""What is measured, in columns and rows."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A DICOM application, written AE@host:port."""

    ae_title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Peer:
        ae_title, _, address = text.partition("@")
        host, _, port = address.rpartition(":")
        return cls(ae_title, host, int(port))


def main() -> int:
    """Make the key, or play the story."""
    options = _options()
    if options.make_key:
        key = ECKey.generate_key("P-384", parameters={"kid": uuid.uuid4().hex, "alg": "ES384", "use": "sig"})
        options.key.touch(mode=0o600)
        options.key.write_text(json.dumps(key.as_dict(private=True)))
        print(json.dumps({"keys": [key.as_dict(private=False)]}, indent=2))
        return 0
    key = ECKey.import_key(json.loads(options.key.read_text()))
    token = access_token(options.base, options.client, key, options.scope)
    if options.token:
        print(token)
        return 0
    with client(options.base, token) as ehr, client(options.base) as browser:
        play(ehr, browser, Peer.parse(options.worklist), Peer.parse(options.archive))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One imaging order through its whole life.")
    parser.add_argument("--base", default="http://localhost:8080", help="the server's public address")
    parser.add_argument("--client", default="ris", help="the id given to `isocenter client add`")
    parser.add_argument("--key", type=Path, required=True, help="file of the client's private key")
    parser.add_argument("--make-key", action="store_true", help="make that file and print the public keys")
    parser.add_argument("--token", action="store_true", help="only print an access token, for other programs")
    parser.add_argument("--scope", default="system/*.cruds isocenter/launch isocenter/sign", help="what it is for")
    parser.add_argument("--worklist", default="ISOCENTER@127.0.0.1:11112", help="where scanners ask for their worklist")
    parser.add_argument("--archive", default="ORTHANC@127.0.0.1:14242", help="where scanners store")
    return parser.parse_args()


# --- the client proves itself by its key: SMART Backend Services -------------------------------------------------


def access_token(base: str, client_id: str, key: ECKey, scope: str) -> str:
    """A token for system scopes (client_credentials with private_key_jwt)."""
    with client(base) as web:
        token_url = told(web.get("/fhir/.well-known/smart-configuration"))["token_endpoint"]
        claims = {
            "iss": client_id,
            "sub": client_id,
            "aud": token_url,
            "jti": uuid.uuid4().hex,
            "exp": int(time.time()) + 120,
        }
        form = {
            "grant_type": "client_credentials",
            "scope": scope,
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": jwt.encode({"alg": "ES384", "kid": key.kid}, claims, key, algorithms=["ES384"]),
        }
        return told(web.post(token_url, data=form))["access_token"]


def client(base: str, token: str = "") -> httpx.Client:
    """An HTTP client; `trust_env` off keeps a proxy of this machine out of local calls."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=base, headers=headers, timeout=30, trust_env=False)


# --- the story ---------------------------------------------------------------------------------------------------


def play(ehr: httpx.Client, browser: httpx.Client, worklist: Peer, archive: Peer) -> None:
    """Every step, in order; the first one that goes wrong ends the program with what was wrong."""
    order = ordered(ehr)
    study_uid = identifier(order, STUDY_UID).removeprefix("urn:oid:")
    images = scanned(order, study_uid, worklist, archive)

    study = until("the ImagingStudy becomes available", lambda: available(ehr, study_uid))
    orders = [one.get("reference") for one in study.get("basedOn", [])]
    must(orders == [f"ServiceRequest/{order['id']}"], "the study does not name its order")
    say("study", f"ImagingStudy/{study['id']} is available")

    measured(ehr, browser, order, images[2])
    query = {"derived-from": f"ImagingStudy/{study['id']}"}
    length = until("the measurement becomes an Observation", lambda: quantity(ehr, query))
    must(math.isclose(length["value"], math.dist(*LINE) * SPACING), "the Observation has another value")
    say("observation", f"{length['value']} {length['unit']}")

    report_id = signed(ehr, order)
    form = until("the report gets its PDF", lambda: pdf_of(told(ehr.get(f"/fhir/DiagnosticReport/{report_id}"))))
    archived = until("the PDF is archived", lambda: archived_pdf(ehr, study_uid))
    must(archived.rstrip(b"\0") == base64.b64decode(form["data"]).rstrip(b"\0"), "another PDF is archived")
    say("pdf", f"{form['size']} bytes, the same in FHIR and in the archive")


def ordered(ehr: httpx.Client) -> dict[str, Any]:
    """The EHR places the order; the answer bears its accession number and Study Instance UID."""
    patient = told(ehr.post("/fhir/Patient", json=new_patient(), headers={"Content-Type": FHIR}), 201)
    order = told(ehr.post("/fhir/ServiceRequest", json=new_order(patient), headers={"Content-Type": FHIR}), 201)
    say("order", f"ServiceRequest/{order['id']}, accession number {accession_of(order)}")
    return order


def scanned(order: dict[str, Any], study_uid: str, worklist: Peer, archive: Peer) -> list[Dataset]:
    """The scanner asks what to do, does it and stores."""
    [step] = find_worklist(worklist, accession_of(order))
    must(step.StudyInstanceUID == study_uid, "the worklist names another study")
    say("worklist", f"{step.PatientName}, {step.ScheduledProcedureStepSequence[0].Modality}")
    images = [slice_of(step, number) for number in range(1, SLICES + 1)]
    store(archive, images)
    say("images", f"{len(images)} slices stored")
    return images


def measured(ehr: httpx.Client, browser: httpx.Client, order: dict[str, Any], image: Dataset) -> None:
    """The EHR opens the viewer for one person; the viewer sees one study and saves a length."""
    wanted = {"service_request": f"ServiceRequest/{order['id']}", "user": {"id": "r1", "name": "Dr. Ada Example"}}
    session = launched(browser, told(ehr.post("/launches", json=wanted), 201)["viewer_url"])
    seen = told(browser.get(f"{session}/dicom-web/studies"))
    uids = [one["0020000D"]["Value"][0] for one in seen]
    must(uids == [image.StudyInstanceUID], "the session lists something else than this study")
    denied = browser.get(f"{session}/dicom-web/studies/1.2.3.4/metadata").status_code
    must(denied == 403, f"another study is answered with {denied}")
    say("viewer", "the session shows this study and no other")
    save(browser, session, image.StudyInstanceUID, measurement(image))


def signed(ehr: httpx.Client, order: dict[str, Any]) -> str:
    """The radiologist signs the draft that gathered the measurement; the order is completed."""
    doctor = told(ehr.post("/fhir/Practitioner", json=new_interpreter(), headers={"Content-Type": FHIR}), 201)
    based_on = {"based-on": f"ServiceRequest/{order['id']}"}
    draft = until("the draft report gathers it", lambda: first(ehr, "DiagnosticReport", based_on, "result"))
    report = draft | {"status": "final", "conclusion": "An example without a finding."}
    report["resultsInterpreter"] = [{"reference": f"Practitioner/{doctor['id']}"}]
    headers = {"Content-Type": FHIR, "If-Match": f'W/"{draft["meta"]["versionId"]}"'}
    told(ehr.put(f"/fhir/DiagnosticReport/{draft['id']}", json=report, headers=headers))
    here = f"/fhir/ServiceRequest/{order['id']}"
    until("the order is completed", lambda: told(ehr.get(here))["status"] == "completed")
    say("report", f"DiagnosticReport/{draft['id']} is final, the order completed")
    return draft["id"]


# --- the EHR -----------------------------------------------------------------------------------------------------


def new_patient() -> dict[str, Any]:
    """Somebody who does not exist. Without a configured authority MRNs have this system."""
    return {
        "resourceType": "Patient",
        "identifier": [{"system": "urn:isocenter:mrn", "value": uuid.uuid4().hex[:12].upper()}],
        "name": [{"family": "Example", "given": ["Eve"]}],
        "birthDate": "1970-01-01",
        "gender": "female",
    }


def new_interpreter() -> dict[str, Any]:
    return {"resourceType": "Practitioner", "name": [{"family": "Example", "given": ["Ada"], "prefix": ["Dr."]}]}


def new_order(patient: dict[str, Any]) -> dict[str, Any]:
    return {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "category": [{"coding": [{"system": "http://snomed.info/sct", "code": "363679005", "display": "Imaging"}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": "24627-2", "display": "CT Chest"}]},
        "subject": {"reference": f"Patient/{patient['id']}"},
    }


def first(ehr: httpx.Client, kind: str, query: dict[str, str], element: str) -> dict[str, Any] | None:
    """The first resource of a search that has the element."""
    entries = told(ehr.get(f"/fhir/{kind}", params=query)).get("entry", [])
    return next((one["resource"] for one in entries if element in one["resource"]), None)


def available(ehr: httpx.Client, study_uid: str) -> dict[str, Any] | None:
    study = first(ehr, "ImagingStudy", {"identifier": f"{STUDY_UID}|urn:oid:{study_uid}"}, "status")
    complete = study and study["status"] == "available" and study["numberOfInstances"] == SLICES
    return study if complete else None


def quantity(ehr: httpx.Client, query: dict[str, str]) -> dict[str, Any] | None:
    found = first(ehr, "Observation", query, "valueQuantity")
    return found and found["valueQuantity"]


def pdf_of(report: dict[str, Any]) -> dict[str, Any] | None:
    forms = report.get("presentedForm", [])
    return next((form for form in forms if form.get("contentType") == "application/pdf" and "data" in form), None)


def archived_pdf(ehr: httpx.Client, study_uid: str) -> bytes | None:
    """The Encapsulated PDF of the study, through DICOMweb with the same token."""
    session = session_utils.create_session()
    session.trust_env = False
    session.headers["Authorization"] = ehr.headers["Authorization"]
    with session:
        web = DICOMwebClient(f"{ehr.base_url}/dicom-web", session=session)
        series = web.search_for_series(study_uid, search_filters={"Modality": "DOC"})
        documents = web.retrieve_series(study_uid, series[0]["0020000E"]["Value"][0]) if series else []
    return bytes(documents[0].EncapsulatedDocument) if documents else None


# --- the scanner -------------------------------------------------------------------------------------------------


def find_worklist(peer: Peer, accession: str) -> list[Dataset]:
    """C-FIND: the scheduled steps with this accession number."""
    step = Dataset()
    step.Modality = step.ScheduledStationAETitle = step.ScheduledProcedureStepID = ""
    asked = Dataset()
    asked.AccessionNumber = accession
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"):
        setattr(asked, keyword, "")
    asked.ScheduledProcedureStepSequence = [step]
    with Association(peer, ModalityWorklistInformationFind) as scanner:
        answers = list(scanner.send_c_find(asked, ModalityWorklistInformationFind))
    must(answers[-1][0].get("Status") == 0, "the worklist query failed")
    return [found for status, found in answers if found is not None and status.Status in {0xFF00, 0xFF01}]


def slice_of(step: Dataset, number: int) -> Dataset:
    """One CT image that carries what the worklist said."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyInstanceUID",
    ):
        setattr(image, keyword, step[keyword].value)
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, f"2.25.{uuid.uuid4().int}"
    image.SeriesInstanceUID = f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, step.StudyInstanceUID).int}"
    image.FrameOfReferenceUID = f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, image.SeriesInstanceUID).int}"
    image.Modality, image.SeriesNumber, image.InstanceNumber, image.StudyID = "CT", 1, number, ""
    image.StudyDate = image.SeriesDate = image.ContentDate = time.strftime("%Y%m%d")
    image.StudyTime = image.SeriesTime = image.ContentTime = time.strftime("%H%M%S")
    image.Manufacturer, image.ReferringPhysicianName, image.PositionReferenceIndicator = "Example", "", ""
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.PixelSpacing, image.SliceThickness = [SPACING, SPACING], 2.5
    image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.5 * number]
    image.Rows = image.Columns = ROWS
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 1
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = 0, 1, "HU"
    image.KVP, image.AcquisitionNumber = 120, 1
    ramp = np.add.outer(np.arange(ROWS), np.arange(ROWS) * number).astype("<i2")
    image.PixelData = ramp.tobytes()
    image["PixelData"].VR = "OW"
    return image


def store(peer: Peer, images: list[Dataset]) -> None:
    """C-STORE to the archive, as a scanner does."""
    with Association(peer, CTImageStorage) as scanner:
        for image in images:
            must(scanner.send_c_store(image).get("Status") == 0, "the archive did not take an image")


class Association:
    """A DICOM association for the time of a block."""

    def __init__(self, peer: Peer, context: str) -> None:
        """`context` is the SOP class to be used."""
        entity = ApplicationEntity("EXAMPLE")
        entity.add_requested_context(context, ExplicitVRLittleEndian)
        self.opened = entity.associate(peer.host, peer.port, ae_title=peer.ae_title)
        must(self.opened.is_established, f"no association with {peer.ae_title} at {peer.host}:{peer.port}")

    def __enter__(self) -> Any:
        """The association."""
        return self.opened

    def __exit__(self, *_: object) -> None:
        """Release it."""
        self.opened.release()


# --- the viewer --------------------------------------------------------------------------------------------------


def launched(browser: httpx.Client, viewer_url: str) -> str:
    """Follow the one-time address as a browser does; the path of the session it ends in."""
    answer = browser.get(viewer_url, follow_redirects=True)
    found = re.match(r"/v/[^/]+", urlsplit(str(answer.url)).path)
    must(answer.status_code == 200 and found is not None, f"the launch ends with status {answer.status_code}")
    return found[0] if found else ""


def measurement(image: Dataset) -> bytes:
    """A length as a TID 1500 report."""
    region = sr.ImageRegion(
        graphic_type=sr.GraphicTypeValues.POLYLINE,
        graphic_data=np.array(LINE),
        source_image=sr.SourceImageForRegion.from_source_image(image),
    )
    group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(identifier="example length"),
        referenced_region=region,
        measurements=[sr.Measurement(codes.SCT.Length, math.dist(*LINE) * SPACING, codes.UCUM.Millimeter)],
    )
    person = sr.PersonObserverIdentifyingAttributes(name="Example^Ada")
    observer = sr.ObserverContext(codes.DCM.Person, person)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_person_context=observer),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[group],
    )
    document = sr.Comprehensive3DSR(
        evidence=[image],
        content=content[0],
        series_instance_uid=highdicom.UID(),
        series_number=100,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="Example",
        is_complete=True,
    )
    buffer = BytesIO()
    document.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def save(browser: httpx.Client, session: str, study_uid: str, document: bytes) -> None:
    """STOW-RS in the viewer's session: its cookie, its origin, and its guard header."""
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
        "Sec-Fetch-Site": "same-origin",
        "X-Isocenter-Viewer": session.removeprefix("/v/"),
    }
    body = head + document + f"\r\n--{boundary}--\r\n".encode()
    told(browser.post(f"{session}/dicom-web/studies/{study_uid}", content=body, headers=headers))


# --- what the steps share ----------------------------------------------------------------------------------------


def told(answer: httpx.Response, status: int = 200) -> Any:
    """The JSON of an answer that has the expected status."""
    address = answer.request.url.path
    must(answer.status_code == status, f"{answer.request.method} {address}: {answer.status_code}\n{answer.text}")
    return answer.json()


def accession_of(order: dict[str, Any]) -> str:
    return next(one["value"] for one in order["identifier"] if "ACSN" in json.dumps(one.get("type", {})))


def identifier(resource: dict[str, Any], system: str) -> str:
    return next(one["value"] for one in resource["identifier"] if one.get("system") == system)


def until(what: str, look: Callable[[], T | None], seconds: float = 30) -> T:
    """The first answer that is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise SystemExit(f"waited {seconds:.0f} s until {what}")


def must(right: object, sentence: str) -> None:
    if not right:
        raise SystemExit(sentence)


def say(step: str, what: str) -> None:
    print(f"{step:<12} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
