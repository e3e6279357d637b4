"""Search results as a Bundle joined from stored bytes, and its tamper-proof paging (https://hl7.org/fhir/R4/bundle.html#searchset)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterable, Sequence
from urllib.parse import urlencode

import msgspec

from app.access import Access
from app.fhir.search import refusal
from app.store.resources import Hit, Stored

PAGE = "_page"
"""The parameter of a `next` link that says where its page begins."""
_SEAL_BYTES = 16

Applied = Sequence[tuple[str, str]]


def searchset(entries: Iterable[bytes], links: Sequence[tuple[str, str]], total: int | None) -> bytes:
    """The Bundle; without entries it has no `entry` at all, and a `total` only when it is known."""
    head = b'{"resourceType":"Bundle","type":"searchset",'
    count = b"" if total is None else b'"total":%d,' % total
    link = b'"link":' + msgspec.json.encode([{"relation": relation, "url": url} for relation, url in links])
    joined = b",".join(entries)
    return head + count + link + (b',"entry":[' + joined + b"]" if joined else b"") + b"}"


def entry(base: str, stored: Stored, mode: str) -> bytes:
    """One resource as it is stored."""
    url = msgspec.json.encode(f"{base}/{stored.resource_type}/{stored.resource_id}")
    return b'{"fullUrl":' + url + b',"resource":' + stored.body + b',"search":{"mode":"' + mode.encode() + b'"}}'


def remark(outcome: dict[str, object]) -> bytes:
    """An OperationOutcome about the search itself."""
    return b'{"resource":' + msgspec.json.encode(outcome) + b',"search":{"mode":"outcome"}}'


def address(base: str, resource_type: str, applied: Applied) -> str:
    """A search as a link."""
    return f"{base}/{resource_type}" + (f"?{urlencode(applied)}" if applied else "")


def seal(key: bytes, bound: tuple[str, Applied, Access], last: Hit) -> str:
    """Where the next page begins: good for this search and this caller only."""
    place = json.dumps([last.key, last.stored.resource_id]).encode()
    return base64.urlsafe_b64encode(_mac(key, bound, place) + place).rstrip(b"=").decode()


def unseal(key: bytes, bound: tuple[str, Applied, Access], text: str) -> tuple[int, str]:
    """Sort key and id after which the page begins; BadRequest when it was not made for this search and caller."""
    try:
        sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        sealed = b""
    place = sealed[_SEAL_BYTES:]
    if not hmac.compare_digest(sealed[:_SEAL_BYTES], _mac(key, bound, place)):
        raise refusal(f"{PAGE} does not belong to this search", PAGE)
    sort, resource_id = json.loads(place)
    return sort, resource_id


def _mac(key: bytes, bound: tuple[str, Applied, Access], place: bytes) -> bytes:
    resource_type, applied, access = bound
    who = [access.client_id, access.grant_id, access.user_id, access.patient_id]
    text = json.dumps([resource_type, list(applied), who]).encode()
    return hmac.digest(key, b"fhir page\0" + text + b"\0" + place, hashlib.sha256)[:_SEAL_BYTES]
