"""Write the table of docs/sync-cases.md: what can happen to images, and the tests that show what happens then.

Usage: python scripts/sync_cases.py. Rows stand in capability/sync_cases.toml, tests name them by
`@pytest.mark.case(7)`; a test compares the page with what this makes.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from _marked import ROOT, Shown, shown

PAGE = ROOT / "docs" / "sync-cases.md"
BLOCK = re.compile(r"(<!-- made: cases -->\n).*?(<!-- end -->)", re.DOTALL)


def cases() -> dict[int, dict[str, Any]]:
    """Every row by its number."""
    rows = tomllib.loads((ROOT / "capability" / "sync_cases.toml").read_text("utf-8"))
    return {int(number): row for number, row in rows.items()}


def unknown() -> set[int]:
    """What tests name that is no row."""
    return shown("case").keys() - cases().keys()


def unshown() -> set[int]:
    """The rows about images that no test shows."""
    return {number for number, row in cases().items() if row.get("images")} - shown("case").keys()


def table() -> str:
    """One line per case."""
    tests = shown("case")
    lines = ["| | what happens | what this server does | shown by |", "|---|---|---|---|"]
    for number, row in cases().items():
        cells = (str(number), row["case"], row["answer"], status(row, tests.get(number, [])))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def status(row: dict[str, Any], tests: list[Shown]) -> str:
    """The tests, and what is missing."""
    said = "; ".join(one.link for one in tests)
    if "open" not in row:
        return said or "**no test yet**"
    missing = f"**not {'all ' if tests else ''}here yet**: {row['open']}"
    return f"{said}. {missing}" if said else missing


def page() -> str:
    """The page with its table as it should be."""
    return BLOCK.sub(lambda match: f"{match[1]}{table()}{match[2]}", PAGE.read_text("utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
