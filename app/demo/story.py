"""One order through its life, each step done and checked from outside: HTTP, C-FIND, C-STORE, DICOMweb.

The steps are those of the product's story; each one fails with a sentence when what it looks for does not happen.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from dicomweb_client import DICOMwebClient, session_utils
from pydicom.dataset import Dataset

from app.dicom import annotation, encapsulated, modality, uids
from app.dicom.modality import Peer
from app.dicom.phantom import Phantom

T = Any
FHIR = "application/fhir+json"
WAIT_SECONDS = 30.0
VIEWER_GUARD = "X-Isocenter-Viewer"
OTHER_STUDY = "1.2.826.0.1.3680043.8.498.1"
USER = {"id": "radiologist", "name": "Dr. Rana Demo-Radiologist"}


class StepFailed(Exception):
    """A step of the story did not do what it must."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step as it went: how long it took in milliseconds."""

    step: str
    ok: bool
    ms: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the installation listens, and an access token of a trusted client (orders, launches, signing)."""

    base: str
    token: str = field(repr=False)
    worklist: Peer
    archive: Peer
    patient_id: str
    slices: int = 24


@dataclass(slots=True)
class Played:
    """What the story has seen so far."""

    accession: str = ""
    study_uid: str = ""
    order_id: str = ""
    study_id: str = ""
    session: str = ""
    image: Dataset | None = None
    length: float = 0.0
    report_id: str = ""
    steps: list[Step] = field(default_factory=list[Step])

    @property
    def ok(self) -> bool:
        """Whether every step went well."""
        return all(step.ok for step in self.steps)

    def summary(self) -> str:
        """The one JSON line."""
        steps = [{key: value for key, value in asdict(step).items() if value != ""} for step in self.steps]
        line = {"ok": self.ok, "accession": self.accession, "study_uid": self.study_uid, "steps": steps}
        return json.dumps(line)


Tell = Callable[[Step], None]


def play(places: Places, tell: Tell) -> Played:
    """Play the whole story; it stops at the first step that fails."""
    played = Played()
    with _client(places.base, places.token) as ehr, _client(places.base) as browser:
        stage = Stage(places, played, ehr, browser)
        for name, act in STEPS:
            began = time.monotonic()
            try:
                act(stage)
                error = ""
            except StepFailed as failed:
                error = str(failed)
            except Exception as failed:  # noqa: BLE001 - whatever broke, the summary says in which step
                error = type(failed).__name__
            step = Step(name, not error, int((time.monotonic() - began) * 1000), error)
            played.steps.append(step)
            tell(step)
            if error:
                break
    return played


@dataclass(frozen=True, slots=True)
class Stage:
    """The places, what was seen, and two clients: the EHR's with its token, the browser's with its cookies."""

    places: Places
    played: Played
    ehr: httpx.Client
    browser: httpx.Client


# --- the steps ---------------------------------------------------------------------------------------------------


def order(stage: Stage) -> None:
    """A FHIR order gets its accession number and reserved Study UID."""
    body = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "priority": "routine",
        "category": [{"coding": [{"system": "http://snomed.info/sct", "code": "363679005", "display": "Imaging"}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": "24627-2", "display": "CT Chest"}]},
        "subject": {"reference": f"Patient/{stage.places.patient_id}"},
        "reasonCode": [{"text": "Demonstration of one order's life"}],
    }
    made = _json(stage.ehr.post("/fhir/ServiceRequest", json=body, headers={"Content-Type": FHIR}), 201)
    stage.played.order_id = made["id"]
    stage.played.accession = _identifier(made, lambda one: "ACSN" in json.dumps(one.get("type", {})))
    uid = _identifier(made, lambda one: one.get("system") == "urn:dicom:uid")
    stage.played.study_uid = uid.removeprefix("urn:oid:")


def worklist(stage: Stage) -> None:
    """The scanner finds the step by accession number."""
    found = modality.find_worklist(stage.places.worklist, {"AccessionNumber": stage.played.accession})
    _require(
        [str(item.StudyInstanceUID) for item in found] == [stage.played.study_uid], "the step is not on the worklist"
    )


def acquire(stage: Stage) -> None:
    """The scanner acquires and stores what the worklist told it."""
    [item] = modality.find_worklist(stage.places.worklist, {"AccessionNumber": stage.played.accession})
    scan = modality.Scan(phantom=Phantom(slices=stage.places.slices))
    done = modality.acquire(item, stage.places.worklist, stage.places.archive, scan)
    _require(done.study_uid == stage.played.study_uid, "the scanner used another Study Instance UID")


def imaging_study(stage: Stage) -> None:
    """The order's ImagingStudy is available with every image."""

    def look() -> dict[str, Any] | None:
        query = {"identifier": f"urn:dicom:uid|urn:oid:{stage.played.study_uid}"}
        entries = _json(stage.ehr.get("/fhir/ImagingStudy", params=query)).get("entry", [])
        found = [entry["resource"] for entry in entries]
        complete = [one for one in found if one.get("numberOfInstances") == stage.places.slices]
        return complete[0] if complete and complete[0]["status"] == "available" else None

    study = _until(look, "the ImagingStudy does not become available")
    _require(study["basedOn"][0]["reference"] == f"ServiceRequest/{stage.played.order_id}", "the study is not linked")
    stage.played.study_id = study["id"]


def launch(stage: Stage) -> None:
    """The EHR launches OHIF by SMART; the browser ends in a session with no token in any address."""
    asked = {"service_request": f"ServiceRequest/{stage.played.order_id}", "user": USER}
    opened = _json(stage.ehr.post("/launches", json=asked), 201)
    address = opened["launch_url"]
    answer = stage.browser.get(_local(stage, address))
    for _ in range(10):
        if not answer.is_redirect:
            break
        address = answer.headers["location"]
        _require("token=" not in address, "a token stands in an address")
        answer = stage.browser.get(_local(stage, address))
    found = re.search(r"/v/([^/]+)/", urlsplit(address).path)
    _require(answer.status_code == 200 and found is not None, f"the launch ends with status {answer.status_code}")
    stage.played.session = found[1] if found else ""
    config = stage.browser.get(f"/v/{stage.played.session}/app-config.js")
    _require(config.status_code == 200 and "dicom-web" in config.text, "the viewer's configuration is not served")


def images(stage: Stage) -> None:
    """The session shows the granted study: list, metadata and a frame."""
    root = f"/v/{stage.played.session}/dicom-web/studies"
    listed = _json(stage.browser.get(root))
    _require(
        [one["0020000D"]["Value"][0] for one in listed] == [stage.played.study_uid], "QIDO does not list the study"
    )
    instances = _json(stage.browser.get(f"{root}/{stage.played.study_uid}/metadata"))
    _require(len(instances) == stage.places.slices, "metadata misses images")
    middle = sorted(instances, key=lambda one: one["00200013"]["Value"][0])[len(instances) // 2]
    chosen = Dataset.from_json({tag: element for tag, element in middle.items() if "BulkDataURI" not in element})
    place = f"{stage.played.study_uid}/series/{chosen.SeriesInstanceUID}/instances/{chosen.SOPInstanceUID}"
    frame = stage.browser.get(f"{root}/{place}/frames/1")
    _require(frame.status_code == 200 and len(frame.content) > chosen.Rows * chosen.Columns, "no frame is served")
    stage.played.image = chosen


def other_study(stage: Stage) -> None:
    """The session opens no other study, however its address is written."""
    root = f"/v/{stage.played.session}/dicom-web/studies"
    for place in (OTHER_STUDY, f"{stage.played.study_uid}/..%2f{OTHER_STUDY}"):
        status = stage.browser.get(f"{root}/{place}/metadata").status_code
        _require(status in {400, 403}, f"another study is answered with {status}")
    _require(_json(stage.browser.get(root, params={"PatientID": "SOMEBODY-ELSE"})) == [], "QIDO lists another patient")


def measure(stage: Stage) -> None:
    """A length drawn on the image is saved as a report into the study."""
    image = stage.played.image
    if image is None:
        raise StepFailed("there is no image to measure on")
    line = annotation.Line((60.5, 100.5), (160.5, 100.5), "Demo-Radiologist^Rana", "demonstration")
    stage.played.length = annotation.length(image, line)
    body, kind = _multipart(annotation.report(image, line))
    headers = {"Content-Type": kind, "Origin": _origin(stage), "Sec-Fetch-Site": "same-origin"}
    headers |= {VIEWER_GUARD: stage.played.session, "Accept": "application/dicom+json"}
    url = f"/v/{stage.played.session}/dicom-web/studies/{stage.played.study_uid}"
    _json(stage.browser.post(url, content=body, headers=headers), 200)


def observation(stage: Stage) -> None:
    """The measurement is an Observation of the study, performed by who was logged in."""

    def look() -> dict[str, Any] | None:
        query = {"derived-from": f"ImagingStudy/{stage.played.study_id}"}
        entries = _json(stage.ehr.get("/fhir/Observation", params=query)).get("entry", [])
        return next((entry["resource"] for entry in entries if "valueQuantity" in entry["resource"]), None)

    found = _until(look, "the measurement does not become an Observation")
    quantity = found["valueQuantity"]
    right = abs(float(quantity["value"]) - stage.played.length) < 0.01 and quantity.get("code") == "mm"
    _require(right, "the Observation has another value than the one drawn")
    performer = found.get("performer", [{}])[0].get("reference", "")
    name = json.dumps(_json(stage.ehr.get(f"/fhir/{performer}")).get("name", [])) if performer else ""
    _require(USER["name"] in name, "the Observation names another performer")


def sign(stage: Stage) -> None:
    """The draft that gathered the measurement is signed; the order is completed."""

    def draft() -> dict[str, Any] | None:
        query = {"based-on": f"ServiceRequest/{stage.played.order_id}"}
        entries = _json(stage.ehr.get("/fhir/DiagnosticReport", params=query)).get("entry", [])
        return next((entry["resource"] for entry in entries if entry["resource"].get("result")), None)

    report = _until(draft, "the draft report does not gather the measurement")
    stage.played.report_id = report["id"]
    signed = report | {"status": "final", "conclusion": "A phantom, as expected."}
    signed["resultsInterpreter"] = [{"reference": "Practitioner/demo-radiologist"}]
    headers = {"Content-Type": FHIR, "If-Match": f'W/"{report["meta"]["versionId"]}"'}
    _json(stage.ehr.put(f"/fhir/DiagnosticReport/{report['id']}", json=signed, headers=headers))

    def completed() -> bool:
        return _json(stage.ehr.get(f"/fhir/ServiceRequest/{stage.played.order_id}"))["status"] == "completed"

    _until(completed, "the order does not become completed")


def pdf(stage: Stage) -> None:
    """The signed report lies in the archive as a PDF of the same study, byte for byte the one in FHIR."""

    def presented() -> dict[str, Any] | None:
        report = _json(stage.ehr.get(f"/fhir/DiagnosticReport/{stage.played.report_id}"))
        return next((form for form in report.get("presentedForm", []) if "data" in form), None)

    form = _until(presented, "the report gets no PDF")
    session = session_utils.create_session()
    session.headers["Authorization"] = f"Bearer {stage.places.token}"
    session.trust_env = False
    web = DICOMwebClient(f"{stage.places.base}/dicom-web", session=session)

    def series() -> list[Any]:
        return web.search_for_series(stage.played.study_uid, search_filters={"Modality": "DOC"})

    [row] = _until(series, "the archive shows no document series")
    found = web.retrieve_series(stage.played.study_uid, row["0020000E"]["Value"][0])
    session.close()
    _require(len(found) == 1 and found[0].SOPClassUID == uids.ENCAPSULATED_PDF, "not exactly one PDF is archived")
    content = encapsulated.content(found[0])
    _require(content.startswith(b"%PDF") and len(content) == form["size"], "the archived PDF is not the presented one")


STEPS: tuple[tuple[str, Callable[[Stage], None]], ...] = (
    ("order", order),
    ("worklist", worklist),
    ("acquire", acquire),
    ("imaging-study", imaging_study),
    ("launch", launch),
    ("images", images),
    ("other-study-refused", other_study),
    ("measure", measure),
    ("observation", observation),
    ("sign", sign),
    ("pdf", pdf),
)


# --- what the steps share ----------------------------------------------------------------------------------------


@contextmanager
def _client(base: str, token: str = "") -> Generator[httpx.Client]:
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
    with httpx.Client(base_url=base, headers=headers, timeout=30, trust_env=False) as client:
        yield client


def _json(answer: httpx.Response, status: int = 200) -> Any:
    if answer.status_code != status:
        raise StepFailed(
            f"{answer.request.method} {answer.request.url.path} answers {answer.status_code}, not {status}"
        )
    return answer.json()


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise StepFailed(sentence)


def _until(look: Callable[[], Any], sentence: str) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise StepFailed(f"{sentence} within {WAIT_SECONDS:.0f} s")


def _identifier(resource: Mapping[str, Any], wanted: Callable[[Mapping[str, Any]], bool]) -> str:
    found = [one["value"] for one in resource.get("identifier", []) if wanted(one)]
    _require(len(found) == 1, "the order did not get its number")
    return found[0]


def _local(stage: Stage, address: str) -> str:
    """The address as reached from here: the public URL may name the same listener otherwise."""
    parts = urlsplit(address)
    return f"{stage.places.base}{parts.path}" + (f"?{parts.query}" if parts.query else "")


def _origin(stage: Stage) -> str:
    config = _json(stage.ehr.get("/fhir/.well-known/smart-configuration"))
    parts = urlsplit(config["token_endpoint"])
    return f"{parts.scheme}://{parts.netloc}"


def _multipart(document: bytes) -> tuple[bytes, str]:
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = head + document + f"\r\n--{boundary}--\r\n".encode()
    return body, f'multipart/related; type="application/dicom"; boundary={boundary}'
