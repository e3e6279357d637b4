"""The authorization server's addresses below /auth and its discovery documents (SMART App Launch 2.2, RFC 8414)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import urlencode

from authlib.oauth2 import OAuth2Error
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from sqlalchemy.engine import Connection

from app.audit import Record
from app.errors import NotFound
from app.settings import Settings
from app.smart import authorize, choosing, clients, keys, managing, pages, style, users
from app.smart.authorize import Asking, Offer, Person, Refused, Untrusted
from app.smart.desk import (
    Audit,
    Desk,
    PatientReader,
    form_token,
    is_own_form,
    note,
    redirect,
    set_cookie,
    try_login,
    with_form_cookie,
)
from app.smart.facts import facts
from app.smart.launches import LaunchContext
from app.smart.requests import Form, TokenRequest, decode, form_of
from app.smart.token_endpoint import NO_STORE, Server
from app.store.database import Store

Posted = Annotated[Form, Depends(form_of)]


@dataclass(frozen=True, slots=True)
class _Visit:
    """One authorization request, with who makes it and what can be granted; `person` is None before the login."""

    asking: Asking
    person: Person | None
    offer: Offer | None
    csrf: str
    context: LaunchContext | None = None
    choice: choosing.What = ""
    """What the person has to choose first."""


def routes(*, store: Store, settings: Settings, audit: Audit, patients: PatientReader) -> APIRouter:
    """Everything below /auth."""
    router = APIRouter()
    desk = Desk(store, settings, audit, patients, users.Throttle())
    _person_routes(router, desk)
    managing.add_routes(router, desk)
    _token_routes(router, Server(store, settings, audit))

    @router.get("/jwks")
    def jwks() -> JSONResponse:
        keys.ensure_key(store, settings)
        return JSONResponse(keys.jwks(store), headers={"Cache-Control": "public, max-age=300", **_any_origin()})

    @router.get("/style/{name}")
    def styled(name: str) -> Response:
        if name != style.name():
            raise NotFound("there is no such style")
        headers = {"Cache-Control": "public, max-age=31536000, immutable", **_any_origin()}
        return Response(style.content(), headers=headers, media_type="application/json")

    @router.get("/static/smart.css")
    def stylesheet() -> FileResponse:
        return FileResponse(pages.STATIC / "smart.css", media_type="text/css")

    return router


def _person_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/authorize")
    def authorize_get(request: Request) -> Response:
        return _authorize(desk, request, decode(request.url.query))

    @router.post("/authorize")
    def authorize_post(request: Request, form: Posted) -> Response:
        return _authorize(desk, request, form)

    @router.post("/login")
    def login(request: Request, form: Posted) -> Response:
        return _login(desk, request, form)

    @router.post("/consent")
    def consent(request: Request, form: Posted) -> Response:
        return _consent(desk, request, form)

    @router.post("/choose")
    def choose(request: Request, form: Posted) -> Response:
        return _choose(desk, request, form)


def _authorize(desk: Desk, request: Request, form: Form) -> Response:
    """Answer with a login page, a consent page, a code or a refusal."""

    def answer(visit: _Visit) -> Response:
        prompt = visit.asking.prompt
        if visit.choice:
            if "none" in prompt:
                raise Refused("interaction_required", f"a {visit.choice} has to be chosen")
            return _choice_page(desk, visit, form)
        if visit.person is None or visit.offer is None:
            if "none" in prompt:
                raise Refused("login_required", "nobody is logged in")
            return _login_page(desk, visit, form)
        if not visit.asking.client.skip_consent:
            if "none" in prompt:
                raise Refused("consent_required", "nobody has consented")
            return _consent_page(desk, visit, form)
        return _code(desk, visit.asking, visit.person, visit.offer)

    return with_form_cookie(desk, request, _visited(desk, request, form, answer))


def _visited(desk: Desk, request: Request, form: Form, answer: Callable[[_Visit], Response]) -> Response:
    address = None
    try:
        with desk.store.read() as connection:
            address = authorize.address_of(connection, form)
            asking = authorize.asking_of(desk.settings, form, address)
            visit = _visit(desk, connection, request, asking)
        return answer(visit)
    except Untrusted as error:
        return pages.page("refused.html", 400, base=desk.settings.public_url, reason=str(error))
    except Refused as error:
        if address is None:
            raise
        note(desk, "authorize", "denied", client_id=address.client.id, detail={"error": error.error})
        location = address.answer(desk.settings, error=error.error, error_description=str(error))
        return redirect(location)


def _visit(desk: Desk, connection: Connection, request: Request, asking: Asking) -> _Visit:
    session = users.find_session(connection, request.cookies.get(users.cookie_name(desk.settings)))
    context = authorize.launch_of(connection, asking)
    person = authorize.person_of(connection, session, context)
    csrf = session.csrf if session else form_token(desk, request)
    if person is None:
        return _Visit(asking, None, None, csrf, context)
    choice = choosing.needed(asking, context)
    if choice:
        return _Visit(asking, person, None, csrf, context, choice)
    cap = authorize.cap_of(connection, person, context)
    return _Visit(asking, person, authorize.offer_of(desk.settings, asking, context, cap), csrf, context)


def _code(desk: Desk, asking: Asking, person: Person, offer: Offer) -> Response:
    code = desk.store.transact(lambda connection: authorize.give_code(connection, asking, person, offer))
    study = offer.studies[0] if offer.studies and len(offer.studies) == 1 else None
    note(
        desk,
        "authorize",
        "allowed",
        client_id=asking.client.id,
        fhir_user=person.user.fhir_user,
        patient_id=offer.patient_id,
        study_uid=study,
    )
    return redirect(asking.address.answer(desk.settings, code=code))


def _login_page(desk: Desk, visit: _Visit, form: Form, *, fault: str = "", status: int = 200) -> Response:
    return pages.page(
        "login.html",
        status,
        base=desk.settings.public_url,
        client=visit.asking.client,
        csrf=visit.csrf,
        request=urlencode(form.pairs),
        fault=fault,
    )


def _consent_page(desk: Desk, visit: _Visit, form: Form, *, status: int = 200) -> Response:
    person, offer = visit.person, visit.offer
    if person is None or offer is None:
        return _login_page(desk, visit, form)
    launch = offer.launch
    with desk.store.read() as connection:
        patient = desk.patients.patient(connection, launch.patient_id) if launch else ""
        known = launch is not None and launch.imaging_study_id is not None
        study = desk.patients.study(connection, launch.imaging_study_id or "") if launch and known else ""
    told = [{"value": scope, "words": pages.in_words(scope, study)} for scope in offer.scope.split()]
    return pages.page(
        "consent.html",
        status,
        base=desk.settings.public_url,
        client=visit.asking.client,
        user=person.user,
        csrf=visit.csrf,
        request=urlencode(form.pairs),
        patient=patient,
        study=study,
        scopes=told,
    )


def _choice_page(desk: Desk, visit: _Visit, form: Form, *, wanted: str = "", status: int = 200) -> Response:
    """Whose record, or which study: what was found, each a button."""
    found, patient = list[choosing.Choice](), ""
    with desk.store.read() as connection:
        if visit.choice == "patient" and wanted:
            found = desk.patients.records.patients(connection, wanted, choosing.allowed(visit.asking))
        elif visit.context is not None:
            found = desk.patients.records.studies(connection, visit.context.patient_id)
            patient = desk.patients.patient(connection, visit.context.patient_id)
    return pages.page(
        "choose.html",
        status,
        base=desk.settings.public_url,
        client=visit.asking.client,
        csrf=visit.csrf,
        request=urlencode(form.pairs),
        what=visit.choice,
        wanted=wanted,
        patient=patient,
        found=found,
    )


def _choose(desk: Desk, request: Request, form: Form) -> Response:
    """Show what a text finds, or keep what was chosen and go on with the authorization request."""
    fields, asked = form.fields, decode(form.fields.get("request", ""))

    def answer(visit: _Visit) -> Response:
        person = visit.person
        if person is None:
            return _login_page(desk, visit, asked)
        if not is_own_form(fields, visit.csrf):
            return _choice_page(desk, visit, asked, status=403)
        if fields.get("decision") == "deny":
            raise Refused("access_denied", "the user chose nothing")
        chosen = fields.get(visit.choice, "") if visit.choice else ""
        if visit.choice and not chosen:
            note(desk, "find-patient", "allowed", client_id=visit.asking.client.id, fhir_user=person.user.fhir_user)
            return _choice_page(desk, visit, asked, wanted=fields.get("wanted", "").strip())
        kept = [pair for pair in asked.pairs if pair[0] != "chosen"]
        if chosen:
            kept.append(("chosen", _chosen(desk, visit, person, chosen)))
        return redirect(f"{desk.settings.public_url}/auth/authorize?{urlencode(kept)}")

    return _visited(desk, request, asked, answer)


def _chosen(desk: Desk, visit: _Visit, person: Person, chosen: str) -> str:
    records, asking, context = desk.patients.records, visit.asking, visit.context

    def work(connection: Connection) -> str:
        if context is None:
            return choosing.choose_patient(connection, records, asking, person, chosen)
        return choosing.choose_study(connection, records, asking, person, (context, chosen))

    return desk.store.transact(work)


def _login(desk: Desk, request: Request, form: Form) -> Response:
    """Check name and password; a success continues the authorization request with a GET (RFC 9700 section 4.12)."""
    fields, asked = form.fields, decode(form.fields.get("request", ""))

    def answer(visit: _Visit) -> Response:
        if visit.person is not None:
            return redirect(f"{desk.settings.public_url}/auth/authorize?{urlencode(asked.pairs)}")
        tried = try_login(desk, request, fields, csrf=visit.csrf, client_id=visit.asking.client.id)
        if not tried.cookie:
            return _login_page(desk, visit, asked, fault=tried.fault, status=tried.status)
        response = redirect(f"{desk.settings.public_url}/auth/authorize?{urlencode(asked.pairs)}")
        set_cookie(desk, response, users.cookie_name(desk.settings), tried.cookie)
        return response

    return with_form_cookie(desk, request, _visited(desk, request, asked, answer))


def _consent(desk: Desk, request: Request, form: Form) -> Response:
    """Give a code for what was left ticked, or tell the app that it was denied."""
    fields, asked = form.fields, decode(form.fields.get("request", ""))

    def answer(visit: _Visit) -> Response:
        person, offer = visit.person, visit.offer
        if person is None or offer is None:
            return _login_page(desk, visit, asked)
        if not is_own_form(fields, visit.csrf):
            return _consent_page(desk, visit, asked, status=403)
        if fields.get("decision") != "allow":
            raise Refused("access_denied", "the user denied the request")
        scope = authorize.narrowed(offer.scope, form.values("scope"))
        if not scope:
            raise Refused("access_denied", "the user allowed nothing")
        return _code(desk, visit.asking, person, replace(offer, scope=scope))

    return _visited(desk, request, asked, answer)


def _token_routes(router: APIRouter, server: Server) -> None:
    @router.post("/token")
    def token(request: Request, form: Posted) -> Response:
        response = _oauth(server, request, form, server.create_token_response)
        return _for_registered_origin(server, request, response)

    @router.post("/introspect")
    def introspect(request: Request, form: Posted) -> Response:
        return _oauth(server, request, form, lambda asked: server.create_endpoint_response("introspection", asked))

    @router.post("/revoke")
    def revoke(request: Request, form: Posted) -> Response:
        return _oauth(server, request, form, lambda asked: server.create_endpoint_response("revocation", asked))


def _oauth(server: Server, request: Request, form: Form, answer: Callable[[TokenRequest], Any]) -> Response:
    try:
        asked = TokenRequest(request, form)
        if "grant_type" not in asked.form and request.url.path.endswith("/token"):
            return JSONResponse({"error": "invalid_request"}, 400, headers=NO_STORE)
        response: Response = answer(asked)
    except OAuth2Error as error:
        return server.handle_response(*error())
    outcome = "allowed" if response.status_code < 400 else "denied"
    client = asked.client.id if asked.client is not None else ""
    server.audit(Record("smart", request.url.path.rpartition("/")[2], outcome, client))
    return response


def _for_registered_origin(server: Server, request: Request, response: Response) -> Response:
    origin = request.headers.get("origin")
    if origin:
        with server.store.read() as connection:
            known = clients.origins(connection)
        if origin in known:
            response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"
    return response


def _any_origin() -> dict[str, str]:
    return {"Access-Control-Allow-Origin": "*"}


def discovery(settings: Settings) -> APIRouter:
    """The three discovery documents, open to everybody; they agree field by field."""
    router = APIRouter()

    @router.get("/fhir/.well-known/smart-configuration")
    @router.get("/.well-known/openid-configuration")
    @router.get("/.well-known/oauth-authorization-server")
    def configuration() -> JSONResponse:
        return JSONResponse(smart_configuration(settings), headers={"Cache-Control": "max-age=300", **_any_origin()})

    return router


def smart_configuration(settings: Settings) -> dict[str, Any]:
    """What this server offers; every address comes from the configured public URL, never from the request."""
    book, auth = facts(), f"{settings.public_url}/auth"
    return {
        "issuer": settings.public_url,
        "jwks_uri": f"{auth}/jwks",
        "authorization_endpoint": f"{auth}/authorize",
        "token_endpoint": f"{auth}/token",
        "introspection_endpoint": f"{auth}/introspect",
        "revocation_endpoint": f"{auth}/revoke",
        "management_endpoint": f"{auth}/manage",
        "grant_types_supported": list(book.grant_types),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "scopes_supported": [*book.words, *book.system_words, "patient/*.rs", "user/*.cruds", "system/*.cruds"],
        "token_endpoint_auth_methods_supported": list(book.token_endpoint_auth_methods),
        "token_endpoint_auth_signing_alg_values_supported": list(book.assertion_algorithms),
        "introspection_endpoint_auth_methods_supported": list(book.introspection_auth_methods),
        "revocation_endpoint_auth_methods_supported": list(book.token_endpoint_auth_methods),
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
        "request_parameter_supported": False,
        "request_uri_parameter_supported": False,
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [keys.ALGORITHM],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "fhirUser", "name"],
        "capabilities": list(book.capabilities),
    }
