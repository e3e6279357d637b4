"""The viewer's own pages: the step into a session, and what went wrong in words, without patient data."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
)
STYLE = (
    "body{margin:0;min-height:100vh;display:grid;place-items:center;background:#0b0d12;color:#e8eaf0;"
    "font:1rem/1.5 system-ui,sans-serif}main{max-width:34rem;padding:2rem}h1{font-size:1.4rem}a{color:#8ab4f8}"
)
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
RELAUNCH = "Close this window and open the study again from where you came."


@dataclass(frozen=True, slots=True)
class Message:
    """What a person is told: a title, a sentence and what to do next."""

    title: str
    sentence: str
    advice: str = RELAUNCH


def page(request: Request, status: int, message: Message) -> HTMLResponse:
    """A readable refusal."""
    return _render(status, message, forward="", request_id=str(getattr(request.state, "request_id", "")))


def entering() -> HTMLResponse:
    """The step that makes the next request one of our own site: a Strict cookie is not sent while the chain of
    redirects began elsewhere (RFC 6265bis section 5.2)."""
    message = Message("Opening the viewer", "One moment, the study is being opened.", advice="")
    return _render(200, message, forward="viewer", request_id="")


def _render(status: int, message: Message, *, forward: str, request_id: str) -> HTMLResponse:
    html = _ENVIRONMENT.get_template("message.html").render(
        title=message.title,
        sentence=message.sentence,
        advice=message.advice,
        forward=forward,
        request_id=request_id,
        style=Markup(STYLE),  # noqa: S704 - a constant of this file
    )
    return HTMLResponse(html, status, headers=HEADERS)
