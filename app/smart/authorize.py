"""The authorization request: checked, narrowed and answered with a code (SMART App Launch 2.2, RFC 7636, RFC 9207)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from sqlalchemy.engine import Connection

from app.errors import NotFound
from app.settings import Settings
from app.smart import clients, launches, opaque, scopes, style, tokens, users
from app.smart.clients import Client
from app.smart.facts import limits
from app.smart.launches import LaunchContext
from app.smart.requests import Form
from app.smart.token_endpoint import access_seconds
from app.smart.users import Session, User
from app.store import grants
from app.store.database import now

CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
STATE = re.compile(r"[\x20-\x7e]{1,2048}")
REQUIRED = ("response_type", "client_id", "redirect_uri", "scope", "state", "code_challenge", "code_challenge_method")
LONGEST_NONCE = 512
STUDY_DETAILS = "urn:isocenter:dicomweb-study"


class Untrusted(Exception):
    """The request names no app or no address of that app: a page for the person, never a redirect."""


class Refused(Exception):
    """The app is told by redirect why it gets no code (RFC 6749 section 4.1.2.1)."""

    def __init__(self, error: str, description: str) -> None:
        """`error` is a code of RFC 6749 or OpenID Connect."""
        self.error = error
        super().__init__(description)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the answer goes."""

    client: Client
    redirect_uri: str
    state: str | None

    def answer(self, settings: Settings, **fields: str) -> str:
        """The redirect with the answer, the state as it came and who answers (RFC 9207)."""
        given = {**fields, **({} if self.state is None else {"state": self.state}), "iss": settings.public_url}
        return f"{self.redirect_uri}{'&' if '?' in self.redirect_uri else '?'}{urlencode(given)}"


@dataclass(frozen=True, slots=True)
class Asking:
    """A well-formed authorization request."""

    address: Address
    scope: str
    challenge: str
    nonce: str
    launch: str | None = None
    chosen: str | None = None
    """What a person chose on the way here, where no launch says it."""
    prompt: frozenset[str] = frozenset()

    @property
    def client(self) -> Client:
        """The app that asks."""
        return self.address.client


@dataclass(frozen=True, slots=True)
class Person:
    """For whom: a logged-in local user, or one the launching client vouches for."""

    user: User
    session_hash: str | None
    auth_time: int


@dataclass(frozen=True, slots=True)
class Offer:
    """What the app would get: the scopes, the patient and, for a launch with one, the study."""

    scope: str
    patient_id: str | None
    studies: list[str] | None
    context: Mapping[str, Any]
    launch: LaunchContext | None


def address_of(connection: Connection, form: Form) -> Address:
    """The app and its address; raises Untrusted when either cannot be believed."""
    if form.error:
        raise Untrusted(form.error)
    ids, uris, states = form.values("client_id"), form.values("redirect_uri"), form.values("state")
    client = clients.find(connection, ids[0]) if len(ids) == 1 and ids[0] else None
    if client is None:
        raise Untrusted("this app is not registered here")
    if len(uris) != 1 or not client.check_redirect_uri(uris[0]):
        raise Untrusted("this address is not registered for the app")
    state = states[0] if len(states) == 1 and STATE.fullmatch(states[0]) else None
    return Address(client, uris[0], state)


def asking_of(settings: Settings, form: Form, address: Address) -> Asking:
    """The rest of the request; raises Refused."""
    fields = form.fields
    if form.repeated is not None:
        raise Refused("invalid_request", "a parameter is repeated")
    if "request" in fields or "request_uri" in fields:
        raise Refused("request_not_supported", "request objects are not supported")
    if fields.get("response_type", "code") != "code":
        raise Refused("unsupported_response_type", "only the authorization code flow is offered")
    missing = next((name for name in REQUIRED if not fields.get(name)), None)
    if missing is not None:
        raise Refused("invalid_request", f"{missing} is missing")
    fault = _fault(settings, fields, address)
    if fault:
        raise Refused("invalid_request", fault)
    launch = fields.get("launch") or None
    if (launch is not None) != ("launch" in fields["scope"].split()):
        raise Refused("invalid_request", "the launch parameter and the launch scope go together")
    chosen = fields.get("chosen") or None
    if launch is not None and chosen is not None:
        raise Refused("invalid_request", "a launch says already what is opened")
    prompt = frozenset(fields.get("prompt", "").split())
    return Asking(address, fields["scope"], fields["code_challenge"], fields.get("nonce", ""), launch, chosen, prompt)


def _fault(settings: Settings, fields: Mapping[str, str], address: Address) -> str:
    audiences = {fields[name].removesuffix("/") for name in ("aud", "resource") if name in fields}
    pkce = fields["code_challenge_method"] == "S256" and CHALLENGE.fullmatch(fields["code_challenge"])
    rules = (
        (address.state is not None, "state must be printable ASCII of at most 2048 characters"),
        (audiences == {settings.fhir_base}, "aud must be the FHIR base of this server"),
        (pkce, "PKCE with S256 is required"),
        (fields.get("response_mode", "query") == "query", "only response_mode query is offered"),
        (len(fields.get("nonce", "")) <= LONGEST_NONCE, "the nonce is too long"),
        (len(fields["scope"].split()) <= limits().scopes, "too many scopes"),
    )
    return next((sentence for kept, sentence in rules if not kept), "")


def launch_of(connection: Connection, asking: Asking) -> LaunchContext | None:
    """The context of the launch or choice, still untaken; raises Refused for one that is not this app's to take."""
    value, kind = _opened(asking)
    if not value:
        return None
    try:
        context = launches.peek_launch(connection, value, kind=kind)
    except NotFound:
        context = None
    # Another app's launch is as unknown as a random one.
    if context is None or context.client_id != asking.client.id:
        raise Refused("invalid_request", "this launch is unknown, expired or already used")
    return context


def _opened(asking: Asking) -> tuple[str, launches.Kind]:
    return (asking.launch, "launch") if asking.launch else (asking.chosen or "", "chosen")


def person_of(connection: Connection, session: Session | None, context: LaunchContext | None) -> Person | None:
    """Who it is for; None when a login must come first. Raises Refused for a launch made for somebody else."""
    launched_for = context.user_id if context else None
    if session is not None:
        if launched_for is not None and launched_for != session.user.id:
            raise Refused("access_denied", "the launch was made for another user than the one logged in here")
        return Person(session.user, session.hash, session.created)
    if context is None or context.user_id is None:
        return None
    maker = clients.find(connection, context.made_by)
    if maker is None or not maker.trusted_to_launch:
        return None
    account = grants.find_user(connection, context.user_id)
    if account is not None and account["disabled"]:
        raise Refused("access_denied", "this user is disabled")
    role = account["role"] if account is not None else ""
    user = User(context.user_id, context.user_name, role, context.fhir_user)
    return Person(user, None, now())


def offer_of(settings: Settings, asking: Asking, context: LaunchContext | None, cap: str) -> Offer:
    """What of the wish can be granted; raises Refused when nothing is left."""
    client = asking.client
    _check_listed(client, context)
    asked = scopes.within(scopes.parse(asking.scope), client.scope)
    asked = scopes.for_person(asked, cap=cap, patient=context is not None)
    study_uid = context.study_uid if context else None
    if client.study_bound:
        if context is None or study_uid is None or context.imaging_study_id is None:
            raise Refused("access_denied", "this app is launched for one study only")
        about = {name: getattr(context, name) for name in ("study_uid", "imaging_study_id", "order_id")}
        asked = scopes.for_study(asked, about)
    if not asked.scopes and "openid" not in asked.words:
        raise Refused("invalid_scope", "nothing of what was asked can be granted")
    bound = [study_uid] if client.study_bound and study_uid else _listed_studies(client)
    patient_id = context.patient_id if context else None
    return Offer(asked.text, patient_id, bound, _context(settings, context, bound), context)


def _listed_studies(client: Client) -> list[str] | None:
    return list(client.studies) if client.access == "listed" and client.studies else None


def _check_listed(client: Client, context: LaunchContext | None) -> None:
    if client.access != "listed":
        return
    patient = context is not None and context.patient_id in client.patients
    study = context is not None and context.study_uid in client.studies
    if not (patient or study):
        raise Refused("access_denied", "this app may not see this patient")


def _context(settings: Settings, context: LaunchContext | None, bound: list[str] | None) -> dict[str, Any]:
    details: list[dict[str, Any]] = [
        {"type": "smart_on_fhir", "locations": [settings.fhir_base], "fhirVersions": ["4.0.1"]}
    ]
    if bound is not None:
        place = {"type": STUDY_DETAILS, "locations": [settings.dicomweb_base]}
        details.append({**place, "identifier": [f"urn:oid:{uid}" for uid in bound]})
    given: dict[str, Any] = {"authorization_details": details}
    if context is not None:
        given |= {"patient": context.patient_id, "need_patient_banner": True, "smart_style_url": style.url(settings)}
        if context.imaging_study_id is not None:
            given["fhirContext"] = [{"reference": f"ImagingStudy/{context.imaging_study_id}"}]
    return given


def narrowed(offer_scope: str, kept: list[str]) -> str:
    """The scopes a person left ticked."""
    return " ".join(word for word in offer_scope.split() if word in kept)


def cap_of(connection: Connection, person: Person, context: LaunchContext | None) -> str:
    """The most this person may do."""
    return users.cap(connection, person.user, context.made_by if context else None)


def give_code(connection: Connection, asking: Asking, person: Person, offer: Offer) -> str:
    """Take the launch and keep a code, both or neither; raises Refused when the launch went meanwhile."""
    value, kind = _opened(asking)
    if value:
        try:
            launches.take_launch(connection, value, kind=kind)
        except NotFound as error:
            raise Refused("invalid_request", "this launch is unknown, expired or already used") from error
    code, at = opaque.make(), now()
    user, seconds = person.user, access_seconds(asking.client)
    lifetime = tokens.grant_seconds(offer.scope, seconds)
    # Offline access outlives the login, everything else ends with it.
    session_hash = None if "offline_access" in offer.scope.split() else person.session_hash
    if session_hash is not None:
        lifetime = min(lifetime, limits().login_seconds - (at - person.auth_time) // 1000)
    fhir_user = user.fhir_user or (offer.launch.fhir_user if offer.launch else None)
    promised = {
        "scope": offer.scope,
        "patient_id": offer.patient_id,
        "studies": offer.studies,
        "context": dict(offer.context),
        "user_name": user.name,
        "fhir_user": fhir_user,
        "session_hash": session_hash,
        "seconds": seconds,
        "lifetime": lifetime,
    }
    row = {
        "hash": opaque.digest(code),
        "client_id": asking.client.id,
        "redirect_uri": asking.address.redirect_uri,
        "challenge": asking.challenge,
        "nonce": asking.nonce,
        "user_id": user.id,
        "auth_time": person.auth_time,
        "grant": promised,
        "created": at,
        "expires": at + limits().code_seconds * 1000,
    }
    grants.add_code(connection, row)
    return code
