"""A real authorization server on a free port, and a browser and an app that talk to it."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from app.access import Access
from app.audit import Record
from app.errors import Unauthenticated
from app.settings import Settings
from app.smart import clients, launches, server, tokens, users
from app.smart.clients import Client
from app.smart.launches import LaunchContext
from app.store.database import Store
from app.workflow import choosing
from tests import processes

STUDY = "1.2.840.113619.2.55.3.604688"
CALLBACK = "https://app.example.org/callback?keep=1"
STANDALONE = "openid fhirUser launch/patient patient/ImagingStudy.rs patient/Patient.r"
SCOPE = "launch openid fhirUser online_access patient/ImagingStudy.rs patient/Observation.rs patient/Patient.r"
APP_SCOPE = f"{SCOPE} launch/patient launch/imagingstudy offline_access patient/*.rs user/*.cruds"
VIEWER_SCOPE = (
    "launch openid fhirUser online_access isocenter/sign patient/ImagingStudy.rs patient/Observation.rs "
    "patient/DiagnosticReport.rs patient/Patient.r patient/ServiceRequest.r patient/Endpoint.r patient/ImagingStudy.u "
    "patient/*.cruds user/*.cruds system/*.cruds"
)
KEYS: dict[str, Any] = {
    "RS384": RSAKey.generate_key(2048, {"kid": "rsa"}),
    "ES384": ECKey.generate_key("P-384", {"kid": "ec"}),
}
JWKS = {"keys": [key.as_dict(private=False) for key in KEYS.values()]}
APPS = (
    Client(
        "app",
        "Growth charts",
        "public",
        (CALLBACK,),
        scope=f"{SCOPE} launch/patient launch/imagingstudy offline_access patient/*.rs user/*.cruds",
    ),
    Client("other", "Another app", "public", (CALLBACK,), scope=SCOPE),
    Client("secret", "Hospital portal", "symmetric", (CALLBACK,), scope=f"{SCOPE} system/*.rs"),
    Client("viewer", "Viewer", "public", (CALLBACK,), scope=VIEWER_SCOPE, study_bound=True, skip_consent=True),
    Client("ehr", "Demo EHR", "asymmetric", scope="isocenter/launch isocenter/sign user/ImagingStudy.u", jwks=JWKS),
    Client("ward", "Ward board", "public", (CALLBACK,), scope=STANDALONE, access="listed", patients=("p2",)),
    Client("robot", "Robot", "asymmetric", scope="system/ImagingStudy.rs system/Patient.r", jwks=JWKS),
    Client("archive", "Archive", "asymmetric", scope="isocenter/introspect", jwks=JWKS),
)
__all__ = ["Unauthenticated", "clients", "users"]
PASSWORD = "correct horse battery"


def challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def dump(store: Store) -> str:
    """Every row of every table, as text."""
    with store.read() as connection:
        found = sa.MetaData()
        found.reflect(connection)
        return repr([tuple(row) for table in found.tables.values() for row in connection.execute(table.select())])


def query(location: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(location).query))


@dataclass
class Site:
    """One running server with its clients and users."""

    url: str
    store: Store
    settings: Settings
    records: list[Record] = field(default_factory=list)
    secret: str = ""
    said: list[str] = field(default_factory=list)
    """Every secret value that went over the wire."""

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, follow_redirects=False, timeout=30)

    def launch(self, client_id: str = "app", *, made_by: str = "ehr", **about: Any) -> str:
        context = LaunchContext(
            **{
                "client_id": client_id,
                "user_id": None,
                "fhir_user": None,
                "user_name": "",
                "patient_id": "p1",
                "imaging_study_id": "i1",
                "study_uid": STUDY,
                "order_id": "o1",
                "made_by": made_by,
                **about,
            }
        )
        value = self.store.transact(lambda connection: launches.open_launch(connection, context, kind="launch"))
        self.said.append(value)
        return value

    def asking(self, client_id: str = "app", **changes: str | None) -> dict[str, str]:
        asked = {
            "response_type": "code",
            "client_id": client_id,
            "redirect_uri": CALLBACK,
            "scope": SCOPE,
            "state": "a b+c/%20~",
            "aud": self.settings.fhir_base,
            "code_challenge": challenge("v" * 64),
            "code_challenge_method": "S256",
            **changes,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def log_in(self, browser: httpx.Client, asked: dict[str, str], user: str = "radiologist") -> httpx.Response:
        """Walk from the login page to the answer of /authorize."""
        page = browser.get("/auth/authorize", params=asked)
        assert page.status_code == 200, page.text
        answer = browser.post("/auth/login", data={**hidden(page), "username": user, "password": PASSWORD})
        assert answer.status_code == 303, answer.text
        return browser.get(answer.headers["location"])

    def code(self, client_id: str = "app", user: str = "radiologist", **changes: str | None) -> str:
        """A code, by launch, login and consent."""
        with self.browser() as browser:
            asked = self.asking(client_id, **{"launch": self.launch(client_id), **changes})
            answer = self.log_in(browser, asked, user)
            if answer.status_code == 200:
                answer = browser.post("/auth/consent", data=consent(answer, "allow"))
        assert answer.status_code == 303, answer.text
        given = query(answer.headers["location"])
        assert "code" in given, given
        self.said.append(given["code"])
        return given["code"]

    def token(self, auth: tuple[str, str] | None = None, **fields: str | None) -> httpx.Response:
        sent = {name: value for name, value in fields.items() if value is not None}
        answer = httpx.post(f"{self.url}/auth/token", data=sent, auth=auth)
        assert answer.headers["cache-control"] == "no-store"
        if answer.status_code == 200:
            body = answer.json()
            self.said.extend(body[name] for name in ("access_token", "refresh_token", "id_token") if name in body)
        return answer

    def redeem(self, code: str, client_id: str | None = "app", **changes: Any) -> httpx.Response:
        fields = {"code": code, "redirect_uri": CALLBACK, "code_verifier": "v" * 64, "client_id": client_id, **changes}
        return self.token(grant_type="authorization_code", **fields)

    def tokens(self, client_id: str = "app", user: str = "radiologist", **changes: str | None) -> dict[str, Any]:
        answer = self.redeem(self.code(client_id, user, **changes), client_id)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refresh(self, token: str, client_id: str = "app", **fields: str) -> httpx.Response:
        return self.token(grant_type="refresh_token", refresh_token=token, client_id=client_id, **fields)

    def access(self, token: str) -> Access:
        return tokens.authenticate(self.store)(token)

    def assertion(self, client_id: str = "robot", alg: str = "RS384", *, header: Any = None, **claims: Any) -> str:
        body = {
            "iss": client_id,
            "sub": client_id,
            "aud": f"{self.url}/auth/token",
            "exp": int(time.time()) + 240,
            "jti": secrets.token_hex(16),
            **claims,
        }
        head = {"alg": alg, "kid": KEYS[alg].kid, **(header or {})}
        kept = {name: value for name, value in body.items() if value is not None}
        value = jwt.encode({k: v for k, v in head.items() if v is not None}, kept, KEYS[alg], algorithms=[alg])
        self.said.append(value)
        return value

    def backend(self, assertion: str, scope: str = "system/ImagingStudy.rs", **changes: str) -> httpx.Response:
        return self.token(
            **{
                "grant_type": "client_credentials",
                "scope": scope,
                "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                "client_assertion": assertion,
                **changes,
            }
        )


def hidden(page: httpx.Response) -> dict[str, str]:
    """The hidden fields of a page's form."""
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text)
    return {name: html.unescape(value) for name, value in found}


def consent(page: httpx.Response, decision: str, drop: str = "") -> dict[str, Any]:
    """The consent form as a person sends it, one scope unticked."""
    ticked = [html.unescape(scope) for scope in re.findall(r'name="scope" value="([^"]*)"', page.text)]
    assert not drop or drop in ticked
    return {**hidden(page), "decision": decision, "scope": [scope for scope in ticked if scope != drop]}


@contextmanager
def serving(app: FastAPI, port: int) -> Iterator[None]:
    running = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="debug", access_log=False, lifespan="off")
    )
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    try:
        processes.wait_until(lambda: running.started, "uvicorn to listen")
        yield
    finally:
        running.should_exit = True
        thread.join(10)


@pytest.fixture
def site(store: Store, tmp_path: Path) -> Iterator[Site]:
    with site_of(store, tmp_path) as running:
        yield running


@contextmanager
def site_of(store: Store, folder: Path) -> Iterator[Site]:
    port = processes.free_port()
    url = f"http://127.0.0.1:{port}"
    settings = Settings(public_url=url, data_dir=folder, secret_key="k" * 40, egress_allow="127.0.0.1/32")  # pyright: ignore
    made = Site(url, store, settings)

    def prepare(connection: Any) -> str | None:
        for client in APPS:
            if client.kind != "symmetric":
                clients.ensure_client(connection, client)
        for role in users.ROLES:
            person = users.User(role, role.title(), role, f"Practitioner/{role}")
            users.add(connection, person, PASSWORD)
        return clients.register(connection, next(client for client in APPS if client.kind == "symmetric"))

    made.secret = store.transact(prepare) or ""
    made.said.append(made.secret)
    reader = server.PatientReader(
        patient=lambda _connection, patient_id: f"patient {patient_id}",
        study=lambda _connection, study_id: f"the CT of 3 May ({study_id})",
        records=choosing.RECORDS,
    )
    app = FastAPI()
    app.include_router(
        server.routes(store=store, settings=settings, audit=made.records.append, patients=reader), prefix="/auth"
    )
    app.include_router(server.discovery(settings))
    with serving(app, port):
        yield made
