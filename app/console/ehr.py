"""The demonstration EHR: a client of our public FHIR API and of POST /launches (SMART App Launch 2.2, the EHR's side).

It has no way into the server but HTTP with a bearer token. Every page works without JavaScript.
"""

from __future__ import annotations

import hmac
import re
import secrets
import ssl
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

import httpx
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.console import chart
from app.console.chart import Chart, Json
from app.settings import is_loopback

HERE = Path(__file__).parent
BASE = "/ehr"
FHIR_JSON = "application/fhir+json"
SIGNING_ROLE = "radiologist"
USER_COOKIE, FORM_COOKIE = "ehr_user", "ehr_form"
LONGEST_FORM = 64_000
PATIENTS_SHOWN = 50
SEE_OTHER = 303
IMAGING = {"coding": [{"system": "http://snomed.info/sct", "code": "363679005", "display": "Imaging"}]}
MR_TYPE = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "MR"}]}
PRIORITIES = ("routine", "urgent", "asap", "stat")
SEXES = ("female", "male", "other", "unknown")
PARTS = [
    ("_include", "ServiceRequest:patient"),
    ("_include", "ServiceRequest:requester"),
    ("_revinclude", "Task:focus"),
    ("_revinclude", "ImagingStudy:basedon"),
    ("_revinclude", "DiagnosticReport:based-on"),
    ("_revinclude", "Observation:based-on"),
]
"""What belongs to an order, in the order's own search."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
FICTIONAL = (
    ("Ashgrove", "Tilda", "female", "1958-04-17"),
    ("Birkenfeld", "Casimir", "male", "1971-11-02"),
    ("Fernsby", "Odette", "female", "1986-08-29"),
    ("Marlowe", "Jasper", "male", "1949-01-12"),
    ("Quillfeather", "Rosalind", "female", "1994-06-05"),
    ("Thistlewood", "Ambrose", "male", "2003-09-23"),
)
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_TOKEN = re.compile(r"[\w\-]{43}")
_OWN_PATH = re.compile(r"/ehr(/[A-Za-z0-9\-]+)*")
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(HERE / "templates" / "ehr"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True, slots=True)
class EhrUser:
    """A person who works with the demonstration EHR; `fhir_user` is a reference to the Practitioner."""

    id: str
    name: str
    role: str
    fhir_user: str


@dataclass(frozen=True, slots=True)
class EhrProcedure:
    """A procedure that can be ordered, by one coding of the catalogue."""

    name: str
    system: str
    code: str
    display: str


@dataclass(frozen=True, slots=True)
class Ehr:
    """What the EHR needs from the installation. `base` is the server as the EHR reaches it, `token` gives a fresh
    access token of the client `demo-ehr`, `timeline` the events (at, kind, cause) of an order id."""

    base: str
    token: Callable[[], str] = field(repr=False)
    users: Callable[[], Sequence[EhrUser]]
    procedures: Sequence[EhrProcedure]
    timeline: Callable[[str], Sequence[Mapping[str, Any]]]
    mrn_system: str = "urn:isocenter:mrn"
    zone: tzinfo = UTC


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of a person; `form` is empty unless something was posted."""

    request: Request
    form: Mapping[str, str] = field(default_factory=dict[str, str])


class Refusal(Exception):
    """The page that was asked for cannot be shown, or what was posted was not done; the sentences say why."""

    def __init__(self, status: int, *sentences: str) -> None:
        """`sentences` are shown to the person."""
        self.status, self.sentences = status, sentences
        super().__init__("; ".join(sentences))


class Shown(APIRoute):
    """A route whose refusals are pages."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """FastAPI's handler, and what a person reads when it refuses."""
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await inner(request)
            except Refusal as refusal:
                html = _ENVIRONMENT.get_template("refused.html").render(user=None, sentences=refusal.sentences)
                return HTMLResponse(html, refusal.status, headers=HEADERS)

        return handler


def routes(ehr: Ehr) -> APIRouter:
    """Every address below /ehr."""
    router = APIRouter(include_in_schema=False, route_class=Shown)
    _desk_routes(router, ehr)
    _patient_routes(router, ehr)
    _order_routes(router, ehr)
    _report_routes(router, ehr)
    return router


# --- the server, as any client reaches it ----------------------------------------------------------------------


@contextmanager
def _server(ehr: Ehr) -> Generator[httpx.Client]:
    headers = {"Authorization": f"Bearer {ehr.token()}", "Accept": f"{FHIR_JSON}, application/json"}
    with httpx.Client(base_url=ehr.base, headers=headers, timeout=10, trust_env=False, verify=_tls()) as client:
        yield client


@cache
def _tls() -> ssl.SSLContext:
    # Loading the certificates takes longer than a whole page.
    return ssl.create_default_context()


def _call(client: httpx.Client, method: str, path: str, **content: Any) -> httpx.Response:
    try:
        response = client.request(method, path, **content)
    except httpx.HTTPError as error:
        raise Refusal(503, "The imaging server does not answer. Try again in a moment.") from error
    if response.status_code >= 400:
        raise Refusal(response.status_code, *_told(response))
    return response


def _told(response: httpx.Response) -> list[str]:
    """Why the server refused, in its own words."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    issues: list[Json] = body.get("issue", [])
    sentences = [one["diagnostics"] for one in issues if one.get("diagnostics")]
    told = sentences or [text for text in (body.get("detail"), body.get("error_description")) if isinstance(text, str)]
    return told or [f"The imaging server refused this with status {response.status_code}."]


def _find(client: httpx.Client, resource_type: str, criteria: Sequence[tuple[str, str]]) -> list[Json]:
    """A search; its parameters travel in the body, because names do not belong into addresses."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    path = f"/fhir/{resource_type}/_search"
    bundle = _call(client, "POST", path, content=urlencode(criteria), headers=headers).json()
    found: list[Json] = [entry["resource"] for entry in bundle.get("entry", [])]
    return [one for one in found if one["resourceType"] != "OperationOutcome"]


def _escaped(text: str) -> str:
    return re.sub(r"([\\,$|])", r"\\\1", text)


def _patients(client: httpx.Client, text: str) -> list[Json]:
    """The patients whose MRN is this text, or whose name holds each of its words."""
    shown = ("_count", str(PATIENTS_SHOWN))
    if not text:
        return _find(client, "Patient", [("_sort", "-_lastUpdated"), shown])
    by_name = _find(client, "Patient", [*(("name:contains", _escaped(word)) for word in text.split()), shown])
    by_number = _find(client, "Patient", [("identifier", _escaped(text)), shown])
    return list({one["id"]: one for one in [*by_number, *by_name]}.values())


def _patient(client: httpx.Client, patient_id: str) -> Json:
    found = _find(client, "Patient", [("_id", patient_id)]) if _ID.fullmatch(patient_id) else []
    if not found:
        raise Refusal(404, "There is no such patient here.")
    return found[0]


def _chart(client: httpx.Client, order_id: str) -> Chart:
    entries = _find(client, "ServiceRequest", [("_id", order_id), *PARTS]) if _ID.fullmatch(order_id) else []
    found = chart.charts(entries)
    if not found or not found[0].patient:
        raise Refusal(404, "There is no such order here.")
    return found[0]


# --- pages, forms and who acts ---------------------------------------------------------------------------------


def _page(ehr: Ehr, visit: Visit, name: str, status: int = 200, **values: Any) -> Response:
    """A page that cannot be framed or kept, with the token its forms send back."""
    request = visit.request
    kept = request.cookies.get(FORM_COOKIE, "")
    token = kept if _TOKEN.fullmatch(kept) else secrets.token_urlsafe(32)
    common = {
        "user": _acting(ehr, request),
        "users": ehr.users(),
        "token": token,
        "here": request.url.path if request.method == "GET" else BASE,
        "stages": chart.STAGES,
    }
    response = HTMLResponse(_ENVIRONMENT.get_template(name).render(**common, **values), status, headers=HEADERS)
    if token != kept:
        _keep(response, request, FORM_COOKIE, token)
    return response


def _keep(response: Response, request: Request, name: str, value: str) -> None:
    response.set_cookie(
        name, value, path=BASE, secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )  # fmt: skip


def _to(path: str) -> Response:
    return RedirectResponse(BASE + path, SEE_OTHER, headers=HEADERS)


def _acting(ehr: Ehr, request: Request) -> EhrUser:
    """The person chosen in this browser; a radiologist when nobody is."""
    people, chosen = ehr.users(), request.cookies.get(USER_COOKIE, "")
    found = [one for one in people if one.id == chosen] or [one for one in people if one.role == SIGNING_ROLE]
    if not found and not people:
        raise Refusal(503, "There are no demonstration users yet.")
    return (found or list(people))[0]


def _reference(user: EhrUser) -> Json:
    return {"reference": user.fhir_user, "display": user.name}


def _looked(request: Request) -> Visit:
    return Visit(request)


async def _posted(request: Request) -> Visit:
    """A form that one of our own pages sent (OWASP: origin and a token that only our pages know)."""
    if not _is_own(request):
        raise Refusal(403, "This form was not sent by a page of this EHR.")
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()) or int(length) > LONGEST_FORM:
        raise Refusal(413, "This form is too long.")
    form = dict(parse_qsl((await request.body()).decode(errors="replace"), keep_blank_values=True))
    kept = request.cookies.get(FORM_COOKIE, "")
    if not _TOKEN.fullmatch(kept) or not hmac.compare_digest(kept.encode(), form.get("token", "").encode()):
        raise Refusal(403, "This form has expired. Load the page again and repeat what you entered.")
    return Visit(request, form)


def _is_own(request: Request) -> bool:
    # A name that only resolves to this machine (DNS rebinding) is not ours.
    if not is_loopback(request.url.hostname or ""):
        return False
    # Under no-referrer a browser's form says "Origin: null"; where it came from stands in Sec-Fetch-Site then.
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return request.headers.get("origin") == f"{request.url.scheme}://{request.url.netloc}"


def _today(ehr: Ehr) -> datetime:
    return datetime.now(ehr.zone)


def _person(ehr: Ehr, patient: Json) -> chart.Person:
    return chart.person(patient, ehr.mrn_system, _today(ehr).date())


Looked = Annotated[Visit, Depends(_looked)]
Posted = Annotated[Visit, Depends(_posted)]


# --- desk: patients, who acts, the style sheet -------------------------------------------------------------------


def _desk_routes(router: APIRouter, ehr: Ehr) -> None:
    @router.get("")
    @router.get("/")
    def desk(visit: Looked) -> Response:
        return _desk(ehr, visit)

    @router.post("/user")
    def act_as(visit: Posted) -> Response:
        chosen = visit.form.get("user", "")
        if all(one.id != chosen for one in ehr.users()):
            raise Refusal(422, "There is no such user.")
        there = visit.form.get("next", "")
        response = _to(there.removeprefix(BASE) if _OWN_PATH.fullmatch(there) else "")
        _keep(response, visit.request, USER_COOKIE, chosen)
        return response

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in {"ehr.css", "ehr.js", "ehr.svg"}:
            raise Refusal(404, "There is no such file.")
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return FileResponse(HERE / "static" / name, headers=headers)


def _desk(ehr: Ehr, visit: Visit, errors: Sequence[str] = ()) -> Response:
    text = visit.request.query_params.get("q", "").strip()[:100]
    recent = [("_sort", "-authored"), ("_count", "8"), *PARTS]
    with _server(ehr) as client:
        people = [_person(ehr, one) for one in _patients(client, text)]
        orders = [] if text else chart.imaging(_find(client, "ServiceRequest", recent))
    rows = [(one, _person(ehr, one.patient)) for one in orders if one.patient]
    values: Json = {"text": text, "people": sorted(people, key=lambda one: one.name), "orders": rows, "errors": errors}
    status = 422 if errors else 200
    more = len(people) >= PATIENTS_SHOWN
    return _page(ehr, visit, "desk.html", status, **values, more=more, entered=visit.form or _suggested(), sexes=SEXES)


def _suggested() -> Mapping[str, str]:
    """Somebody who does not exist."""
    family, given, sex, born = secrets.choice(FICTIONAL)
    mrn = f"DEMO-{secrets.randbelow(900_000) + 100_000}"
    return {"family": family, "given": given, "sex": sex, "born": born, "mrn": mrn}


# --- patients ------------------------------------------------------------------------------------------------


def _patient_routes(router: APIRouter, ehr: Ehr) -> None:
    @router.post("/patients")
    def register(visit: Posted) -> Response:
        try:
            with _server(ehr) as client:
                made = _register(ehr, client, visit.form)
        except Refusal as refusal:
            return _desk(ehr, visit, refusal.sentences)
        return _to(f"/patients/{made['id']}")

    @router.get("/patients/{patient_id}")
    def patient(visit: Looked, patient_id: str) -> Response:
        return _patient_page(ehr, visit, patient_id)

    @router.post("/patients/{patient_id}/orders")
    def place(visit: Posted, patient_id: str) -> Response:
        try:
            with _server(ehr) as client:
                placed = _place(ehr, client, visit, _patient(client, patient_id))
        except Refusal as refusal:
            if refusal.status in {401, 403, 404, 503}:
                raise
            return _patient_page(ehr, visit, patient_id, refusal.sentences)
        return _to(f"/orders/{placed}")


def _register(ehr: Ehr, client: httpx.Client, form: Mapping[str, str]) -> Json:
    family, given, mrn = (form.get(name, "").strip() for name in ("family", "given", "mrn"))
    if not (family and mrn):
        raise Refusal(422, "A patient needs a family name and an MRN.")
    if _find(client, "Patient", [("identifier", f"{_escaped(ehr.mrn_system)}|{_escaped(mrn)}")]):
        raise Refusal(422, "This MRN belongs to another patient.")
    patient: Json = {
        "resourceType": "Patient",
        "identifier": [{"use": "usual", "type": MR_TYPE, "system": ehr.mrn_system, "value": mrn}],
        "name": [{"use": "official", "family": family} | ({"given": given.split()} if given else {})],
        "gender": form.get("sex", "unknown"),
    }
    if form.get("born"):
        patient["birthDate"] = form["born"]
    return _call(client, "POST", "/fhir/Patient", json=patient, headers={"Content-Type": FHIR_JSON}).json()


def _patient_page(ehr: Ehr, visit: Visit, patient_id: str, errors: Sequence[str] = ()) -> Response:
    with _server(ehr) as client:
        patient = _patient(client, patient_id)
        criteria = [("patient", f"Patient/{patient_id}"), ("_sort", "-authored"), *PARTS]
        orders = chart.imaging(_find(client, "ServiceRequest", criteria))
    soon = _today(ehr) + timedelta(minutes=15)
    blank = {"when": soon.strftime("%Y-%m-%dT%H:%M"), "priority": "routine", "order": str(uuid.uuid4())}
    times = {one.order["id"]: chart.moment(one.order.get("occurrenceDateTime"), ehr.zone) for one in orders}
    values: Json = {"person": _person(ehr, patient), "orders": orders, "times": times, "errors": errors}
    values |= {"procedures": ehr.procedures, "priorities": PRIORITIES, "zone": soon.strftime("%Z")}
    return _page(ehr, visit, "patient.html", 422 if errors else 200, **values, entered={**blank, **visit.form})


def _place(ehr: Ehr, client: httpx.Client, visit: Visit, patient: Json) -> str:
    """Write the order; its id came with the form, so that a form sent twice is one order."""
    form = visit.form
    order_id = form.get("order", "")
    procedure = next((one for one in ehr.procedures if f"{one.system}|{one.code}" == form.get("procedure")), None)
    if procedure is None or not re.fullmatch(r"[0-9a-f\-]{36}", order_id):
        raise Refusal(422, "Choose a procedure.")
    if _find(client, "ServiceRequest", [("_id", order_id)]):
        return order_id
    order: Json = {
        "resourceType": "ServiceRequest",
        "id": order_id,
        "status": "active",
        "intent": "order",
        "category": [IMAGING],
        "priority": form.get("priority", "routine"),
        "code": {
            "coding": [{"system": procedure.system, "code": procedure.code, "display": procedure.display}],
            "text": procedure.name,
        },
        "subject": {"reference": f"Patient/{patient['id']}"},
        "authoredOn": _today(ehr).isoformat(timespec="seconds"),
        "requester": _reference(_acting(ehr, visit.request)),
        "occurrenceDateTime": _when(ehr, form.get("when", "")),
    }
    if reason := form.get("reason", "").strip():
        order["reasonCode"] = [{"text": reason}]
    _call(client, "PUT", f"/fhir/ServiceRequest/{order_id}", json=order, headers={"Content-Type": FHIR_JSON})
    return order_id


def _when(ehr: Ehr, text: str) -> str:
    """A date and time as a person of this site means it."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=ehr.zone).isoformat(timespec="seconds")
    except ValueError as error:
        raise Refusal(422, "The date and time must be like 2026-03-02 09:30.") from error


# --- orders --------------------------------------------------------------------------------------------------


def _order_routes(router: APIRouter, ehr: Ehr) -> None:
    @router.get("/orders/{order_id}")
    def order(visit: Looked, order_id: str) -> Response:
        with _server(ehr) as client:
            found = _chart(client, order_id)
        may_sign = _acting(ehr, visit.request).role == SIGNING_ROLE
        values: Json = _in_words(ehr, found) | {"may_sign": may_sign, "events": _events(ehr, order_id)}
        return _page(ehr, visit, "order.html", **values)

    @router.post("/orders/{order_id}/open")
    def open_images(visit: Posted, order_id: str) -> Response:
        user = _acting(ehr, visit.request)
        with _server(ehr) as client:
            found = _chart(client, order_id)
            who = {"id": user.id, "name": user.name}
            asked = {"service_request": f"ServiceRequest/{found.order['id']}", "user": who}
            launched = _call(client, "POST", "/launches", json=asked).json()
        return RedirectResponse(launched["launch_url"], SEE_OTHER, headers=HEADERS)

    @router.get("/orders/{order_id}/report.pdf")
    def pdf(order_id: str) -> Response:
        with _server(ehr) as client:
            document = chart.document(_chart(client, order_id).report)
        if document is None:
            raise Refusal(404, "The signed report has not been made into a PDF yet.")
        headers = HEADERS | {"Content-Disposition": 'inline; filename="report.pdf"'}
        return Response(document, media_type="application/pdf", headers=headers)


def _events(ehr: Ehr, order_id: str) -> list[Json]:
    return chart.timeline(ehr.timeline(order_id), ehr.zone)


def _in_words(ehr: Ehr, found: Chart) -> Json:
    """What the order's and the signing page have in common."""
    return {
        "chart": found,
        "person": _person(ehr, found.patient),
        "when": chart.moment(found.order.get("occurrenceDateTime"), ehr.zone),
        "studies": [list(chart.study_facts(one, ehr.zone)) for one in found.studies],
        "groups": chart.groups(found.observations, found.results),
        "issued": chart.moment((found.report or {}).get("issued"), ehr.zone),
        "signers": chart.signers(found),
        "has_pdf": chart.document(found.report) is not None,
    }


# --- signing -------------------------------------------------------------------------------------------------


def _report_routes(router: APIRouter, ehr: Ehr) -> None:
    @router.get("/orders/{order_id}/sign")
    def draft(visit: Looked, order_id: str) -> Response:
        with _server(ehr) as client:
            found = _signable(ehr, client, visit, order_id)
        if found.is_signed:
            return _to(f"/orders/{order_id}")
        return _sign_page(ehr, visit, found)

    @router.post("/orders/{order_id}/sign")
    def sign(visit: Posted, order_id: str) -> Response:
        with _server(ehr) as client:
            found = _signable(ehr, client, visit, order_id)
            try:
                _sign(client, found, visit, _acting(ehr, visit.request))
            except Refusal as refusal:
                # What was typed is never lost, and the page shows the report as it stands now.
                return _sign_page(ehr, visit, _chart(client, order_id), refusal)
        return _to(f"/orders/{order_id}")


def _signable(ehr: Ehr, client: httpx.Client, visit: Visit, order_id: str) -> Chart:
    if _acting(ehr, visit.request).role != SIGNING_ROLE:
        raise Refusal(403, "Only a radiologist signs reports. Choose one under “Acting as” first.")
    found = _chart(client, order_id)
    if not found.shown:
        raise Refusal(409, "There are no images to report on yet.")
    return found


def _sign(client: httpx.Client, found: Chart, visit: Visit, user: EhrUser) -> None:
    """Sign exactly the version that was in view: If-Match lets nothing slip in between."""
    conclusion = visit.form.get("conclusion", "").replace("\r\n", "\n").strip()
    if not conclusion:
        raise Refusal(422, "A report needs a conclusion.")
    if visit.form.get("version", "") != found.version:
        raise Refusal(
            409,
            "The report has changed since you opened this page. It was not signed.",
            "Look at what it says now, then sign.",
        )
    if found.is_signed:
        raise Refusal(409, "This report is signed already.")
    report = chart.signed(found, conclusion, _reference(user))
    headers = {"Content-Type": FHIR_JSON}
    if found.report is None:
        _call(client, "POST", "/fhir/DiagnosticReport", json=report, headers=headers)
        return
    headers["If-Match"] = f'W/"{found.version}"'
    _call(client, "PUT", f"/fhir/DiagnosticReport/{report['id']}", json=report, headers=headers)


def _sign_page(ehr: Ehr, visit: Visit, found: Chart, refusal: Refusal | None = None) -> Response:
    values: Json = _in_words(ehr, found) | {"errors": refusal.sentences if refusal else ()}
    kept = visit.form.get("conclusion") or (found.report or {}).get("conclusion", "")
    return _page(ehr, visit, "sign.html", refusal.status if refusal else 200, **values, conclusion=kept)
