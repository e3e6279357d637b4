"""The pages a person sees at the authorization server: login, consent and refusal (RFC 9700 section 4.16)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.access import parse_scope
from app.smart.facts import facts

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
# No form-action: Chromium applies it to the redirect after the form as well, and that goes to the app.
POLICY = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
VERBS = {"c": "create", "r": "read", "u": "change", "d": "delete", "s": "search"}
NAMES = {
    "*": "everything",
    "ImagingStudy": "imaging studies and their images",
    "Observation": "measurements and observations",
    "DiagnosticReport": "reports",
    "ServiceRequest": "orders",
    "Patient": "the patient's details",
    "Endpoint": "addresses of image archives",
    "Practitioner": "names of clinicians",
    "Device": "devices",
}
PLACES = {"patient": "of this patient", "user": "you have access to", "system": "of all patients"}


def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page that cannot be framed, kept or told to others."""
    return HTMLResponse(_ENVIRONMENT.get_template(name).render(**values), status, headers=HEADERS)


def in_words(scope: str, study: str | None) -> str:
    """A scope as a person reads it; a granular one says what it is cut to."""
    parsed = parse_scope(scope)
    if parsed is None:
        return facts().words.get(scope, scope)
    verbs = " and ".join(word for verb, word in VERBS.items() if verb in parsed.verbs)
    what = NAMES.get(parsed.resource_type, parsed.resource_type)
    if not parsed.criteria:
        return f"{verbs} {what} {PLACES[parsed.context]}"
    names = {name for name, _ in parsed.criteria}
    if study and names & {"identifier", "derived-from", "based-on", "_id"}:
        return f"{verbs} {what}, only of {study}"
    limits = ", ".join(f"{name} {value}" for name, value in parsed.criteria)
    return f"{verbs} {what} {PLACES[parsed.context]}, only where {limits}"
