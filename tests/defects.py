"""Valid resources, each spoiled in one way, and the one issue that tells of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tests.fhir_examples import examples

FOLDER = Path(__file__).parent / "data" / "defects"


class Defect(NamedTuple):
    """A spoiled resource: how it was spoiled, its body, and code and FHIRPath of the issue."""

    name: str
    resource_type: str
    body: bytes
    code: str
    expression: str


@cache
def defects() -> tuple[Defect, ...]:
    """The whole corpus."""
    rows = json.loads((FOLDER / "defects.json").read_bytes())
    return tuple(defect for example, changes in rows.items() for defect in _spoiled(example, changes))


def _spoiled(example: str, changes: list[list[Any]]) -> Iterator[Defect]:
    own = FOLDER / example
    valid = json.loads(own.read_bytes() if own.exists() else examples()[example])
    kind = valid["resourceType"]
    for what, where, value, code, below in changes:
        resource = deepcopy(valid)
        _change(resource, what, where.split("/")[1:], value)
        shown = "resourceType" if below == "resourceType" else f"{kind}.{below}".rstrip(".")
        yield Defect(f"{kind}{where}-{code}", kind, json.dumps(resource).encode(), code, shown)


def _change(node: Any, what: str, where: list[str], value: Any) -> None:
    *steps, last = where
    for step in steps:
        node = node[int(step)] if isinstance(node, list) else node[step]
    if what == "remove":
        del node[int(last) if isinstance(node, list) else last]
    elif isinstance(node, list):
        node[int(last) : int(last) + 1] = [value]
    else:
        node[last] = value
