"""The places of a resource that a FHIRPath names: those paths of FHIRPath Patch that select (https://hl7.org/fhir/R4/fhirpath.html).

Known are element names (a choice by its name without type), `[n]`, `where`, `first`, `last`, `ofType` and `extension`.
A condition compares such a path with a literal by = or !=, or ends in `exists()` or `empty()`; `and`, `or` and
parentheses join conditions. A name that the type does not have is refused, so that no misspelling selects nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

from app.errors import Issue, Unprocessable
from app.fhir import definitions
from app.fhir.definitions import Element

Json = dict[str, Any]

MAX_LENGTH = 2000
MAX_DEPTH = 20
"""Conditions within conditions."""

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^'\\]|\\.)*')|(?P<date>@[0-9T:.+\-Z]+)|(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<name>[A-Za-z_]\w*|`[A-Za-z_]\w*`)|(?P<mark>!=|[.()\[\]=])|(?P<end>$))",
    re.ASCII,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "'": "'", '"': '"', "`": "`", "\\": "\\", "/": "/"}
_KEYWORDS: Mapping[str, Any] = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Spot:
    """One element where it stands: `node[name]`, or one of the list there. A primitive's sibling is `node[_name]`."""

    node: Json
    name: str
    kind: str
    index: int | None = None
    element: Element | None = None
    up: Spot | None = None

    @property
    def value(self) -> Any:
        """The content; None for a primitive that has extensions only."""
        return _at(self.node.get(self.name), self.index)

    @property
    def is_primitive(self) -> bool:
        """Whether the content is a JSON string, number or boolean."""
        return is_primitive(self.kind)

    @property
    def sibling(self) -> Any:
        """A primitive's id and extensions."""
        return _at(self.node.get(f"_{self.name}"), self.index)


def root(resource: Json) -> Spot:
    """The resource itself, which stands nowhere."""
    return Spot({"": resource}, "", str(resource.get("resourceType")))


def is_primitive(kind: str) -> bool:
    """Whether values of the type are no JSON objects: FHIR writes those types in lower case."""
    return kind[:1].islower()


@cache
def members(structure: str) -> Mapping[str, Element]:
    """The elements of a type by their names without type."""
    known = "Element" if is_primitive(structure) else structure
    return {element.name: element for element in definitions.elements(known)}


def kinds(element: Element) -> Iterator[tuple[str, str]]:
    """JSON name and structure for each type the element may have."""
    for kind in element.kinds:
        name = element.name + kind.name[0].upper() + kind.name[1:] if element.choice else element.name
        narrowed = next(iter(kind.narrowed), "") if kind.name == "Quantity" else ""
        yield name, narrowed or kind.name


def member(structure: str, name: str) -> Element:
    """The element of a type; Unprocessable when there is none."""
    found = members(structure).get(name)
    if found is None:
        raise refused(f"{structure} has no element of the name the path or the operation gives")
    return found


def refused(diagnostics: str) -> Unprocessable:
    """What cannot be done with this resource."""
    return Unprocessable(issues=(Issue("processing", diagnostics),))


# --- steps -----------------------------------------------------------------------------------------------------

Step = Callable[[list[Spot]], list[Spot]]
Condition = Callable[[Spot], bool]


def children(spot: Spot, name: str) -> list[Spot]:
    """The child elements of one name in their order."""
    element = member(spot.kind, name)
    node = spot.sibling if spot.is_primitive else spot.value
    if type(node) is not dict:
        return []
    found: list[Spot] = []
    for json_name, kind in kinds(element):
        content, sibling = node.get(json_name), node.get(f"_{json_name}") if is_primitive(kind) else None
        if element.many:
            count = max(len(part) if type(part) is list else 0 for part in (content, sibling))
            places: list[int | None] = list(range(count))
        else:
            places = [None] if content is not None or sibling is not None else []
        for place in places:
            value = _at(content, place)
            actual = str(value.get("resourceType")) if kind == "Resource" and type(value) is dict else kind
            found.append(Spot(node, json_name, actual, place, element, spot))
    return found


def _at(content: Any, index: int | None) -> Any:
    if index is None:
        return content
    return content[index] if type(content) is list and index < len(content) else None


def _child(name: str) -> Step:
    return lambda spots: [child for spot in spots for child in children(spot, name)]


def _slice(first: int, end: int | None) -> Step:
    return lambda spots: spots[first:end]


def _where(condition: Condition) -> Step:
    return lambda spots: [spot for spot in spots if condition(spot)]


def _of_type(kind: str) -> Step:
    return lambda spots: [spot for spot in spots if spot.kind == kind]


def _extension(url: str) -> Step:
    return lambda spots: [
        child for spot in spots for child in children(spot, "extension") if child.value.get("url") == url
    ]


@dataclass(frozen=True, slots=True)
class Path:
    """A parsed path; `names` are the element names its steps are, "" for a step that is none."""

    steps: tuple[Step, ...]
    names: tuple[str, ...]

    def find(self, spots: list[Spot]) -> list[Spot]:
        """All that the path selects."""
        for step in self.steps:
            spots = step(spots)
        return spots

    def split(self) -> tuple[Path, str]:
        """The path of the parent and the name of the list, for what acts on a list as a whole."""
        if not self.names or not self.names[-1]:
            raise refused("the path must end in the name of a list")
        return Path(self.steps[:-1], self.names[:-1]), self.names[-1]


# --- parsing ---------------------------------------------------------------------------------------------------


class BadPath(ValueError):
    """The text is no path that is understood; the message says where."""


def parse(text: str, resource_type: str) -> Path:
    """The path for a resource of this type, whose name it may begin with."""
    if len(text) > MAX_LENGTH:
        raise BadPath(f"a path may have at most {MAX_LENGTH} characters")
    parser = _Parser(text)
    path = parser.path(start=resource_type)
    parser.expect("end")
    return path


class _Parser:
    """Reads a path from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._depth = 0
        self._kind, self._word = "", ""
        self._next()

    def expect(self, kind: str, word: str = "") -> str:
        """Consume what must come now."""
        if self._kind != kind or (word and self._word != word):
            raise self._bad()
        found = self._word
        self._next()
        return found

    def path(self, start: str) -> Path:
        """Steps joined by dots; the first may be the resource's type."""
        steps: list[Step] = []
        names: list[str] = []
        if self._word == start and self._kind == "name":
            self._next()
            self._index(steps, names)
            if self._word != ".":
                return Path(tuple(steps), tuple(names))
            self._next()
        self._step(steps, names)
        while self._word == "." and self._kind == "mark":
            self._next()
            self._step(steps, names)
        return Path(tuple(steps), tuple(names))

    def _next(self) -> None:
        found = _TOKEN.match(self._text, self._place)
        if found is None or found.lastgroup is None:
            raise self._bad()
        self._place, self._kind, self._word = found.end(), found.lastgroup, found[found.lastgroup]

    def _bad(self) -> BadPath:
        return BadPath(f"the path is not understood at character {self._place}")

    def _take(self, word: str) -> bool:
        if self._kind in {"mark", "name"} and self._word == word:
            self._next()
            return True
        return False

    def _step(self, steps: list[Step], names: list[str]) -> None:
        name = self.expect("name")
        if self._take("("):
            steps.append(self._call(name))
            names.append("")
            self.expect("mark", ")")
        else:
            name = name.strip("`")
            steps.append(_child(name))
            names.append(name)
        self._index(steps, names)

    def _index(self, steps: list[Step], names: list[str]) -> None:
        while self._take("["):
            number = self.expect("number")
            self.expect("mark", "]")
            if not number.isdecimal() or len(number) > 9:
                raise self._bad()
            steps.append(_slice(int(number), int(number) + 1))
            names.append("")

    def _call(self, name: str) -> Step:
        match name:
            case "where":
                return _where(self._condition())
            case "first":
                return _slice(0, 1)
            case "last":
                return _slice(-1, None)
            case "ofType":
                return _of_type(self._type())
            case "extension":
                return _extension(_unquoted(self.expect("text")))
            case _:
                raise BadPath(f"the path may not have that function (character {self._place})")

    def _type(self) -> str:
        name = self.expect("name")
        if name in {"FHIR", "System"} and self._take("."):
            name = self.expect("name")
        return name.strip("`")

    def _condition(self) -> Condition:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._bad()
        conditions = [self._conjunction()]
        while self._take("or"):
            conditions.append(self._conjunction())
        self._depth -= 1
        return lambda spot: any(holds(spot) for holds in conditions)

    def _conjunction(self) -> Condition:
        conditions = [self._test()]
        while self._take("and"):
            conditions.append(self._test())
        return lambda spot: all(holds(spot) for holds in conditions)

    def _test(self) -> Condition:
        if self._take("("):
            found = self._condition()
            self.expect("mark", ")")
            return found
        path = self._operand()
        if self._word in {"exists", "empty"}:
            wanted = self._word == "exists"
            self._next()
            self.expect("mark", "(")
            self.expect("mark", ")")
            return lambda spot: bool(path.find([spot])) is wanted
        mark = self.expect("mark")
        if mark not in {"=", "!="}:
            raise self._bad()
        literal = self._literal()
        return lambda spot: _compare(path.find([spot]), literal, is_equal=mark == "=")

    def _operand(self) -> Path:
        """The path before a comparison, or before `exists()`, whose dot it consumes."""
        steps: list[Step] = []
        names: list[str] = []
        self._step(steps, names)
        while self._take("."):
            if self._word in {"exists", "empty"}:
                break
            self._step(steps, names)
        return Path(tuple(steps), tuple(names))

    def _literal(self) -> Any:
        kind, word = self._kind, self._word
        self._next()
        match kind:
            case "text":
                return _unquoted(word)
            case "number":
                return Decimal(word)
            case "date":
                return word[1:]
            case "name" if word in _KEYWORDS:
                return _KEYWORDS[word]
            case _:
                raise self._bad()


def _compare(spots: list[Spot], literal: Any, *, is_equal: bool) -> bool:
    """As FHIRPath does: nothing compared is neither equal nor unequal, several are unequal to one."""
    if not spots:
        return False
    value = spots[0].value
    same = len(spots) == 1 and value == literal and isinstance(value, bool) is isinstance(literal, bool)
    return same is is_equal


def _unquoted(word: str) -> str:
    return _ESCAPE.sub(_escaped, word[1:-1])


def _escaped(found: re.Match[str]) -> str:
    if found[1]:
        return chr(int(found[1], 16))
    if found[2] not in _ESCAPES:
        raise BadPath("a text in the path has an escape that FHIRPath does not know")
    return _ESCAPES[found[2]]
