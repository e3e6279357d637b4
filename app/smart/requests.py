"""A form that was read and checked before any handler runs (RFC 6749 section 3.2, appendix B)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from authlib.oauth2.rfc6749 import InvalidClientError, InvalidRequestError
from fastapi import Request

from app.smart.facts import limits

FORM = "application/x-www-form-urlencoded"
MOST_FIELDS = 200


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a form body or a query, in order; `error` says why it could not be read."""

    pairs: tuple[tuple[str, str], ...] = ()
    error: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """The first value of each field."""
        return dict(reversed(self.pairs))

    def values(self, name: str) -> list[str]:
        """Every value of a field."""
        return [value for key, value in self.pairs if key == name]

    @property
    def repeated(self) -> str | None:
        """A field that is there more than once."""
        names = [name for name, _ in self.pairs]
        return next((name for name in names if names.count(name) > 1), None)


def decode(text: str) -> Form:
    """A query string or form body."""
    if len(text) > limits().request_bytes:
        return Form(error="the request is too large")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        return Form(error="the request cannot be decoded")
    if any("\0" in name + value for name, value in pairs):
        # PostgreSQL keeps no NUL, and no field of ours has one.
        return Form(error="the request cannot be decoded")
    return Form(tuple(pairs))


async def form_of(request: Request) -> Form:
    """A dependency: the body of a POST as a form."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        return Form(error=f"the body must be {FORM}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits().request_bytes:
            return Form(error="the request is too large")
    try:
        return decode(body.decode("ascii"))
    except UnicodeDecodeError:
        return Form(error="the request cannot be decoded")


def check_basic(header: str) -> None:
    """Refuse Basic credentials that are not base64 of UTF-8: authlib's own reader would end in a server error."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return
    try:
        base64.b64decode(value, validate=True).decode()
    except ValueError as error:
        raise InvalidClientError("the Basic credentials cannot be decoded", status_code=401) from error


@dataclass(slots=True)
class Payload:
    """What authlib reads parameters from."""

    data: Mapping[str, str]

    @property
    def datalist(self) -> dict[str, list[str]]:
        """Each field once: repeated ones never come this far."""
        return {name: [value] for name, value in self.data.items()}

    @property
    def grant_type(self) -> str | None:
        """RFC 6749 section 4."""
        return self.data.get("grant_type")

    @property
    def client_id(self) -> str | None:
        """RFC 6749 section 2.2."""
        return self.data.get("client_id")

    @property
    def redirect_uri(self) -> str | None:
        """RFC 6749 section 4.1.3."""
        return self.data.get("redirect_uri")

    @property
    def scope(self) -> str | None:
        """RFC 6749 section 3.3."""
        return self.data.get("scope")


class TokenRequest:
    """One request to the token, introspection or revocation endpoint, as authlib's grants read it.

    authlib's own OAuth2Request refuses http by the address it is given; here the scheme follows the public URL,
    which the settings allow to be http on loopback only.
    """

    method = "POST"

    def __init__(self, request: Request, form: Form) -> None:
        """Raises InvalidRequestError for a form that cannot be read, repeated fields or parameters in the address."""
        fault = form.error
        if request.url.query:
            fault = "parameters belong in the body"
        elif form.repeated is not None:
            fault = "a parameter is repeated"
        if fault:
            raise InvalidRequestError(fault)
        check_basic(request.headers.get("authorization", ""))
        self.headers = {"Authorization": request.headers.get("authorization", "")}
        self.form: Mapping[str, str] = {name: value for name, value in form.pairs if value}
        self.payload = Payload(self.form)
        self.client: Any = None
        self.auth_method: str | None = None
        self.authorization_code: Any = None
        self.refresh_token: Any = None
