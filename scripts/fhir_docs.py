"""Write what docs/fhir.md and docs/fhir-conformance.md say of the fact-books and the tests.

Usage: python scripts/fhir_docs.py. A contract test compares the pages with what this makes.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from _marked import ROOT, Shown, shown

from app.fhir import capability, conditions
from app.fhir.registry import INTERACTIONS, MODIFIERS, Offer, OperationParameter, offers, operations

DOCS = ROOT / "docs"
BLOCK = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
LEVELS = {"shall": "demanded", "expected": "expected", "beyond": "more"}


# --- the checklist ---------------------------------------------------------------------------------------------


def requirements() -> dict[str, dict[str, Any]]:
    """Every section of capability/requirements.toml by its letter."""
    return tomllib.loads((ROOT / "capability" / "requirements.toml").read_text("utf-8"))


def unknown() -> set[str]:
    """What tests name that is no requirement, or one that is said not to be built."""
    rows = {f"{letter}{number}": row for letter, section in requirements().items() for number, row in section.items()}
    return {name for name in shown("requirement") if name not in rows or "open" in rows[name]}


def checklist() -> str:
    """A table per section: what is asked for, how firmly, and what proves it."""
    found = shown("requirement")
    lines: list[str] = []
    for letter, section in requirements().items():
        lines += [f"## {section.pop('title')}", "", "| | level | what | status |", "|---|---|---|---|"]
        for number, row in section.items():
            cells = (letter + number, LEVELS[row["level"]], row["text"], status(row, found.get(letter + number, [])))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def status(row: dict[str, Any], tests: list[Shown]) -> str:
    """Not implemented, not covered, or the tests."""
    if "open" in row:
        return f"**not implemented**: {row['open']}"
    proven = "tested: " + "; ".join(proof.link for proof in tests) if tests else "**not covered** by a test"
    return f"{proven}. {row['note']}" if "note" in row else proven


# --- the registry ----------------------------------------------------------------------------------------------

KINDS = ("token", "reference", "date", "string", "number", "quantity", "uri", "composite")


def table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown; a cell without content shows a dash."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") or "–" for cell in row) + " |\n" for row in lines)


def types() -> str:
    """Type by interaction."""

    def row(offer: Offer) -> list[str]:
        return [offer.resource_type, *("●" if code in offer.interactions else "" for code in INTERACTIONS)]

    return table(("type", *INTERACTIONS), map(row, offers().values()))


def parameters() -> str:
    """Type by the kinds of its own parameters; those of every type are left to the text."""
    shared = {name for name, _ in capability.common()}

    def cell(offer: Offer, kind: str) -> str:
        return ", ".join(
            sorted(one.name for one in offer.search.values() if one.type == kind and one.name not in shared)
        )

    return table(("type", *KINDS), ([name, *(cell(offer, kind) for kind in KINDS)] for name, offer in offers().items()))


def modifiers() -> str:
    """Kind of parameter by modifier, and where not every parameter of the kind takes it."""
    rows: list[tuple[str, str]] = []
    for kind in KINDS:
        ones = [one for offer in offers().values() for one in offer.search.values() if one.type == kind]
        taken = [
            f"`:{name}`" + ("" if all(name in conditions.modifiers(one) for one in ones) else f" {WHERE[name]}")
            for name in MODIFIERS[kind]
        ]
        rows.append((kind, ", ".join([*taken, *(["`:[type]`"] if kind == "reference" else [])])))
    return table(("kind", "modifiers"), rows)


WHERE = {
    "text": "(of codes and identifiers)",
    "of-type": "(of identifiers)",
    "identifier": "(of references that may have one)",
}


def aliases() -> str:
    """Other spellings; `_lastupdated`, which every type has, stands first."""
    rows = [
        (name, ", ".join(f"`{alias}` → `{one}`" for alias, one in sorted(offer.aliases.items()) if alias[0] != "_"))
        for name, offer in offers().items()
    ]
    everywhere = [(alias, one) for alias, one in next(iter(offers().values())).aliases.items() if alias[0] == "_"]
    first = ("every type", ", ".join(f"`{alias}` → `{one}`" for alias, one in everywhere))
    return table(("type", "also taken"), [first, *((name, text) for name, text in rows if text)])


def omitted() -> str:
    """What R4 has and this server refuses, with the reason."""
    everywhere = set.intersection(*(set(offer.omitted.items()) for offer in offers().values()))
    rows = [("every type", f"`{name}`", reason) for name, reason in sorted(everywhere)]
    rows += [
        (kind, f"`{name}`", reason)
        for kind, offer in offers().items()
        for name, reason in sorted(set(offer.omitted.items()) - everywhere)
    ]
    return table(("type", "parameter", "why not"), rows)


def operation_rows() -> str:
    """What each operation tells."""

    def rows(name: str, told: Iterable[OperationParameter]) -> Iterator[tuple[str, ...]]:
        for one in told:
            yield f"`{name}{one.name}`", one.type, f"{one.min}..{one.max}", one.text
            yield from rows(f"{name}{one.name}.", one.parts)

    return "".join(
        f"`GET /fhir/${one.name}`: {one.text}\n\n"
        + table(("parameter", "type", "how often", "what"), rows("", one.parameters))
        for one in operations().values()
    )


def own() -> str:
    """The parameters that R4 does not have."""
    rows = [
        (kind, f"`{one.name}`", one.type, one.description, f"`{one.expression}`")
        for kind, offer in offers().items()
        for one in offer.search.values()
        if one.description
    ]
    return table(("type", "parameter", "kind", "what it finds", "expression"), rows)


def protected() -> str:
    """What clients cannot change of the resources that the server made."""
    rows = [(name, ", ".join(f"`{one}`" for one in sorted(offer.protected))) for name, offer in offers().items()]
    return table(("type", "elements"), [row for row in rows if row[1]])


# --- pages -----------------------------------------------------------------------------------------------------

BLOCKS: dict[str, Callable[[], str]] = {
    "checklist": checklist,
    "types": types,
    "parameters": parameters,
    "modifiers": modifiers,
    "aliases": aliases,
    "omitted": omitted,
    "own": own,
    "operations": operation_rows,
    "protected": protected,
}


def pages() -> dict[Path, str]:
    """Each page with its blocks as they should be."""

    def filled(path: Path) -> str:
        return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}{match[3]}", path.read_text("utf-8"))

    return {path: filled(path) for path in (DOCS / "fhir.md", DOCS / "fhir-conformance.md")}


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, "utf-8")
