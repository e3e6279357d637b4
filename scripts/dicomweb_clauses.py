"""Write the table of docs/dicomweb-conformance.md: the clauses of PS3.18, and the tests that show each.

Usage: python scripts/dicomweb_clauses.py. Rows stand in capability/dicomweb_clauses.toml, tests name them by
`@pytest.mark.ps318("10.6.1")`; a test compares the page with what this makes.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from _marked import ROOT, Shown, shown

PAGE = ROOT / "docs" / "dicomweb-conformance.md"
BLOCK = re.compile(r"(<!-- made: clauses -->\n).*?(<!-- end -->)", re.DOTALL)


def clauses() -> dict[str, dict[str, Any]]:
    """Every row by its clause."""
    return tomllib.loads((ROOT / "capability" / "dicomweb_clauses.toml").read_text("utf-8"))


def unknown() -> set[str]:
    """What tests name that is no row."""
    return shown("ps318").keys() - clauses().keys()


def unshown() -> set[str]:
    """The rows that are met, it is said, and that no test shows."""
    return {clause for clause, row in clauses().items() if "open" not in row} - shown("ps318").keys()


def counts() -> str:
    """How many clauses and tests there are."""
    tests = shown("ps318")
    whole = sum("open" not in row for row in clauses().values())
    partly = len([clause for clause, row in clauses().items() if "open" in row and clause in tests])
    named = {one for found in tests.values() for one in found}
    rest = len(clauses()) - whole - partly
    return f"{len(clauses())} rows: {whole} met, {partly} in part, {rest} not offered; {len(named)} tests.\n\n"


def table() -> str:
    """One line per clause."""
    tests = shown("ps318")
    lines = ["| PS3.18 | asks | status | shown by |", "|---|---|---|---|"]
    for clause, row in clauses().items():
        found = sorted(tests.get(clause, []), key=lambda one: (str(one.path), one.name))
        cells = (clause, asked(row), status(row, found), "; ".join(one.link for one in found))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def asked(row: dict[str, Any]) -> str:
    """What the clause asks, and how it is met."""
    return f"{row['asks']}. {row['does']}" if "does" in row else row["asks"]


def status(row: dict[str, Any], tests: list[Shown]) -> str:
    """Met, in part, or not offered and why."""
    if "open" not in row:
        return "yes" if tests else "**no test**"
    return f"{'in part' if tests else 'no'}: {row['open']}"


def page() -> str:
    """The page with its table as it should be."""
    return BLOCK.sub(lambda match: f"{match[1]}{counts()}{table()}{match[2]}", PAGE.read_text("utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
