"""The FHIRPath of search parameters as steps into JSON: the subset HL7's own expressions use (http://hl7.org/fhirpath/N1).

Paths joined by `|`; `where` with equalities or `resolve() is Type`; `as`, `extension`, `[0]`; and, for a boolean,
`x.exists() and x != false`. Anything else is refused when the registry is read, so no parameter is half understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from app.errors import ConfigurationError
from app.fhir import definitions

_TOKEN = re.compile(r"\s*('[^']*'|[A-Za-z]\w*|\d+|[().|=\[\]])")
_PRESENT = re.compile(r"(?P<path>[\w.]+)\.exists\(\) and (?P=path) != false")


@dataclass(frozen=True, slots=True)
class Condition:
    """Something at these names is `value` or, without one, meets every inner condition."""

    names: tuple[str, ...]
    value: str = ""
    inner: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One element; `kind` is the type a choice is narrowed to, `first` leaves only its first repetition."""

    name: str
    kind: str = ""
    conditions: tuple[Condition, ...] = ()
    first: bool = False


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where values of one type stand in JSON; `system` is what a plain code implies."""

    steps: tuple[Step, ...]
    kind: str
    system: str = ""
    only: str = ""
    """Only references to this type count."""
    present: bool = False
    """Not the value counts, but whether there is one that is not false."""


@dataclass(frozen=True, slots=True)
class _Path:
    steps: tuple[Step, ...] = ()
    only: str = ""


@cache
def leaves(structure: str, expression: str) -> tuple[Leaf, ...]:
    """Where the expression leads, one leaf for each alternative and each type of a choice."""
    present = _PRESENT.fullmatch(expression)
    reader = _Reader(present["path"] if present else expression)
    found = [
        Leaf(steps, kind, _system(value_set) if kind == "code" else "", path.only, present is not None)
        for path in reader.alternatives(structure)
        for steps, kind, value_set in _located(structure, path.steps)
    ]
    if not found:
        raise ConfigurationError(f"{structure}: no element at {expression}")
    return tuple(dict.fromkeys(found))


# --- reading an expression ------------------------------------------------------------------------------------


class _Reader:
    """The tokens of one expression, read from left to right."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens: list[str] = _TOKEN.findall(expression)
        self._at = 0
        if "".join(self._tokens).replace(" ", "") != expression.replace(" ", ""):
            raise self._refusal()

    def alternatives(self, root: str) -> list[_Path]:
        """The paths between bars, without the type they begin at."""
        found = [self._path(root)]
        while self._accept("|"):
            found.append(self._path(root))
        if self._at < len(self._tokens):
            raise self._refusal()
        return found

    def _path(self, root: str) -> _Path:
        if self._accept("("):
            path = self._path(root)
            if self._accept("as"):
                path = _narrowed(path, self._next())
            self._expect(")")
        else:
            name = self._next()
            path = _Path() if name == root else _Path((Step(name),))
            path = self._indexed(path)
        while self._accept("."):
            path = self._indexed(self._followed(path, self._next()))
        return path

    def _followed(self, path: _Path, name: str) -> _Path:
        if not self._accept("("):
            return replace(path, steps=(*path.steps, Step(name)))
        match name:
            case "as":
                path = _narrowed(path, self._next())
            case "extension":
                condition = Condition(("url",), self._literal())
                path = replace(path, steps=(*path.steps, Step("extension", conditions=(condition,))))
            case "where":
                path = self._where(path)
            case _:
                raise self._refusal()
        self._expect(")")
        return path

    def _where(self, path: _Path) -> _Path:
        if self._accept("resolve"):
            for token in ("(", ")", "is"):
                self._expect(token)
            return replace(path, only=self._next())
        last = replace(path.steps[-1], conditions=(*path.steps[-1].conditions, *self._conditions()))
        return replace(path, steps=(*path.steps[:-1], last))

    def _conditions(self) -> tuple[Condition, ...]:
        found = [self._condition()]
        while self._accept("and"):
            found.append(self._condition())
        return tuple(found)

    def _condition(self) -> Condition:
        names = [self._next()]
        while self._accept("."):
            name = self._next()
            if name == "where":
                self._expect("(")
                inner = self._conditions()
                for token in (")", ".", "exists", "(", ")"):
                    self._expect(token)
                return Condition(tuple(names), inner=inner)
            names.append(name)
        self._expect("=")
        return Condition(tuple(names), self._literal())

    def _indexed(self, path: _Path) -> _Path:
        if not self._accept("["):
            return path
        self._expect("0")
        self._expect("]")
        return replace(path, steps=(*path.steps[:-1], replace(path.steps[-1], first=True)))

    def _literal(self) -> str:
        text = self._next()
        if not text.startswith("'"):
            raise self._refusal()
        return text[1:-1]

    def _next(self) -> str:
        if self._at == len(self._tokens):
            raise self._refusal()
        self._at += 1
        return self._tokens[self._at - 1]

    def _accept(self, token: str) -> bool:
        found = self._at < len(self._tokens) and self._tokens[self._at] == token
        self._at += found
        return found

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise self._refusal()

    def _refusal(self) -> ConfigurationError:
        return ConfigurationError(f"not an expression that a search parameter can have here: {self._expression}")


def _narrowed(path: _Path, kind: str) -> _Path:
    return replace(path, steps=(*path.steps[:-1], replace(path.steps[-1], kind=kind)))


# --- finding it in the structures -----------------------------------------------------------------------------


def _located(structure: str, steps: tuple[Step, ...]) -> Iterator[tuple[tuple[Step, ...], str, str | None]]:
    """What the steps lead to below a structure: the names JSON has for them, a type, the value set it is bound to."""
    if not steps:
        yield (), structure, None
        return
    step, rest = steps[0], steps[1:]
    element = definitions.element(structure, step.name)
    if element is None:
        raise ConfigurationError(f"{structure} has no element {step.name}")
    # HL7 writes value.as(DateTime) in one expression and (value as dateTime) in the others.
    wanted = [kind.name for kind in element.kinds if step.kind.casefold() in {"", kind.name.casefold()}]
    if not wanted:
        raise ConfigurationError(f"{structure}.{step.name} cannot be {step.kind}")
    for kind in wanted:
        name = element.name + kind[0].upper() + kind[1:] if element.choice else element.name
        own = Step(name, "", step.conditions, step.first)
        if not rest:
            yield (own,), kind, element.value_set
        elif _has(kind, rest[0].name):
            yield from (((own, *further), end, value_set) for further, end, value_set in _located(kind, rest))
        elif not element.choice:
            raise ConfigurationError(f"{structure}.{step.name} has no element {rest[0].name}")


def _has(structure: str, name: str) -> bool:
    known = structure in definitions.read("structures.json")
    return known and definitions.element(structure, name) is not None


def _system(value_set: str | None) -> str:
    return definitions.read("systems.json").get(value_set or "", "")
