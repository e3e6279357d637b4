"""Every error as an OperationOutcome, the framework's own included (https://hl7.org/fhir/R4/operationoutcome.html)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException

from app.errors import IsocenterError, Issue, MethodNotAllowed, Unauthenticated, Unavailable

MEDIA_TYPE = "application/fhir+json"

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_FRAMEWORK: Mapping[int, Issue] = {
    400: Issue("invalid", "The request cannot be understood."),
    404: Issue("not-found", "There is no such address here."),
    405: Issue("not-supported", "That method is not offered at this address."),
    406: Issue("not-supported", "None of the accepted media types can be produced."),
    413: Issue("too-long", "The request is larger than the limit."),
    415: Issue("not-supported", "That content type is not accepted here."),
    422: Issue("processing", "The content breaks a rule."),
}
_UNKNOWN = Issue("exception", "The server failed; the request id finds the reason in its log.", severity="fatal")


class Disallowed(MethodNotAllowed):
    """That method is not offered at this address."""

    def __init__(self, allow: Iterable[str]) -> None:
        """`allow` are the methods that are offered."""
        super().__init__()
        self.allow = ", ".join(sorted(allow))


def outcome(issues: Iterable[Issue], request_id: str = "") -> dict[str, Any]:
    """The resource; it bears the request id as its own when that is a legal id."""
    identity = {"id": request_id} if _ID.fullmatch(request_id) else {}
    return {"resourceType": "OperationOutcome", **identity, "issue": [_row(issue) for issue in issues]}


def render(error: Exception, request_id: str = "") -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers that tell of an error; nothing of an unexpected one but that it happened."""
    status, issues = _told(error)
    headers = {"Content-Type": MEDIA_TYPE, **_headers(error)}
    return status, msgspec.json.encode(outcome(issues, request_id)), headers


def _told(error: Exception) -> tuple[int, Iterable[Issue]]:
    match error:
        case IsocenterError() if error.status != 500:
            return error.status, error.issues
        case HTTPException():
            known = _FRAMEWORK.get(error.status_code, _UNKNOWN if error.status_code >= 500 else _FRAMEWORK[400])
            return error.status_code, (known,)
        case _:
            return 500, (_UNKNOWN,)


def _headers(error: Exception) -> dict[str, str]:
    match error:
        case Disallowed():
            return {"Allow": error.allow}
        case Unauthenticated():
            return {"WWW-Authenticate": "Bearer"}
        case Unavailable():
            return {"Retry-After": str(error.retry_after)}
        case HTTPException():
            return dict(error.headers or {})
        case _:
            return {}


def _row(issue: Issue) -> dict[str, Any]:
    row: dict[str, Any] = {"severity": issue.severity, "code": issue.code, "diagnostics": issue.diagnostics}
    return row | ({"expression": [issue.expression]} if issue.expression else {})
