"""Bundles joined from stored bytes, and their tamper-proof paging (https://hl7.org/fhir/R4/bundle.html#searchset)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from app.access import Access
from app.fhir.conditions import refusal
from app.store.query import Place
from app.store.resources import Stored

PAGE = "_page"
"""The parameter of a `next` link that says where its page begins."""

Applied = Sequence[tuple[str, str]]
Bound = tuple[str, Applied, Access]
"""What a page belongs to: an address, its parameters, a caller."""


def joined(kind: str, entries: Iterable[bytes], links: Sequence[tuple[str, str]], total: int | None) -> bytes:
    """The Bundle; without entries it has no `entry` at all, and a `total` only when it is known."""
    count = b"" if total is None else b'"total":%d,' % total
    link = b'"link":' + msgspec.json.encode([{"relation": relation, "url": url} for relation, url in links])
    inner = b",".join(entries)
    parts = (b'{"resourceType":"Bundle","type":"', kind.encode(), b'",', count, link)
    return b"".join((*parts, b',"entry":[', inner, b"]}") if inner else (*parts, b"}"))


def entry(base: str, stored: Stored, mode: str, body: bytes = b"") -> bytes:
    """One resource as it is stored, or as much of it as `body` shows."""
    # No character of a type or an id needs an escape, nor does one of our address.
    url = f"{base}/{stored.resource_type}/{stored.resource_id}"
    return b'{"fullUrl":"%b","resource":%b,"search":{"mode":"%b"}}' % (
        url.encode(),
        body or stored.body,
        mode.encode(),
    )


def remark(outcome: dict[str, Any]) -> bytes:
    """An OperationOutcome about the search itself."""
    return b'{"resource":' + msgspec.json.encode(outcome) + b',"search":{"mode":"outcome"}}'


def address(base: str, path: str, applied: Applied) -> str:
    """A search as a link."""
    return "/".join(filter(None, (base, path))) + (f"?{urlencode(applied)}" if applied else "")


def seal(key: bytes, bound: Bound, place: Place) -> str:
    """Where the next page begins: good for this search and this caller only, and no one reads a name in it."""
    sealed = _cipher(key).encrypt(json.dumps(place).encode(), [_told(bound)])
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()


def unseal(key: bytes, bound: Bound, text: str) -> Place:
    """The place after which the page begins; BadRequest when it was not made for this search and caller."""
    try:
        sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return tuple(json.loads(_cipher(key).decrypt(sealed, [_told(bound)])))
    except (binascii.Error, InvalidTag, ValueError) as error:
        raise refusal(f"{PAGE} does not belong to this search", PAGE) from error


def _cipher(key: bytes) -> AESSIV:
    # Equal places get equal seals (RFC 5297), so that equal searches have equal answers.
    return AESSIV(hashlib.sha512(b"fhir page\0" + key).digest())


def _told(bound: Bound) -> bytes:
    path, applied, access = bound
    who = [access.client_id, access.grant_id, access.user_id, access.patient_id]
    return json.dumps([path, list(applied), who]).encode()
