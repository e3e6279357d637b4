"""Strict JSON at the door: no name twice, no digit lost, no endless depth (https://hl7.org/fhir/R4/json.html)."""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import chain
from typing import Any

import msgspec

from app.errors import BadRequest, Issue

Json = dict[str, Any]

MAX_DEPTH = 100
_MAX_DIGITS = 1000


def parse(body: bytes) -> Json:
    """The body as values; numbers with fraction or exponent become Decimal, so that none loses a digit.

    Almost every body is read by the quick reader. It is as strict as the other but for names that come twice and for
    depth, so both are measured. Where that could be deceived, and to say what is wrong, the slow one reads.
    """
    plain = body.translate(_PLAIN)
    is_deceiving = (b"\\" in body and b'\\":' in body) or _ENDLESS in plain
    resource = None if is_deceiving else _read_quickly(body, is_spaced=b" :" in plain)
    return read_slowly(body) if resource is None else resource


def _read_quickly(body: bytes, *, is_spaced: bool) -> Json | None:
    """None when anything is not as it should be; a colon after a quote must end a name for the count to be true."""
    try:
        resource = _QUICK.decode(body)
        compact = msgspec.json.format(body, indent=-1) if is_spaced else body
    except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError):
        return None
    return resource if _names(resource) == compact.count(b'":') else None


# All digits alike, all blanks alike: one look finds each.
_PLAIN = bytes.maketrans(b"123456789\n\t\r", b"000000000   ")
_ENDLESS = b"0" * _MAX_DIGITS


def _names(resource: Json) -> int:
    """How many names all objects have; -1 when they are nested too deeply."""
    names, objects, lists = 0, [resource], list[list[Any]]()
    for _ in range(MAX_DEPTH):
        names += sum(map(len, objects))
        inside = [*chain.from_iterable(map(dict[str, Any].values, objects)), *chain.from_iterable(lists)]
        objects = [value for value in inside if type(value) is dict]
        lists = [value for value in inside if type(value) is list]
        if not objects and not lists:
            return names
    return -1


def read_slowly(body: bytes) -> Json:
    """The same without haste: BadRequest says what is wrong and where."""
    try:
        resource = _SLOW.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _malformed(f"the body is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _malformed(f"the body is not JSON: {error.msg} ({where})") from error
    except ValueError as error:
        raise _malformed(f"the body is not the JSON of a resource: {error}") from error
    except RecursionError as error:
        raise _malformed("the body is nested too deeply") from error
    if type(resource) is not dict:
        raise _malformed("the body must be one JSON object")
    if _names(resource) < 0:
        raise _malformed(f"the body is nested more than {MAX_DEPTH} levels deep")
    _refuse_halves(resource, body)
    return resource


def _refuse_halves(resource: Json, body: bytes) -> None:
    """A surrogate without its partner is legal JSON, but no reader after this one and no database takes it."""
    if b"\\u" in body:
        try:
            json.dumps(resource, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise _malformed("a text in the body has half a character: a surrogate without its partner") from error


def _malformed(diagnostics: str) -> BadRequest:
    return BadRequest(issues=(Issue("structure", diagnostics),))


def _object(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same name twice")
    return found


def _decimal(literal: str) -> Decimal:
    try:
        value = Decimal(literal)
    except ArithmeticError as error:
        raise ValueError("a number is out of range") from error
    if abs(value.adjusted()) > _MAX_DIGITS:
        raise ValueError("a number is out of range")
    return value


def _whole(literal: str) -> int:
    if len(literal) > _MAX_DIGITS:
        raise ValueError("a number is out of range")
    return int(literal)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


_QUICK = msgspec.json.Decoder(Json, float_hook=_decimal)
_SLOW = json.JSONDecoder(object_pairs_hook=_object, parse_float=_decimal, parse_int=_whole, parse_constant=_constant)
