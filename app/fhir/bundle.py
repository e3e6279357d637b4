"""Bundles joined from stored bytes, and their tamper-proof paging (https://hl7.org/fhir/R4/bundle.html#searchset)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from app.access import Access
from app.fhir.conditions import refusal
from app.store.query import Place

PAGE = "_page"
"""The parameter of a `next` link that says where its page begins."""

Applied = Sequence[tuple[str, str]]
Shown = tuple[str, str, bytes]
"""(type, id, as much of the resource as is shown)"""
Bound = tuple[str, Applied, Access]
"""What a page belongs to: an address, its parameters, a caller."""


def joined(kind: str, entries: Iterable[bytes], links: Sequence[tuple[str, str]], total: int | None) -> bytes:
    """The Bundle; without entries it has no `entry` at all, and a `total` only when it is known."""
    count = b"" if total is None else b'"total":%d,' % total
    link = b'"link":' + msgspec.json.encode([{"relation": relation, "url": url} for relation, url in links])
    inner = b",".join(entries)
    parts = (b'{"resourceType":"Bundle","type":"', kind.encode(), b'",', count, link)
    return b"".join((*parts, b',"entry":[', inner, b"]}") if inner else (*parts, b"}"))


def entries(base: str, found: Iterable[Shown], mode: str) -> list[bytes]:
    """Each resource as an entry."""
    # No character of a type or an id needs an escape, nor does one of our address.
    start, end = b'{"fullUrl":"%b/' % base.encode(), b',"search":{"mode":"%b"}}' % mode.encode()
    heads: dict[str, bytes] = {}
    parts: list[bytes] = []
    for resource_type, resource_id, body in found:
        head = heads.get(resource_type)
        if head is None:
            head = heads[resource_type] = start + resource_type.encode() + b"/"
        parts.append(b'%b%b","resource":%b%b' % (head, resource_id.encode(), body, end))
    return parts


def remark(outcome: dict[str, Any]) -> bytes:
    """An OperationOutcome about the search itself."""
    return b'{"resource":' + msgspec.json.encode(outcome) + b',"search":{"mode":"outcome"}}'


def address(base: str, path: str, applied: Applied) -> str:
    """A search as a link."""
    return _address(f"{base}/{path}" if path else base, tuple(applied))


@lru_cache(maxsize=512)
def _address(path: str, applied: tuple[tuple[str, str], ...]) -> str:
    return f"{path}?{urlencode(applied)}" if applied else path


def further(link: str, name: str, value: str) -> str:
    """The link with one parameter more."""
    return f"{link}{'&' if '?' in link else '?'}{urlencode({name: value})}"


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


@lru_cache(maxsize=4)
def _cipher(key: bytes) -> AESSIV:
    # Equal places get equal seals (RFC 5297), so that equal searches have equal answers.
    return AESSIV(hashlib.sha512(b"fhir page\0" + key).digest())


def _told(bound: Bound) -> bytes:
    path, applied, access = bound
    who = [access.client_id, access.grant_id, access.user_id, access.patient_id]
    return json.dumps([path, list(applied), who]).encode()
