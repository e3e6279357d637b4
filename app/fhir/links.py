"""The links of a resource rewritten where they stand (https://hl7.org/fhir/R4/http.html#trules).

A link is a Reference, a value of the types uri, url, canonical, oid and uuid, or an address in the narrative. Only its
own text is written anew: all other bytes, digits of decimals among them, stay the client's.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from app.fhir import definitions

Json = dict[str, Any]
Pick = Callable[[str, str], str | None]
"""(JSON name, text) of what may be a link → the new text, None for one that stays."""

_ADDRESSES = frozenset({"uri", "url", "canonical", "oid", "uuid"})
_NARRATIVE = "xhtml"
_NESTED = frozenset({"contained", "resource"})
"""Elements that hold resources, whose own types say what is a link in them."""
_ATTRIBUTE = re.compile(r"""(?P<name>\b(?:href|src)\s*=\s*)(?P<quote>["'])(?P<value>[^"']*)(?P=quote)""", re.IGNORECASE)
_RESTFUL = re.compile(r"(?P<base>https?://\S+)/(?P<path>[A-Za-z]+/[A-Za-z0-9\-.]{1,64})")
_RELATIVE = re.compile(r"[A-Za-z]+/[A-Za-z0-9\-.]{1,64}")
_CONDITIONAL = re.compile(r"(?P<type>[A-Z][A-Za-z]*)\?(?P<criteria>\S+)")
_ANY = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder()
_NODE = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the entries of a Bundle are: their full URLs and conditional references, and the `Type/id` each means."""

    base: str
    found: Mapping[str, str]

    def pick(self, full_url: str) -> Pick:
        """How the links of the entry with this full URL are read."""
        restful = _RESTFUL.fullmatch(full_url)
        base = restful["base"] if restful else self.base

        known = self.found

        def picked(name: str, text: str) -> str | None:
            # Nearly all texts are no link: they must cost nothing.
            if text in known:
                return known[text]
            if name == "div":
                return self._narrative(text, base)
            return self._meant(text, base) if name == "reference" or "#" in text or "|" in text else None

        return picked

    def _narrative(self, text: str, base: str) -> str | None:
        def replaced(found: re.Match[str]) -> str:
            meant = self._meant(html.unescape(found["value"]), base)
            return found[0] if meant is None else f"{found['name']}{found['quote']}{html.escape(meant)}{found['quote']}"

        changed = _ATTRIBUTE.sub(replaced, text)
        return None if changed == text else changed

    def _meant(self, text: str, base: str) -> str | None:
        address, mark, fragment = text.partition("#")
        meant = self.found.get(address)
        if meant is None and _RELATIVE.fullmatch(address):
            meant = self.found.get(f"{base}/{address}")
        if meant is None and "|" in address:
            address, _, version = address.partition("|")
            mark, fragment = "|", f"{version}{mark}{fragment}"
            meant = self.found.get(address)
        return None if meant is None or meant == address else f"{meant}{mark}{fragment}"


def conditions(resource: Json) -> Iterator[str]:
    """The conditional references of a resource, such as `Patient?identifier=s|v`, each once."""
    met: dict[str, None] = {}

    def pick(name: str, text: str) -> None:
        if name == "reference" and _CONDITIONAL.fullmatch(text):
            met[text] = None

    rewritten(b"", resource, pick)
    yield from met


def split(condition: str) -> tuple[str, str]:
    """Type and criteria of a conditional reference."""
    resource_type, _, criteria = condition.partition("?")
    return resource_type, criteria


def rewritten(body: bytes, resource: Json, pick: Pick) -> tuple[bytes, Json]:
    """The bytes and the values with the links that `pick` has a new text for; the same ones when it has none."""
    change = _change(resource, "", pick)
    change = change and _typed(change, resource, (str(resource.get("resourceType")),))
    if not change:
        return body, resource
    return _spliced(body, change), _applied(resource, change)


def listed(body: bytes, pick: Pick) -> bytes:
    """JSON of which no definition tells the types, such as a JSON Patch, with every text that `pick` changes."""
    try:
        value = _ANY.decode(body)
    except msgspec.DecodeError:
        # Whoever reads it next says what is wrong with it.
        return body
    change = _change({"": value}, "", pick)
    return body if change is None else _spliced(body, change[""])


# --- finding ---------------------------------------------------------------------------------------------------


def _change(value: Any, name: str, pick: Pick) -> Any:
    """What `pick` would change below a value, whatever its type; None for nothing."""
    found: dict[Any, Any] = {}
    for key, content in value.items() if type(value) is dict else enumerate(value):
        label = key if type(key) is str else name
        kind = type(content)
        if kind is str:
            change = pick(label, content)
        elif kind is dict or kind is list:
            change = _change(content, label, pick)
        else:
            continue
        if change is not None:
            found[key] = change
    return found or None


def _typed(change: Any, value: Any, path: tuple[str, ...]) -> Any:
    """Of the changes those of links; the path begins with the type of the nearest resource."""
    if type(change) is str:
        return change if _is_link(path) else None
    if path[-1] in _NESTED and type(value) is dict and type(kind := value.get("resourceType")) is str:
        path = (kind,)
    below = {key: _typed(more, value[key], path if type(key) is int else (*path, key)) for key, more in change.items()}
    return {key: more for key, more in below.items() if more} or None


@lru_cache(maxsize=8192)
def _is_link(path: tuple[str, ...]) -> bool:
    structure, kind = path[0], path[0]
    for name in path[1:]:
        structure = kind
        if name.startswith("_"):
            kind = "Element"
            continue
        kind = _kinds(structure).get(name, "")
        if not kind:
            return False
    return kind in _ADDRESSES or kind == _NARRATIVE or (structure == "Reference" and path[-1] == "reference")


@lru_cache(maxsize=1024)
def _kinds(structure: str) -> Mapping[str, str]:
    """The types of a structure's elements by their names in JSON."""
    found: dict[str, str] = {}
    if structure not in definitions.read("structures.json"):
        return found
    for element in definitions.elements(structure):
        for kind in element.kinds:
            suffix = kind.name[0].upper() + kind.name[1:] if element.choice else ""
            found[element.name + suffix] = kind.name
    return found


# --- writing ---------------------------------------------------------------------------------------------------


def _spliced(raw: bytes | msgspec.Raw, change: Any) -> bytes:
    """The bytes with a new text, or with changes below; whatever does not lead to one is copied as it stands."""
    if type(change) is str:
        return _ENCODER.encode(change)
    if type(next(iter(change))) is str:
        node = _NODE.decode(raw)
        node |= {name: msgspec.Raw(_spliced(node[name], below)) for name, below in change.items()}
        return _ENCODER.encode(node)
    items = _ITEMS.decode(raw)
    for place, below in change.items():
        items[place] = msgspec.Raw(_spliced(items[place], below))
    return _ENCODER.encode(items)


def _applied(value: Any, change: Any) -> Any:
    if type(change) is str:
        return change
    if type(value) is dict:
        return value | {name: _applied(value[name], below) for name, below in change.items()}
    return [_applied(content, change[place]) if place in change else content for place, content in enumerate(value)]
