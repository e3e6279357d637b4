"""Write the table of docs/sync-cases.md: what can happen to images, and the tests that show what happens then.

Usage: python scripts/sync_cases.py. Rows stand in capability/sync_cases.toml, tests name them by
`@pytest.mark.case(7)`; a test compares the page with what this makes.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "sync-cases.md"
BLOCK = re.compile(r"(<!-- made: cases -->\n).*?(<!-- end -->)", re.DOTALL)


class Shown(NamedTuple):
    """A test that shows a case."""

    path: Path
    name: str

    @property
    def link(self) -> str:
        """The sentence of its name, leading to its file."""
        sentence = self.name.removeprefix("test_").replace("_", " ")
        return f"[{sentence}](../{self.path.relative_to(ROOT)})"


def cases() -> dict[int, dict[str, Any]]:
    """Every row by its number."""
    rows = tomllib.loads((ROOT / "capability" / "sync_cases.toml").read_text("utf-8"))
    return {int(number): row for number, row in rows.items()}


def tests() -> dict[int, list[Shown]]:
    """The tests of each case, by the marker `case` on them or on their module."""
    found: dict[int, list[Shown]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for number in marked(node):
                    found.setdefault(number, []).append(Shown(path, node.name))
    return found


def marked(test: ast.FunctionDef) -> Iterator[int]:
    """The arguments of its case markers."""
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.case":
            yield from (ast.literal_eval(argument) for argument in decorator.args)


def unknown() -> set[int]:
    """What tests name that is no row."""
    return tests().keys() - cases().keys()


def unshown() -> set[int]:
    """The rows about images that no test shows."""
    return {number for number, row in cases().items() if row.get("images")} - tests().keys()


def table() -> str:
    """One line per case."""
    shown = tests()
    lines = ["| | what happens | what this server does | shown by |", "|---|---|---|---|"]
    for number, row in cases().items():
        cells = (str(number), row["case"], row["answer"], status(row, shown.get(number, [])))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def status(row: dict[str, Any], shown: list[Shown]) -> str:
    """The tests, and what is missing."""
    said = "; ".join(one.link for one in shown)
    if "open" not in row:
        return said or "**no test yet**"
    missing = f"**not {'all ' if shown else ''}here yet**: {row['open']}"
    return f"{said}. {missing}" if said else missing


def page() -> str:
    """The page with its table as it should be."""
    return BLOCK.sub(lambda match: f"{match[1]}{table()}{match[2]}", PAGE.read_text("utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
