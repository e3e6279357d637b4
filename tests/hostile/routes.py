"""What the gateway serves, found by asking its own parser: every shape of address made of its own words.

A row that somebody adds to the table is found here, and is attacked, without anybody having to think of it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import get_args

from app.dicom import gateway, paths
from app.errors import IsocenterError
from tests.hostile.world import BULK, Seeded

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
STUDY, SERIES, INSTANCE = "1.2.3", "1.2.3.4", "1.2.3.4.5"
SAMPLES = {STUDY: "{study}", SERIES: "{series}", INSTANCE: "{instance}"}
VALUES = ("1", "1,2", "7FE00010")
DEEP = ("00400555", "1", BULK)
"""An element within an item, which the seeded images have."""
Segments = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """A method and an address with places for the UIDs, and what the gateway takes it for."""

    method: str
    template: str
    resource: str
    level: str

    @property
    def verb(self) -> str:
        """The SMART verb it needs."""
        return gateway.VERBS.get(self.resource, "r")

    @property
    def names_a_study(self) -> bool:
        return "{study}" in self.template

    def at(self, study: Seeded, series: Seeded | None = None, instance: Seeded | None = None) -> str:
        """The address in this study, or with a series or instance of another."""
        return self.template.format(
            study=study.uid, series=(series or study).series(), instance=(instance or series or study).instance()
        )

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


@cache
def words() -> tuple[str, ...]:
    """Every word in the module of the table that could be a segment."""
    tree = ast.parse(inspect.getsource(paths))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return tuple(sorted(text for text in texts if text.isidentifier() or text.replace("-", "").isidentifier()))


@cache
def shapes() -> tuple[Shape, ...]:
    """Every shape that the parser takes."""
    found: dict[tuple[str, str], Shape] = {}
    for segments in _candidates():
        for shape in _taken(segments):
            found[shape.method, shape.template] = shape
    return tuple(sorted(found.values(), key=lambda shape: (shape.template, shape.method)))


def _candidates() -> Iterator[Segments]:
    """Up to three words with a UID after each, and below those that are taken up to three more segments."""
    yield ()
    uids = (STUDY, SERIES, INSTANCE)
    heads: list[Segments] = []
    for depth in (1, 2, 3):
        for chosen in product(words(), repeat=depth):
            head = tuple(part for pair in zip(chosen, uids, strict=False) for part in pair)
            yield head[:-1]
            if any(_taken(head)):
                heads.append(head)
    tails = (*words(), *VALUES)
    for head in heads:
        yield head
        for depth in (1, 2, 3):
            for tail in product(tails, repeat=depth):
                yield (*head, *tail)
        for word in words():
            yield (*head, word, *DEEP)


def _taken(segments: Segments) -> Iterator[Shape]:
    raw = "".join(f"/{segment}" for segment in segments).encode()
    for method in METHODS:
        try:
            target = paths.parse(method, raw)
        except IsocenterError as error:
            if error.status == 405:
                continue
            return
        if not {target.study, target.series, target.instance} <= {None, *SAMPLES}:
            return
        template = "".join(f"/{SAMPLES.get(segment, segment)}" for segment in segments)
        yield Shape(method, template, target.resource, target.level)


def unattacked() -> list[str]:
    """Kinds of target and rows of the table for which no shape was found: the suite would not touch them."""
    found = {shape.template for shape in shapes()}
    kinds = {shape.resource for shape in shapes()}
    missing = [f"resource {kind}" for kind in get_args(paths.Resource) if kind not in kinds]
    for row in (*paths.SEARCHES, *paths.OBJECTS):
        names = iter(("{study}", "{series}", "{instance}"))
        template = "".join(f"/{next(names) if part == '*' else part}" for part in row)
        if template not in found:
            missing.append(f"row {row}")
    missing += [f"suffix {one}" for one in paths.SUFFIXES if not any(t.endswith(f"/{one}") for t in found)]
    return missing
