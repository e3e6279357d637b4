"""JSON Patch (RFC 6902) and FHIRPath Patch of one resource, on values (https://hl7.org/fhir/R4/http.html#patch).

Both give a new resource and leave the old one as it is; whoever stores the new one validates it first. What a version
owns (`resourceType`, `id`, `meta.versionId`, `meta.lastUpdated`) cannot be patched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from app.errors import BadRequest, Issue, TooLarge, Unprocessable, UnsupportedMediaType
from app.fhir import elements, validation
from app.fhir.locations import BadPath

Json = dict[str, Any]

MAX_OPERATIONS = 1000
MAX_COPIED = 500_000
"""So many JSON values may one patch add by `copy`, which could otherwise double a resource again and again."""
TEXT = 32
"""So many characters of a text count as one value more."""

_INDEX = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)*")
_PLAIN = re.compile(r"[A-Za-z]\w{0,63}", re.ASCII)
_OWNED = ("resourceType", "id")
_OWNED_META = ("versionId", "lastUpdated")


def read(content_type: str, body: bytes) -> Callable[[Json], Json]:
    """What a PATCH request's body does to a resource, by its media type."""
    match content_type.partition(";")[0].strip().lower():
        case "application/json-patch+json":
            # The strict reader reads objects.
            found = validation.parse(b'{"operations":%s}' % body)
            if found.keys() != {"operations"}:
                raise BadRequest(issues=(Issue("structure", "a JSON Patch is a list of operations"),))
            operations = _operations(found["operations"])
            return lambda resource: json_patch(resource, operations)
        case "application/fhir+json" | "application/json":
            parameters = _parameters(validation.parse(body))
            return lambda resource: fhirpath_patch(resource, parameters)
        case _:
            raise UnsupportedMediaType("send application/json-patch+json, or a FHIRPath Patch as application/fhir+json")


def json_patch(resource: Json, operations: Any) -> Json:
    """The resource after all operations; BadRequest for what is no JSON Patch, Unprocessable for what does not fit."""
    run = _Run({"": _copied(resource)}, str(resource.get("resourceType")))
    try:
        for number, operation in enumerate(_operations(operations)):
            run.apply(number, operation)
        run.check_alignment()
        return _kept(resource, run.document.get(""))
    except RecursionError as error:
        raise Unprocessable("the patch nests the resource too deeply") from error


def fhirpath_patch(resource: Json, parameters: Any) -> Json:
    """The resource after all operations; BadRequest for what is no such patch, Unprocessable for what does not fit."""
    rows = _parameters(parameters).get("parameter", [])
    document = _copied(resource)
    try:
        for number, row in enumerate(rows):
            _located(partial(elements.apply, document, row), f"Parameters.parameter[{number}]")
    except RecursionError as error:
        raise Unprocessable("the patch nests the resource too deeply") from error
    return _kept(resource, document)


def _operations(operations: Any) -> list[Any]:
    if type(operations) is not list:
        raise BadRequest(issues=(Issue("structure", "a JSON Patch is a list of operations"),))
    _check_count(len(operations))
    return operations


def _parameters(parameters: Any) -> Json:
    if type(parameters) is not dict or parameters.get("resourceType") != "Parameters":
        raise BadRequest(issues=(Issue("structure", "a FHIRPath Patch is a resource of type Parameters"),))
    faults = validation.validate(parameters)
    if faults:
        raise BadRequest(issues=tuple(faults))
    _check_count(len(parameters.get("parameter", [])))
    return parameters


def _located(work: Callable[[], None], expression: str) -> None:
    """An error of `work` tells which operation it was."""
    try:
        work()
    except BadPath as error:
        raise BadRequest(issues=(Issue("invalid", str(error), expression),)) from error
    except (BadRequest, Unprocessable) as error:
        issues = tuple(Issue(issue.code, issue.diagnostics, issue.expression or expression) for issue in error.issues)
        raise type(error)(issues=issues) from error


def _check_count(count: int) -> None:
    if count > MAX_OPERATIONS:
        raise TooLarge(f"a patch may have at most {MAX_OPERATIONS} operations")


def _kept(before: Json, after: Any) -> Json:
    """The outcome, unless it changes what only the server may; a whole new `meta` need not repeat the server's part."""
    if type(after) is not dict:
        raise Unprocessable("a patch must leave a resource")
    for name in _OWNED:
        if after.get(name) != before.get(name):
            raise _owned(before, name)
    old, new = before.get("meta", {}), after.get("meta", {})
    if type(new) is dict:
        for name in _OWNED_META:
            if name in new and new[name] != old.get(name):
                raise _owned(before, f"meta.{name}")
    return after


def _owned(before: Json, name: str) -> Unprocessable:
    expression = f"{before.get('resourceType')}.{name}"
    return Unprocessable(issues=(Issue("business-rule", "is the server's and cannot be patched", expression),))


def _copied(value: Any, count: list[int] | None = None) -> Any:
    """A deep copy; Unprocessable when the count of values goes beyond the limit."""
    if count is not None:
        count[0] += 1 + (len(value) // TEXT if type(value) is str else 0)
        if count[0] > MAX_COPIED:
            raise Unprocessable(f"a patch may copy at most {MAX_COPIED} values")
    if type(value) is dict:
        return {name: _copied(content, count) for name, content in value.items()}
    if type(value) is list:
        return [_copied(content, count) for content in value]
    return value


# --- JSON Patch ------------------------------------------------------------------------------------------------


class _Misfit(Exception):
    """An operation does not fit the resource."""


class _Malformed(Exception):
    """An operation is none of RFC 6902."""


@dataclass(slots=True)
class _Edits:
    """What was inserted into (+) and removed from (-) one list, which is `owner[name]`."""

    items: list[Any]
    owner: Json
    name: str
    log: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])


@dataclass(slots=True)
class _Run:
    """One patch under way; `document` holds the resource under the empty name, so that it can be replaced as well.

    A list of primitives and its list of siblings are one list to FHIR: both must see the same insertions and removals.
    """

    document: Json
    resource_type: str
    edits: dict[int, _Edits] = field(default_factory=dict[int, _Edits])
    copied: list[int] = field(default_factory=lambda: [0])

    def apply(self, number: int, operation: Any) -> None:
        """One operation; its number, counted from 0, and the element are told in its error."""
        if type(operation) is not dict:
            raise BadRequest(issues=(Issue("structure", f"operation {number} must be a JSON object"),))
        path = operation.get("path")
        try:
            _named(operation.get("op"))(self, _pointer(path, "path"), operation)
        except _Malformed as error:
            raise BadRequest(issues=(Issue("structure", f"operation {number}: {error}"),)) from error
        except _Misfit as error:
            issue = Issue("processing", f"operation {number}: {error}", self._expression(path))
            raise Unprocessable(issues=(issue,)) from error

    def check_alignment(self) -> None:
        """Unprocessable when a value would now stand beside another's extensions."""
        for edit in self.edits.values():
            name = edit.name.removeprefix("_")
            other = edit.owner.get(name if edit.name.startswith("_") else f"_{name}")
            if edit.owner.get(edit.name) is not edit.items or type(other) is not list:
                continue
            known = self.edits.get(id(other))
            if edit.log != (known.log if known else []):
                raise Unprocessable(f"{name} and _{name} are aligned: insert and remove in both at the same places")

    def get(self, pointer: list[str]) -> Any:
        """The value there; `_Misfit` when there is none."""
        value: Any = self.document
        for key in ["", *pointer]:
            if type(value) is dict and key in value:
                value = value[key]
            elif type(value) is list:
                value = value[_place(key, len(value) - 1)]
            else:
                raise _Misfit("there is no such element")
        return value

    def add(self, pointer: list[str], value: Any) -> None:
        """Insert into a list, or set a member."""
        parent, key = self._parent(pointer)
        if type(parent) is list:
            place = len(parent) if key == "-" else _place(key, len(parent))
            parent.insert(place, value)
            self._log(pointer, parent, ("+", place))
        else:
            self._set(parent, key, value)

    def remove(self, pointer: list[str]) -> Any:
        """Take out what must be there."""
        value = self.get(pointer)
        _refuse_owned(pointer)
        parent, key = self._parent(pointer)
        if type(parent) is list:
            place = int(key)
            self._log(pointer, parent, ("-", place))
            del parent[place]
        else:
            del parent[key]
        return value

    def replace(self, pointer: list[str], value: Any) -> None:
        """Set what must be there."""
        self.get(pointer)
        parent, key = self._parent(pointer)
        if type(parent) is list:
            parent[int(key)] = value
        else:
            self._set(parent, key, value)

    def copy(self, value: Any) -> Any:
        """A copy within the limit."""
        return _copied(value, self.copied)

    def _parent(self, pointer: list[str]) -> tuple[Any, str]:
        parent = self.get(pointer[:-1]) if pointer else self.document
        if type(parent) is not dict and type(parent) is not list:
            raise _Misfit("there is no such element")
        return parent, pointer[-1] if pointer else ""

    def _set(self, parent: Json, key: str, value: Any) -> None:
        """A list given as a whole is aligned by its sender: what came before counts no more."""
        for name in (key, key.removeprefix("_"), f"_{key}"):
            self.edits.pop(id(parent.get(name)), None)
        parent[key] = value

    def _log(self, pointer: list[str], items: list[Any], edit: tuple[str, int]) -> None:
        if len(pointer) > 1 and type(owner := self.get(pointer[:-2])) is dict:
            self.edits.setdefault(id(items), _Edits(items, owner, pointer[-2])).log.append(edit)

    def _expression(self, path: Any) -> str | None:
        """The pointer as FHIRPath, when it is made of names and numbers only."""
        found = self.resource_type
        for key in _pointer(path, "path"):
            if _INDEX.fullmatch(key):
                found += f"[{key}]"
            elif _PLAIN.fullmatch(key.removeprefix("_")):
                found += f".{key.removeprefix('_')}"
            elif key != "-":
                return None
        return found


def _pointer(text: Any, member: str) -> list[str]:
    """The reference tokens of a JSON Pointer (RFC 6901)."""
    if type(text) is not str or not _POINTER.fullmatch(text):
        raise _Malformed(f"{member} must be a JSON Pointer")
    return [key.replace("~1", "/").replace("~0", "~") for key in text.split("/")[1:]]


def _place(key: str, last: int) -> int:
    if not _INDEX.fullmatch(key) or int(key) > last:
        raise _Misfit("there is no such place in the list")
    return int(key)


def _refuse_owned(pointer: list[str]) -> None:
    if len(pointer) == 2 and pointer[0] == "meta" and pointer[1] in _OWNED_META:
        raise _Misfit("is the server's and cannot be patched")


def _value(operation: Json) -> Any:
    if "value" not in operation:
        raise _Malformed("a value is missing")
    return operation["value"]


def _add(run: _Run, pointer: list[str], operation: Json) -> None:
    run.add(pointer, run.copy(_value(operation)))


def _remove(run: _Run, pointer: list[str], _operation: Json) -> None:
    run.remove(pointer)


def _replace(run: _Run, pointer: list[str], operation: Json) -> None:
    run.replace(pointer, run.copy(_value(operation)))


def _move(run: _Run, pointer: list[str], operation: Json) -> None:
    source = _pointer(operation.get("from"), "from")
    if pointer == source:
        run.get(source)
        return
    if pointer[: len(source)] == source:
        raise _Misfit("nothing can be moved into itself")
    run.add(pointer, run.remove(source))


def _copy(run: _Run, pointer: list[str], operation: Json) -> None:
    run.add(pointer, run.copy(run.get(_pointer(operation.get("from"), "from"))))


def _test(run: _Run, pointer: list[str], operation: Json) -> None:
    wanted = _value(operation)
    if not _is_same(run.get(pointer), wanted):
        raise _Misfit("the test failed: the element has another value")


_OPERATIONS: Mapping[str, Callable[[_Run, list[str], Json], None]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "move": _move,
    "copy": _copy,
    "test": _test,
}


def _named(operation: Any) -> Callable[[_Run, list[str], Json], None]:
    found = _OPERATIONS.get(operation) if type(operation) is str else None
    if found is None:
        raise _Malformed("op must be add, remove, replace, move, copy or test")
    return found


def _is_same(one: Any, other: Any) -> bool:
    """Equal as JSON is: numbers by value, but true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if type(one) is dict and type(other) is dict:
        return one.keys() == other.keys() and all(_is_same(value, other[name]) for name, value in one.items())
    if type(one) is list and type(other) is list:
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one == other
