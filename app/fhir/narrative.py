"""The XHTML of a narrative: nothing that acts, nothing that is fetched (https://hl7.org/fhir/R4/narrative.html#xhtml)."""

from __future__ import annotations

import re
from typing import Any
from xml.parsers import expat

from app.fhir.primitives import EMPTY, Fault

_XHTML = "http://www.w3.org/1999/xhtml"
_ELEMENTS = """
    a abbr acronym address area b bdo big blockquote br caption cite code col colgroup dd dfn div dl dt em h1 h2 h3
    h4 h5 h6 hr i img kbd li map ol p pre q s samp small span strike strong sub sup table tbody td tfoot th thead tr tt
    u ul var
"""
_ATTRIBUTES = """
    abbr accesskey align alt axis bgcolor border cellpadding cellspacing char charoff cite class color cols colspan
    coords datetime dir frame headers height href hspace id ID lang name noshade nowrap rel rows rowspan rules scope
    shape size space span src start style summary tabindex title type usemap valign value vspace width
"""
_KNOWN_ELEMENTS = frozenset(_ELEMENTS.split())
_KNOWN_ATTRIBUTES = frozenset(_ATTRIBUTES.split())
_XML = "http://www.w3.org/XML/1998/namespace "
_LINK = re.compile(r"\s*(?:#|https?:|mailto:|tel:|ftp:|urn:|[\w./?=&%~+\-]+(?:#.*)?$)", re.IGNORECASE)
_IMAGE = re.compile(r"\s*(?:#|https?:|data:\s*image/(?:png|jpeg|gif|webp)[;,]|[\w./%~+\-]+$)", re.IGNORECASE)
# A picture inside the style or beside the page is fine; a backslash could hide anything.
_OWN_PICTURE = r"url\s*\(\s*['\"]?(?:data:\s*image/|[\w./%\-]+['\"]?\s*\))"
_FETCHING_STYLE = re.compile(
    rf"(?!{_OWN_PICTURE})url\s*\(|@import|expression\s*\(|behavior\s*:|-moz-binding|\\",
    re.IGNORECASE,
)


class _Refused(Exception):
    """The parser met something that a narrative must not have."""


class _Reader:
    """Watches the parser and refuses at the first fault."""

    def __init__(self) -> None:
        self.depth = 0
        self.has_content = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Only XHTML elements of the list, the first of them a div."""
        namespace, _, local = name.rpartition(" ")
        if namespace != _XHTML or local not in _KNOWN_ELEMENTS:
            raise _Refused(f"must not contain this element: {_shown(local)}")
        if not self.depth and local != "div":
            raise _Refused("must be one div")
        for attribute, value in attributes.items():
            _check_attribute(attribute, value)
        self.depth += 1
        self.has_content |= local == "img"

    def end(self, _name: str) -> None:
        """One level up."""
        self.depth -= 1

    def text(self, data: str) -> None:
        """Anything but blanks is content."""
        self.has_content |= not data.isspace()

    def refuse(self, *_: Any) -> None:
        """Document types and processing instructions are never needed."""
        raise _Refused("must not contain document types or processing instructions")


def _shown(name: str) -> str:
    return name if name.isalnum() and len(name) <= 20 else "an unknown name"


def _check_attribute(name: str, value: str) -> None:
    local = name.removeprefix(_XML)
    if local not in _KNOWN_ATTRIBUTES:
        raise _Refused(f"must not contain this attribute: {_shown(local)}")
    if local == "href" and value and not _LINK.match(value):
        raise _Refused("must not link to scripts or data")
    if local == "src" and not _IMAGE.match(value):
        raise _Refused("must not show images other than linked or embedded ones")
    if local == "style" and _FETCHING_STYLE.search(value):
        raise _Refused("must not have styles that fetch or act")


def xhtml(value: Any) -> Fault | None:
    """The test for Narrative.div (txt-1, txt-2)."""
    if type(value) is not str:
        return Fault("structure", "must be a JSON string")
    if not value:
        return EMPTY
    reader = _Reader()
    try:
        _parser(reader).Parse(value, True)
    except _Refused as refused:
        return Fault("invariant", f"{refused} (txt-1)")
    except (expat.ExpatError, UnicodeError, ValueError):
        return Fault("invariant", "must be well-formed XHTML in the XHTML namespace (txt-1)")
    return None if reader.has_content else Fault("invariant", "must have content (txt-2)")


def _parser(reader: _Reader) -> expat.XMLParserType:
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.ProcessingInstructionHandler = reader.refuse
    return parser
