"""The content tree of a structured report as plain values, read item by item without ever failing (PS3.3 C.17.3).

Documents are written by strangers, so an unreadable element is absent, and every limit met is told as a problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import InvalidOperation
from functools import cache
from typing import Any

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.sr._snomed_dict import mapping as snomed_mapping
from pydicom.tag import BaseTag, Tag

MAX_DEPTH = 64
MAX_ITEMS = 50_000

# What pydicom raises when it converts a value that breaks its VR, a sequence nested too deep, or strange bytes.
UNREADABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    InvalidOperation,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    UserWarning,
)

# Designators of the retired SNOMED-RT identifiers (PS3.16 section 8.1 and its predecessors).
RETIRED_SNOMED = frozenset({"SRT", "SNM3", "99SDM"})


@dataclass(frozen=True, slots=True)
class Code:
    """A coded entry (PS3.3 section 8)."""

    value: str
    scheme: str
    meaning: str = ""
    version: str | None = None
    scheme_uid: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Equal for the same concept: SNOMED-RT codes as SNOMED CT, designators in any case."""
        current = self.current
        return current.value, current.scheme.upper()

    @property
    def current(self) -> Code:
        """The SNOMED CT form of a SNOMED-RT code; every other code as it is."""
        if self.scheme.upper() not in RETIRED_SNOMED:
            return self
        concept = snomed_mapping["SRT"].get(self.value)
        return replace(self, value=concept, scheme="SCT", version=None, scheme_uid=None) if concept else self

    @property
    def spellings(self) -> tuple[Code, ...]:
        """The current code first, the one that was written second when it differs."""
        current = self.current
        return (current,) if current == self else (current, self)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the document that could not be taken as it stands, and the path of the content item."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """One content item; `reference` is set instead of a value type for an item included by reference."""

    path: str
    relationship: str
    value_type: str
    name: Code | None
    dataset: Dataset
    children: tuple[Item, ...] = ()
    reference: str | None = None

    def named(self, *keys: tuple[str, str]) -> bool:
        """Whether the concept name is one of these."""
        return self.name is not None and self.name.key in keys


@dataclass(slots=True)
class Tree:
    """The content items of one document, by path; problems are added while it is read."""

    root: Item
    items: dict[str, Item]
    schemes: dict[str, str]
    problems: list[Problem] = field(default_factory=list[Problem])

    def children(self, item: Item) -> Iterator[Item]:
        """The children, with items by reference replaced by what they point to."""
        for child in item.children:
            if child.reference is None:
                yield child
                continue
            target = self.items.get(child.reference)
            if target is None or f"{child.path}.".startswith(f"{target.path}."):
                self.problems.append(Problem(child.path, "reference to a content item that cannot be followed"))
                continue
            yield replace(target, relationship=child.relationship)

    def code(self, dataset: Dataset, keyword: str) -> Code | None:
        """The code of a code sequence, with what the document says about its scheme."""
        return code(dataset, keyword, self.schemes)

    def descend(self, item: Item) -> Iterator[Item]:
        """The item and everything written below it, in document order."""
        waiting = [item]
        while waiting:
            current = waiting.pop()
            yield current
            waiting.extend(reversed(current.children))


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def value(dataset: Dataset, keyword: str) -> Any:
    """The value of an attribute; None when absent or unreadable."""
    tag = _tag(keyword)
    try:
        return dataset[tag].value if tag in dataset else None
    except UNREADABLE:
        return None


def text(dataset: Dataset, keyword: str) -> str:
    """The value as text without control characters; of several values the first, empty when absent."""
    found = first(value(dataset, keyword))
    try:
        written = "" if found is None else str(found)
    except UNREADABLE:
        return ""
    if not written.isprintable():
        written = "".join(sign for sign in written if sign >= " " or sign in "\r\n\t")
    return written.strip()


def first(found: Any) -> Any:
    """Of several values the first."""
    if isinstance(found, (str, bytes)) or not isinstance(found, Sequence):
        return found
    return found[0] if len(found) else None


def written(dataset: Dataset, keyword: str) -> str:
    """A number as its bytes spell it, before pydicom judges it."""
    try:
        element = dataset.get_item(keyword) if keyword in dataset else None
    except UNREADABLE:
        return ""
    if isinstance(element, RawDataElement):
        return (element.value or b"").decode("ascii", "replace").strip(" \0")
    if element is None or element.value is None:
        return ""
    number = first(element.value)
    return str(getattr(number, "original_string", None) or ("" if number is None else number)).strip(" \0")


def sequence(dataset: Dataset, keyword: str) -> tuple[Dataset, ...]:
    """The items of a sequence; nothing when absent or unreadable."""
    found = value(dataset, keyword)
    try:
        return tuple(entry for entry in found if isinstance(entry, Dataset)) if found else ()
    except UNREADABLE:
        return ()


def code(dataset: Dataset, keyword: str, schemes: Mapping[str, str]) -> Code | None:
    """The first code of a code sequence, from whichever of the three value attributes carries it (PS3.3 8.1)."""
    for entry in sequence(dataset, keyword)[:1]:
        code_value = text(entry, "LongCodeValue") or text(entry, "CodeValue") or text(entry, "URNCodeValue")
        meaning = text(entry, "CodeMeaning")
        if code_value or meaning:
            scheme = text(entry, "CodingSchemeDesignator")
            version = text(entry, "CodingSchemeVersion") or None
            scheme_uid = text(entry, "CodingSchemeUID") or schemes.get(scheme)
            return Code(code_value, scheme, meaning, version, scheme_uid)
    return None


def read(document: Dataset) -> Tree:
    """The whole content tree, as far as the limits go."""
    tree = Tree(Item("1", "", "", None, document), {}, _schemes(document))
    tree.root = _item(document, "1", tree)
    return tree


def _schemes(document: Dataset) -> dict[str, str]:
    """The UIDs a document gives to the designators it uses (PS3.3 C.12.1.1.7)."""
    found = {
        text(entry, "CodingSchemeDesignator"): text(entry, "CodingSchemeUID")
        for entry in sequence(document, "CodingSchemeIdentificationSequence")
    }
    return {designator: uid for designator, uid in found.items() if designator and uid}


def _item(dataset: Dataset, path: str, tree: Tree) -> Item:
    reference = value(dataset, "ReferencedContentItemIdentifier")
    item = Item(
        path,
        text(dataset, "RelationshipType"),
        text(dataset, "ValueType"),
        tree.code(dataset, "ConceptNameCodeSequence"),
        dataset,
        reference=_reference(reference) if path != "1" else None,
    )
    # The slot is taken before the children are read, so that the limit counts parents too.
    tree.items[path] = item
    item = replace(item, children=tuple(_children(dataset, path, tree)))
    tree.items[path] = item
    return item


def _children(dataset: Dataset, path: str, tree: Tree) -> Iterator[Item]:
    if "ContentSequence" not in dataset:
        return
    if path.count(".") + 1 >= MAX_DEPTH:
        tree.problems.append(Problem(path, f"nested deeper than {MAX_DEPTH} levels; the rest is not read"))
        return
    entries = sequence(dataset, "ContentSequence")
    if not entries and value(dataset, "ContentSequence") is None:
        tree.problems.append(Problem(path, "the content below cannot be read"))
    for number, entry in enumerate(entries, 1):
        if len(tree.items) >= MAX_ITEMS:
            tree.problems.append(Problem(path, f"more than {MAX_ITEMS} content items; the rest is not read"))
            return
        yield _item(entry, f"{path}.{number}", tree)


def _reference(identifier: Any) -> str | None:
    if identifier is None:
        return None
    steps = identifier if isinstance(identifier, Sequence) and not isinstance(identifier, str) else [identifier]
    return ".".join(str(step) for step in steps)
